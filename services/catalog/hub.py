"""The Hugging Face hub, read in a process of its own:

python -m services.catalog.hub REPOSITORY REVISION CACHE FILE_PATTERN...

The library decides when it is imported whether it may go online. Service, engines and workers never may
(`HF_HUB_OFFLINE=1`); the one process that downloads may, where the operator allows it (`WMSS_HUB=true`).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.settings import Settings
from wmss.errors import ModelError, shown

PREFIX = "hf:"
_REPOSITORY = r"[\w-][\w.-]*"
_REVISION = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*"
_UNMISTAKABLE = re.compile(f"({_REPOSITORY}/{_REPOSITORY})@({_REVISION})", re.ASCII)
_PREFIXED = re.compile(f"{PREFIX}({_REPOSITORY}(?:/{_REPOSITORY})?)@({_REVISION})", re.ASCII)
_WITHOUT_REVISION = re.compile(f"(?:{PREFIX})?{_REPOSITORY}/{_REPOSITORY}|{PREFIX}{_REPOSITORY}", re.ASCII)


class HubUnavailableError(Exception):
    """The hub does not answer, or not as it should."""


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at a branch, tag or commit."""

    repository: str
    revision: str


def hub_model(name: str) -> HubModel | None:
    """The hub's model that `name` stands for: ORG/NAME@REVISION, or with `hf:` before it, which repositories without
    an organisation need. None for any other name."""
    match = (_PREFIXED if name.startswith(PREFIX) else _UNMISTAKABLE).fullmatch(name)
    return None if match is None else HubModel(*match.groups())


def lacks_revision(name: str) -> bool:
    """Whether `name` could be a model of the hub, but for the revision."""
    return _WITHOUT_REVISION.fullmatch(name) is not None


def fetch(model: HubModel, patterns: Sequence[str], settings: Settings, *, param: str) -> Path:
    """The folder of a model, downloaded unless the home's cache has it; it is named after the commit.

    Of the repository's top folder the files that match `patterns` are taken, nothing else. A download that was cut
    short goes on where it stopped.

    Raises:
        ModelError: there is no such model or revision, or it may not be downloaded.
        HubUnavailableError: the hub does not answer.
    """
    command = [sys.executable, "-m", "services.catalog.hub", model.repository, model.revision, str(settings.hub_cache)]
    environment = os.environ | {"HF_HUB_OFFLINE": "0" if settings.hub else "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.run([*command, *patterns], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        raise HubUnavailableError(f"the download ended with exit code {run.returncode}; the service's log says how")
    answer = json.loads(run.stdout.splitlines()[-1])
    what = f"{model.repository} at {model.revision}"
    match answer["outcome"]:
        case "found":
            return Path(answer["path"])
        case "refused":
            raise ModelError(f"{param}: the hub refuses {what}: {shown(answer['reason'])}", param=param)
        case _ if settings.hub:
            raise HubUnavailableError(f"the hub does not give {what}: {shown(answer['reason'])}")
    raise ModelError(
        f"{param}: {what} is not in {settings.hub_cache}, and this service downloads nothing: its operator can allow "
        "it with WMSS_HUB=true",
        param=param,
    )


def forget(folder: Path, settings: Settings) -> None:
    """Delete a download: the files that no other revision of its repository shares."""
    from huggingface_hub import scan_cache_dir

    scan_cache_dir(settings.hub_cache).delete_revisions(folder.name).execute()


def main(repository: str, revision: str, cache: str, *patterns: str) -> None:
    """Download and print what came of it as one line of JSON."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(
            repository, revision=revision, cache_dir=cache, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
        answer = {"outcome": "found", "path": path}
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        answer = {"outcome": "refused", "reason": _first_line(error)}
    except Exception as error:  # the outermost frame: a hub that fails, a broken connection, a cache without the model
        answer = {"outcome": "unavailable", "reason": _first_line(error)}
    print(json.dumps(answer))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
