"""Hidden states of a frozen model at every supervised position, on disk: written while scoring, read while training.

states.npy    [rows, D], float32, or uint16 that hold the bits of bfloat16; rows of sample 0 first, in the order of its
              predicting positions
offsets.npy   int64 [samples + 1], the first row of each sample
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from wmss.errors import TrainingError
from wmss.records import TokenizedSample

StatesDtype = Literal["float32", "bfloat16"]
"""How states are stored. Rounded to bfloat16 they take half the room: for training that rounds them to it anyway."""

_STATES, _OFFSETS = "states.npy", "offsets.npy"
_STORED: dict[StatesDtype, type[np.generic]] = {"float32": np.float32, "bfloat16": np.uint16}


class StateWriter:
    """Fills a cache sample by sample, in any order; it appears under its name when `close` finds it complete."""

    def __init__(self, folder: Path, samples: Sequence[TokenizedSample], dtype: StatesDtype = "float32") -> None:
        self._folder = folder
        self._dtype = dtype
        self._partial = folder.with_name(folder.name + ".partial")
        self._offsets = np.concatenate([[0], np.cumsum([sample.num_targets for sample in samples])]).astype(np.int64)
        self._rows: npt.NDArray[Any] | None = None
        self._missing = set(range(len(samples)))
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def write(self, index: int, states: npt.NDArray[np.float32]) -> None:
        """States [num_targets, D] of one sample."""
        if self._rows is None:
            shape = (int(self._offsets[-1]), states.shape[1])
            file = self._partial / _STATES
            stored = _STORED[self._dtype]
            self._rows = open_memmap(file, mode="w+", dtype=stored, shape=shape)  # type: ignore[no-untyped-call]
        start, end = self._offsets[index : index + 2]
        self._rows[start:end] = states if self._dtype == "float32" else _bfloat16_bits(states)
        self._missing.discard(index)

    def close(self) -> None:
        """Publish the cache under its folder."""
        assert self._rows is not None and not self._missing, f"{len(self._missing)} samples have no states"
        self._rows.flush()  # type: ignore[attr-defined]
        np.save(self._partial / _OFFSETS, self._offsets)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)


def _bfloat16_bits(states: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    rounded = torch.tensor(states).to(torch.bfloat16)  # to the nearest, as training rounds
    bits: npt.NDArray[np.uint16] = rounded.view(torch.uint16).numpy()
    return bits


def states_bytes(samples: Sequence[TokenizedSample], width: int, dtype: StatesDtype = "float32") -> int:
    """Size of a cache: 4·D bytes a supervised token, 2·D in bfloat16."""
    num_targets: int = sum(sample.num_targets for sample in samples)
    return np.dtype(_STORED[dtype]).itemsize * width * num_targets


def states_digest(folder: Path) -> str:
    """SHA-256 of a cache, read once from end to end: rows are written in no order in which they could be hashed."""
    digest = hashlib.sha256()
    for name in (_OFFSETS, _STATES):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_states(folder: Path, digest: str) -> None:
    """Raise `TrainingError` unless a cache is there and still what `StateWriter` wrote."""
    try:
        found = states_digest(folder)
    except OSError as error:
        raise _unusable(folder, str(error)) from error
    if found != digest:
        raise _unusable(folder, "its content has changed since it was written")


def _unusable(folder: Path, why: str) -> TrainingError:
    return TrainingError(
        f"weak_cache: expected the weak model's hidden states in {folder}: {why}; start the job again",
        param="method.wmss.weak_cache",
    )


class StateCache:
    """Reads what `StateWriter` wrote; the file stays on disk and is mapped."""

    def __init__(self, folder: Path) -> None:
        """Raises `TrainingError` if the cache is not there or cannot be read."""
        try:
            self._states = np.load(folder / _STATES, mmap_mode="r")
            self._offsets = np.load(folder / _OFFSETS)
        except (OSError, ValueError, EOFError) as error:
            raise _unusable(folder, str(error)) from error

    def rows(self, indices: Sequence[int]) -> Tensor:
        """States [R, D] of these samples, one after the other, as float32."""
        parts = [self._states[self._offsets[index] : self._offsets[index + 1]] for index in indices]
        none = np.zeros((0, self._states.shape[1]), dtype=self._states.dtype)
        rows = torch.from_numpy(np.concatenate([none, *parts]))
        return rows if rows.dtype == torch.float32 else rows.view(torch.bfloat16).float()
