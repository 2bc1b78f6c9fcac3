"""One small run in a process of its own, for a test that kills it: `python -m tests.training.resuming RUN FOLDER`.

After every micro-batch it prints a line, so that the killer can choose its moment.
"""

import sys
from pathlib import Path

import torch

from tests.training.runs import LocalHost
from wmss.training.branches import Branches
from wmss.training.loop import train
from wmss.training.run import TrainingRun


def main(run_json: str, folder: str) -> None:
    torch.set_num_threads(1)
    forward = Branches.forward

    def announced(self, *args):
        print("micro-batch", flush=True)
        return forward(self, *args)

    Branches.forward = announced
    train(TrainingRun.model_validate_json(Path(run_json).read_text(encoding="utf-8")), LocalHost(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
