"""What `wmss.models.limited` asks about folders, as its process answers it: arguments and answers are JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from wmss.config import LoraConfig
from wmss.models.examination import examine_folder
from wmss.models.loading import check_pair, check_same_tokenizer


def folder(path: str, param: str, lora: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of a `ModelFolder`."""
    return asdict(examine_folder(Path(path), param=param, lora=None if lora is None else LoraConfig(**lora)))


def pair(strong: str, weak: str, param: str) -> None:
    """As `loading.check_pair`."""
    check_pair(Path(strong), Path(weak), param=param)


def tokenizers(folders: dict[str, str]) -> None:
    """As `loading.check_same_tokenizer`."""
    check_same_tokenizer({param: Path(path) for param, path in folders.items()})
