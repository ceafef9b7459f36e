"""Output and errors of the commands.

``doctor`` and ``memory`` must work on a machine that has torch and nothing else, so tables fall back to plain text.
``train`` and ``report`` draw, and ask for the extra at their start.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TextIO

from lionbits import install

LONGEST = 600  # characters of a sentence about what is wrong
PLAIN_WIDTH = 120  # of a pipe or a log file, where asking for the terminal's width answers 80 and tables would wrap


class CommandError(Exception):
    """The command is impossible; the message is for the user and needs no traceback."""


def printable(text: str) -> str:
    """Return text without effect on a terminal: control characters, which may move its cursor, are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.expandtabs())


def sentence(text: str) -> str:
    """Return the text on one line, shortened: the beginning of torch's messages says what is wrong."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def require(*packages: str) -> None:
    """Refuse at the start, not after an hour of training, if a package of the extra is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"this command needs {' and '.join(missing)}: {install.command('cli')}")


@dataclass
class Table:
    """A table, printed in several ways. Columns after the first are numbers unless ``left`` names them."""

    title: str
    columns: Sequence[str]
    caption: str = ""
    left: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(printable(cell) for cell in cells))

    def is_left(self, index: int) -> bool:
        return index == 0 or self.columns[index] in self.left


def show(table: Table, stream: TextIO | None = None) -> None:
    """Print with rich if it is installed, else as aligned text."""
    stream = stream or sys.stdout
    if importlib.util.find_spec("rich") is None:
        print(as_text(table), file=stream)
    else:
        _show_rich(table, stream)


def as_text(table: Table) -> str:
    """Return columns padded to their widest cell: readable without rich, and easy to compare in tests."""
    lines = [tuple(table.columns), *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def padded(line: tuple[str, ...]) -> str:
        cells = [
            c.ljust(w) if table.is_left(i) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    body = [padded(line) for line in lines]
    body.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(filter(None, [table.title, *body, table.caption]))


def _show_rich(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=table.title, caption=table.caption, box=box.ROUNDED, title_style="bold")
    drawn.caption_justify = "left"
    for index, header in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if table.is_left(index) else "right"
        drawn.add_column(Text(header), justify=justify, no_wrap=index == 0)
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH)
    with console.capture() as shown:
        console.print(drawn)
    stream.write(shown.get())  # rich itself would end the process where nobody reads a pipe


def count(text: str) -> int:
    """Read ``7e9``, ``7B``, ``350M`` or ``4096`` as an integer (decimal multiples)."""
    digits, multiple = text.strip(), 1.0
    if digits and digits[-1].upper() in "KMGBT":
        multiple = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}[digits[-1].upper()]
        digits = digits[:-1]
    number = float(digits) * multiple  # argparse turns the ValueError into a usage message
    if not 0 <= number < 2**63:
        raise ValueError(f"{text!r} is not a count")
    return round(number)


def human_bytes(number: float) -> str:
    """Return decimal units with three significant digits: 4.10 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
