"""The API's shape is a golden file: a field, a code or a route that changed is seen here.

After a change that is meant: `python -m tests.services.test_openapi` writes the file again.
"""

import json
from pathlib import Path

from services.api.app import create_app

GOLDEN = Path(__file__).parent / "openapi.json"


def described() -> str:
    return json.dumps(create_app().openapi(), indent=1, sort_keys=True) + "\n"


def without_texts(node):
    """All but descriptions, summaries and titles, which may be worded again; a field named like that stays."""
    if isinstance(node, list):
        return [without_texts(each) for each in node]
    if not isinstance(node, dict):
        return node
    texts = {key for key in ("description", "summary", "title") if isinstance(node.get(key), str)}
    return {key: without_texts(value) for key, value in node.items() if key not in texts}


def test_the_api_is_as_recorded():
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    now = json.loads(described())
    assert now["paths"].keys() == recorded["paths"].keys()
    assert without_texts(now) == without_texts(recorded)


def test_a_changed_field_is_seen():
    changed = json.loads(GOLDEN.read_text(encoding="utf-8"))
    fields = changed["components"]["schemas"]["JobObject"]["properties"]
    fields["renamed"] = fields.pop("status")
    assert without_texts(changed) != without_texts(json.loads(described()))


if __name__ == "__main__":
    GOLDEN.write_text(described(), encoding="utf-8")
