"""Mutants made of a source text itself: one token or expression is replaced by one that it could be mistaken for.

The list is a function of the text alone, and a mutant is named by file, line and what is written instead, as
``formats.py:77: "<=" -> "<"``. Names move with the lines; what a data file says of a mutant is found by its line's text.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lionbits_conformance.patched_import import Edit

from .tokens import Token, line_of, tokens

#: What a token may be taken for.
CONDITIONS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "and": "or",
    "or": "and",
    "&&": "||",
    "||": "&&",
}
ARITHMETIC = {
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "//": "*",
    "%": "//",
    "<<": ">>",
    ">>": "<<",
    "&": "|",
    "|": "&",
    "^": "|",
    "+=": "-=",
    "-=": "+=",
    "|=": "&=",
}
_PAIRS = (
    *(("param_row", "grad_row"), ("param_outer", "grad_outer"), ("param_middle", "grad_middle")),
    *(("param_inner", "grad_inner"), ("outer", "middle"), ("low", "high"), ("seed_low", "seed_high")),
    *(("STATE", "PARAMETER"), ("b1", "b2"), ("one_minus_b1", "one_minus_b2"), ("lr", "keep"), ("rows", "columns")),
    *(("amax", "amin"), ("max", "min"), ("maximum", "minimum"), ("first", "last"), ("float64", "float32")),
)
SIBLINGS = {
    **{name: other for pair in _PAIRS for name, other in (pair, pair[::-1])},
    "inner": "middle",
    "pitch": "columns",
    "row_pitch": "start",
    "row": "block",
    "begin": "row",
    "all": "any",
    "any": "all",
    "True": "False",
    "False": "True",
    "int64": "int32",
}
#: Names of CUDA C++ that are written otherwise, or have no sibling that compiles.
CUDA_SIBLINGS = SIBLINGS | {"int64": "int", "first": "", "last": "", "row": ""}
#: Where a function begins, in either language.
_FUNCTION = re.compile(r"(?m)^(?:    )?def |^(?:LIONBITS_DEVICE|extern|template)\b")
#: What stands before an operator that has two operands.
_VALUE_ENDS = (")", "]")


@dataclass(frozen=True)
class Generated:
    """A mutant by its place.

    Attributes:
        file: as in :class:`Edit`.
        line: from 1 on.
        source: that line, without white space around it.
        old, new: what is replaced, and by what.
        occurrence: which of the places of the line where ``old`` becomes ``new``, from 0 on.
        edit: the same as texts, of as many lines as make it one place.
    """

    file: str
    line: int
    source: str
    old: str
    new: str
    occurrence: int
    edit: Edit

    @property
    def name(self) -> str:
        """File, line and what is replaced."""
        which = f" ({self.occurrence + 1})" if self.occurrence else ""
        return f'{self.file}:{self.line}: "{self.old}" -> "{self.new}"{which}'

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """What tells it from others wherever its line has moved."""
        return self.file, self.source, self.old, self.new, self.occurrence


def generated(file: str, text: str) -> list[Generated]:
    """Every mutant of a text, by place; those that do not parse are left out, where it is Python."""
    found: dict[tuple[int, int, str], None] = dict.fromkeys(_replacements(file, text))
    seen: Counter[tuple[int, str, str]] = Counter()
    made = []
    for begin, end, new in sorted(found):
        line, old = line_of(text, begin), text[begin:end]
        mutated = text[:begin] + new + text[end:]
        if file.endswith(".py") and not _parses(mutated):
            continue
        occurrence = seen[line, old, new]
        seen[line, old, new] += 1
        source = text.splitlines()[line - 1].strip()
        made.append(Generated(file, line, source, old, new, occurrence, _edit(file, text, begin, end, new)))
    return made


def _replacements(file: str, text: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, what stands there instead)."""
    is_python, found = file.endswith(".py"), tokens(file, text)
    skipped = _annotations(text) if is_python else []
    for at, token in enumerate(found):
        if any(begin <= token.begin < end for begin, end in skipped):
            continue
        for new in _of_token(found, at, text, is_python):
            yield token.begin, token.end, new
    yield from _of_expressions(text) if is_python else _of_cuda(found, text)


def _of_token(found: Sequence[Token], at: int, text: str, is_python: bool) -> Iterator[str]:
    token, before = found[at], found[at - 1] if at else None
    spaced = text[token.begin - 1 : token.begin].isspace() and text[token.end : token.end + 1].isspace()
    binary = before is not None and (before.kind != "operator" or before.text in _VALUE_ENDS)
    if token.kind == "operator" and token.text in CONDITIONS and spaced:
        yield CONDITIONS[token.text]
    elif token.kind == "operator" and token.text in ARITHMETIC and binary and spaced:
        yield (
            {"//": "/"}.get(ARITHMETIC[token.text], ARITHMETIC[token.text]) if not is_python else ARITHMETIC[token.text]
        )
    elif token.kind == "name":
        new = (SIBLINGS if is_python else CUDA_SIBLINGS).get(token.text)
        keyword = at + 1 < len(found) and found[at + 1].text == "=" and not spaced
        if new and not (is_python and keyword) and _known(new, before, text, token.begin):
            yield new
    elif token.kind == "number":
        yield from _of_number(token.text)


def _known(name: str, before: Token | None, text: str, offset: int) -> bool:
    """Whether a name may mean something there: an attribute may, another is used in the same function."""
    if (before is not None and before.text == ".") or name in ("True", "False", "all", "any", "int"):
        return True
    first = max((found.start() for found in _FUNCTION.finditer(text, 0, offset)), default=0)
    following = _FUNCTION.search(text, offset)
    return re.search(rf"\b{name}\b", text[first : following.start() if following else len(text)]) is not None


def _of_number(text: str) -> Iterator[str]:
    digits = text.rstrip("uUlLf") if not text.lower().startswith("0x") else text.rstrip("uUlL")
    suffix = text[len(digits) :]
    if "." in digits or ("e" in digits.lower().removeprefix("0x") and not digits.lower().startswith("0x")):
        yield f"{float(digits) * 2 if float(digits) else 1.0}{suffix}"
        return
    number = int(digits, 0)
    shown = hex if digits.lower().startswith("0x") else str
    yield f"{shown(number + 1)}{suffix}"
    if number > 0:
        yield f"{shown(number - 1)}{suffix}"
    if number > 2:
        yield f"{shown(number * 2)}{suffix}"


def _of_expressions(text: str) -> Iterator[tuple[int, int, str]]:
    """Of Python: operands that change places, a choice that is always one, a mask or a statement that is dropped."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = text.encode()

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        begin, end = (
            starts[node.lineno - 1] + node.col_offset,
            starts[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0),
        )
        return len(raw[:begin].decode()), len(raw[:end].decode())

    def of(node: ast.expr) -> str:
        begin, end = span(node)
        return text[begin:end]

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.BinOp) and isinstance(
            node.op, (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.LShift, ast.RShift)
        ):
            between = text[span(node.left)[1] : span(node.right)[0]]
            if "(" not in between and ")" not in between:
                yield span(node.left)[0], span(node.right)[1], f"{of(node.right)}{between}{of(node.left)}"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "where"
            and len(node.args) == 3
        ):
            yield *span(node.args[0]), f"~({of(node.args[0])})"
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield from ((*span(node.test), value) for value in ("True", "False"))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield *span(node), "None"
        if isinstance(node, ast.Call):
            for given in node.keywords:
                if given.arg == "mask":
                    begin, end = span(given.value)
                    yield begin, end, f"({of(given.value)}) | True"


def _of_cuda(found: Sequence[Token], text: str) -> Iterator[tuple[int, int, str]]:
    """Of CUDA C++: a condition of an ``if`` that always or never holds, a barrier that is dropped."""
    for at, token in enumerate(found):
        if token.text == "if" and found[at + 1].text == "(":
            close = _closing(found, at + 1)
            begin, end = found[at + 1].end, found[close].begin
            yield from ((begin, end, f"({text[begin:end]}) {value}") for value in ("|| true", "&& false"))
        if token.text == "__syncthreads":
            yield token.begin, found[at + 2].end, ""
        if token.text in ("__fsub_rn", "__fdiv_rn") and found[at + 1].text == "(":
            close = _closing(found, at + 1)
            comma = _top_comma(found, at + 2, close)
            if comma is not None:
                left, right = text[found[at + 1].end : found[comma].begin], text[found[comma].end : found[close].begin]
                yield found[at + 1].end, found[close].begin, f"{right.strip()}, {left}"


def _closing(found: Sequence[Token], at: int) -> int:
    depth = 0
    for i in range(at, len(found)):
        depth += {"(": 1, ")": -1}.get(found[i].text, 0)
        if depth == 0:
            return i
    raise ValueError("a parenthesis is not closed")


def _top_comma(found: Sequence[Token], begin: int, end: int) -> int | None:
    depth = 0
    for i in range(begin, end):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(found[i].text, 0)
        if depth == 0 and found[i].text == ",":
            return i
    return None


def _annotations(text: str) -> list[tuple[int, int]]:
    """Where types, imports, messages and heads of functions stand: no result is computed there."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        last = node.end_lineno or node.lineno
        return starts[node.lineno - 1] + node.col_offset, starts[last - 1] + (node.end_col_offset or 0)

    spans = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            spans.append((starts[node.lineno - 1], starts[node.body[0].lineno - 1]))
        elif isinstance(node, ast.AnnAssign):
            spans.append(span(node.annotation))
        elif isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.Raise, ast.JoinedStr)):
            spans.append(span(node))
    return spans


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            ast.parse(text)
        except SyntaxError:
            return False
    return True


def _edit(file: str, text: str, begin: int, end: int, new: str) -> Edit:
    """Whole lines around the place, as many as stand once in the text."""
    first = text.rfind("\n", 0, begin) + 1
    last = text.find("\n", end) + 1 or len(text)
    while text.count(text[first:last]) > 1:
        first = text.rfind("\n", 0, max(first - 1, 0)) + 1
        last = text.find("\n", last) + 1 or len(text)
    return Edit(file, text[first:last], text[first:begin] + new + text[end:last])
