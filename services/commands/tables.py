"""Tables on the command line. No figure and no name is ever cut: they are what people read, compare and copy."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "
INDENT = "    "


def show_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, below: int = 0) -> None:
    """Print rows of texts, each row as a line where the terminal is wide enough.

    Where it is not, the last `below` columns stand under their row, by name. Where this does not help either, all but
    the first stand so. A column that is empty in every row is left out, and so is an empty cell under a row. What is
    not a terminal gets a line a row, however long: a program reads it.
    """
    if not rows:
        return
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    num_below = sum(place >= len(columns) - below for place in kept)
    names = [columns[place] for place in kept]
    cells = [[row[place] for place in kept] for row in rows]
    for beside in (len(names), len(names) - num_below):
        lines = list(_aligned([names[:beside], *(row[:beside] for row in cells)]))
        if not console.is_terminal or max(map(cell_len, lines)) <= console.width:
            break
    else:
        beside, lines = 1, ["", *(f"{names[0]} {row[0]}".strip() for row in cells)]
    head, *first_lines = lines
    if head:
        _line(console, head, "bold")
    for line, row in zip(first_lines, cells, strict=True):
        _line(console, line)
        for under in _under(list(zip(names, row, strict=True))[beside:], console.width):
            _line(console, under)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield GAP.join(padded).rstrip()


def _under(pairs: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Cells with their columns' names, as many on a line as fit; one that is longer than a line is not broken."""
    line = ""
    for name, cell in pairs:
        if not cell:
            continue
        pair = f"{name}: {cell}"
        if line and cell_len(line + GAP + pair) > width:
            yield line
            line = ""
        line = f"{line}{GAP}{pair}" if line else INDENT + pair
    if line:
        yield line


def _line(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style), highlight=False, soft_wrap=True)
