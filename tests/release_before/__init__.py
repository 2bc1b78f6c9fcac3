"""What the release before the move left: made by commit 5b369ea, never to be made again.

`jobs.sql` is its database (SQLite, as `iterdump` writes it) with finished, running and queued jobs; `rest.json` holds
what its API answered from it; `artifacts/` what the phases of real jobs recorded, in order.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DATABASE = FOLDER / "jobs.sql"


def recorded() -> dict[str, dict[str, Any]]:
    """By job: its `spec` and, by phase, the artifacts that it recorded."""
    return {file.stem: json.loads(file.read_text()) for file in sorted((FOLDER / "artifacts").glob("*.json"))}


def answers() -> dict[str, dict[str, Any]]:
    """By path: `status` and `body` of the API's answer."""
    return json.loads((FOLDER / "rest.json").read_text())
