"""How the loss stage's peak memory grows with rows and with the vocabulary: exact, and the same on every machine.

python -m benchmarks.loss_memory_flat
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.loss_op import TOLERANCE, Loss, loss_and_gradients, make_inputs, naive, ours
from benchmarks.measure import Line, Target, line, peak_bytes, print_lines, require_close

ROWS = (512, 1024, 2048)
VOCABULARIES = (8_192, 32_768)
WIDTH = 256
TARGET = Target("loss_memory_flat", at_most=0.05)


def run(
    *,
    rows: tuple[int, ...] = ROWS,
    vocabularies: tuple[int, ...] = VOCABULARIES,
    width: int = WIDTH,
    device: str = "cpu",
) -> Iterator[Line]:
    """Joint loss, forward and backward: bytes a row at each vocabulary, and bytes a word of the vocabulary."""
    arms: dict[str, Loss] = {"ours": ours, "naive": naive}
    peaks = {
        (name, vocabulary, count): _peak(loss, vocabulary, count, width, device)
        for vocabulary in vocabularies
        for count in rows
        for name, loss in arms.items()
    }
    first, last = rows[0], rows[-1]
    per_row = {
        (name, vocabulary): (peaks[name, vocabulary, last] - peaks[name, vocabulary, first]) / (last - first)
        for name in arms
        for vocabulary in vocabularies
    }
    small, large = vocabularies[0], vocabularies[-1]
    for name in arms:
        for vocabulary in vocabularies:
            yield line(
                "loss_memory_flat",
                name,
                {"vocabulary": vocabulary, "width": width, "rows": f"{first}-{last}"},
                peak=peaks[name, vocabulary, last],
                figures={
                    "bytes_a_row": per_row[name, vocabulary],
                    "bytes_a_row_over_naive": per_row[name, vocabulary] / per_row["naive", vocabulary],
                    "bytes_a_word": (peaks[name, large, last] - peaks[name, small, last]) / (large - small),
                },
                targets={"bytes_a_row_over_naive": TARGET} if name == "ours" else {},
            )


def _peak(loss: Loss, vocabulary: int, rows: int, width: int, device: str) -> int:
    setting = {"vocabulary": vocabulary, "width": width, "rows": rows}
    tensors, labels = make_inputs(setting, frozen=False, device=device)
    peak = peak_bytes(partial(loss_and_gradients, loss, tensors, labels))
    if loss is not naive:
        found, truth = (loss_and_gradients(each, tensors, labels) for each in (loss, naive))
        require_close("loss_memory_flat", found, truth, tolerance=TOLERANCE)
    return peak


if __name__ == "__main__":
    print_lines(run())
