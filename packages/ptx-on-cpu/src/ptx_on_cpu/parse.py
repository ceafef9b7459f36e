"""PTX text to instructions: only what stands there, not what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from .faults import ParseError, Place, UnknownInstruction
from .operands import Operand, parse_operand, split
from .types import TYPES, Type


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        opcode: as ``ld.global.v4.b32``.
        operands: in the order of the text, the destination first.
        guard: predicate register without which nothing is done, or an empty string.
        negated: True if the guard's opposite counts.
        place: for errors.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: str
    negated: bool
    place: Place


@dataclass(frozen=True)
class Variable:
    """A variable in ``.shared``, ``.global`` or ``.const`` memory, or a parameter.

    Attributes:
        name: of the variable.
        space: ``shared``, ``global``, ``const`` or ``param``.
        type: of an element.
        count: number of elements; 0 for the shared memory whose size a launch chooses.
        align: bytes.
        initial: texts of the first elements.
    """

    name: str
    space: str
    type: Type
    count: int
    align: int
    initial: tuple[str, ...] = ()


@dataclass
class Kernel:
    """An entry of a module.

    Attributes:
        name: of the kernel.
        parameters: in order.
        registers: type of each.
        shared: variables of its own.
        instructions: in the order of the text.
        labels: index of the instruction that follows each.
        threads: of a thread block, as ``.reqntid`` demands; empty if any number will do.
    """

    name: str
    parameters: list[Variable] = field(default_factory=list)
    registers: dict[str, Type] = field(default_factory=dict)
    shared: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: tuple[int, ...] = ()


@dataclass
class Text:
    """What a PTX text declares: ``version`` and ``target``, ``variables`` of the module, ``kernels`` by name."""

    version: str = ""
    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)


_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s*,\s*\d+)*')
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+[^\n;]*")
_SECTION = re.compile(r"\.section\s+\S+\s*\{[^}]*\}")
_STATEMENT = re.compile(
    r"\s*(\.loc[^\n]*|[\w$]+:(?!:)|[{}]|\.(?:version|target|address_size)[^\n]*|[^;{}]*(?:\{[^{};]*\}[^;{}]*)*;)"
)
_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*\(([^)]*)\)\s*([^{]*)\{")
_INSTRUCTION = re.compile(r"(?:@(!?)(%[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(shared|global|const|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(\[\d*\])?(?:\s*=\s*(.*))?$",
    re.DOTALL,
)


def parse(text: str) -> Text:
    """Parse a PTX text.

    Raises:
        ParseError: it is not PTX.
        UnknownInstruction: a directive or a kind of operand that is not known.
    """
    files = {number: PurePath(path).name for number, path in _FILE.findall(text)}
    text = _COMMENT.sub(lambda found: found[0] if found[0][0] == '"' else _blank(found), text)
    text = _SECTION.sub(_blank, _FILE.sub(_blank, text))
    parsed, position = Text(), 0
    while entry := _ENTRY.search(text, position):
        _header(text[position : entry.start()], parsed)
        kernel = Kernel(entry[1], [_variable(each) for each in split(entry[2])])
        kernel.threads = _threads(entry[3])
        position = _body(kernel, text, entry.end(), files)
        parsed.kernels[kernel.name] = kernel
    _header(text[position:], parsed)
    if not parsed.version:
        raise ParseError("the text has no .version: it is not PTX")
    return parsed


def _blank(found: re.Match[str]) -> str:
    """Return the same number of lines, empty."""
    return "\n" * found[0].count("\n") or " "


def _header(text: str, parsed: Text) -> None:
    for line in re.split(r";|(?<=\d)\s*\n|\n\s*(?=\.)", text):
        statement = line.strip()
        name, _, rest = statement.partition(" ")
        if name == ".version":
            parsed.version = rest.strip()
        elif name == ".target":
            parsed.target = rest.strip()
        elif name and name != ".address_size":
            parsed.variables.append(_variable(statement))


def _threads(directives: str) -> tuple[int, ...]:
    """Return the sizes that .reqntid demands; .maxntid and .minnctapersm say nothing about results."""
    unknown = re.sub(r"\.(reqntid|maxntid|minnctapersm|maxnreg)\s+\d+(\s*,\s*\d+)*", "", directives).strip()
    if unknown:
        raise UnknownInstruction(f"directive {unknown!r} of a kernel is not known")
    found = re.search(r"\.reqntid\s+(\d+(?:\s*,\s*\d+)*)", directives)
    return tuple(int(size) for size in found[1].split(",")) if found else ()


def _variable(statement: str) -> Variable:
    found = _VARIABLE.match(" ".join(statement.split()))
    if not found or found[3] not in TYPES:
        raise UnknownInstruction(f"declaration {statement.strip()[:80]!r} is not known")
    space, align, name, variable, count, initial = found.groups()
    type = TYPES[name]
    values = tuple(each.strip() for each in (initial or "").strip("{} ").split(",")) if initial else ()
    elements = int(count[1:-1] or 0) if count else 1
    return Variable(variable, space, type, elements, int(align or type.bytes), values)


def _statements(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield statements of a body, with the positions where they begin and end."""
    position = start
    while found := _STATEMENT.match(text, position):
        yield found[1].strip(), found.start(1), found.end()
        position = found.end()
    raise ParseError(f"cannot read {text[position : position + 80].strip()!r}")


def _body(kernel: Kernel, text: str, start: int, files: dict[str, str]) -> int:
    """Parse statements up to the brace that ends the kernel; return the position behind it."""
    source, depth, line, counted = "", 0, text.count("\n", 0, start) + 1, start
    for statement, begin, end in _statements(text, start):
        line, counted = line + text.count("\n", counted, begin), begin
        if loc := _LOC.match(statement):
            source = f"{files.get(loc[1], loc[1])}:{loc[2]}"
        elif statement == "{":
            depth += 1
        elif statement == "}":
            depth -= 1
            if depth < 0:
                return end
        elif statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.instructions)
        else:
            plain = " ".join(statement.removesuffix(";").split())
            if plain:
                _statement(kernel, plain, Place(kernel.name, line, plain, source))
    raise ParseError(f"{kernel.name} has no end")


def _statement(kernel: Kernel, statement: str, place: Place) -> None:
    if statement.startswith(".reg"):
        _registers(kernel, statement)
    elif statement.startswith(".shared"):
        kernel.shared.append(_variable(statement))
    elif statement.startswith("."):
        if not statement.startswith(".pragma"):
            raise UnknownInstruction(f"{place}: this directive is not known")
    elif found := _INSTRUCTION.match(statement):
        negated, guard, opcode, operands = found.groups()
        parsed = tuple(parse_operand(each, place) for each in split(operands))
        kernel.instructions.append(Instruction(opcode, parsed, guard or "", bool(negated), place))
    else:
        raise ParseError(f"{place}: not an instruction")


def _registers(kernel: Kernel, statement: str) -> None:
    _, type, names = statement.split(None, 2)
    for name in split(names):
        found = re.fullmatch(r"(%?[\w$]+)(?:<(\d+)>)?", name)
        if not found or type[1:] not in TYPES:
            raise UnknownInstruction(f"declaration {statement!r} is not known")
        declared = [f"{found[1]}{i}" for i in range(int(found[2]))] if found[2] else [found[1]]
        if known := [each for each in declared if each in kernel.registers]:
            raise UnknownInstruction(f"register {known[0]} of {kernel.name} is declared twice, as in an inner scope")
        kernel.registers.update(dict.fromkeys(declared, TYPES[type[1:]]))
