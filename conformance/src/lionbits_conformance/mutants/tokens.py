"""The tokens of a source text, of Python or of CUDA C++, as far as mutation needs to know them."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

_CUDA = re.compile(
    r"""
    (?P<skip>//[^\n]*|/\*.*?\*/|\#[^\n]*|"(?:\\.|[^"\\])*")
    |(?P<number>0[xX][0-9A-Fa-f]+(?:[uU]?[lL]{0,2})|\d+\.\d*(?:[eE][-+]?\d+)?f?|\d+(?:[uU]?[lL]{0,2}))
    |(?P<name>[A-Za-z_]\w*)
    |(?P<operator><<=|>>=|&&|\|\||<<|>>|<=|>=|==|!=|\+\+|--|\+=|-=|\*=|/=|%=|&=|\|=|\^=|[-+*/%<>=!&|^~?:;,.(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A token and where it stands.

    Attributes:
        kind: ``"name"``, ``"number"`` or ``"operator"``; keywords are operators.
        text: as it is written.
        begin, end: offsets in the text.
    """

    kind: str
    text: str
    begin: int
    end: int


def tokens(file: str, text: str) -> list[Token]:
    """All tokens but comments, texts and line ends, in order."""
    return list(_python(text) if file.endswith(".py") else _cuda(text))


def line_of(text: str, offset: int) -> int:
    """The number of the line, from 1 on, that this offset is in."""
    return text.count("\n", 0, offset) + 1


def _python(text: str) -> Iterator[Token]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    kinds = {tokenize.NAME: "name", tokenize.NUMBER: "number", tokenize.OP: "operator"}
    for found in tokenize.generate_tokens(io.StringIO(text).readline):
        if found.type in kinds:
            kind = "operator" if keyword.iskeyword(found.string) and found.string not in _VALUES else kinds[found.type]
            begin, end = (starts[line - 1] + column for line, column in (found.start, found.end))
            yield Token(kind, found.string, begin, end)


_VALUES = ("None", "True", "False")


def _cuda(text: str) -> Iterator[Token]:
    for found in _CUDA.finditer(text):
        if found.lastgroup is not None and found.lastgroup != "skip":
            yield Token(found.lastgroup, found.group(), *found.span())
