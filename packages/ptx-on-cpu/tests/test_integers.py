"""Integer and bit instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from ptx_on_cpu import UnknownInstruction

from .programs import compute

_EDGES = [0, 1, 2, 3, 5, 7, 31, 0x55]


def values(width: int) -> list[int]:
    top = 1 << (width - 1)
    return [*_EDGES, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 2 * top - 7, 0x9E3779B97F4A7C15 % (2 * top)]


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": min,
    "max": max,
    "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * b,
}


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", [*BINARY, "mul.lo", "mul.hi", "mul.wide", "mad.lo", "mad.hi", "mad.wide"])
def test_arithmetic(name: str, type: str) -> None:
    width = int(type[1:])
    if "wide" in name and width == 64:
        with pytest.raises(UnknownInstruction):
            compute(
                f"{name}.{type}", [64] * (2 if name == "mul.wide" else 3), [[1]] * (2 if name == "mul.wide" else 3), 64
            )
        return
    pairs = [(a, b) for a, b in product(values(width), values(width)) if b or name not in ("div", "rem")]
    read = (lambda v: signed(v, width)) if type[0] == "s" else int
    columns = [list(column) for column in zip(*pairs, strict=True)]
    exact = [(read(a), read(b)) for a, b in pairs]
    if name in BINARY:
        assert compute(f"{name}.{type}", [width] * 2, columns, width) == [
            BINARY[name](a, b) % 2**width for a, b in exact
        ]
        return
    result = width * 2 if "wide" in name else width
    products = [(a * b >> width if "hi" in name else a * b) % 2**result for a, b in exact]
    if name.startswith("mul"):
        assert compute(f"{name}.{type}", [width] * 2, columns, result) == products
    else:
        third = [(3 * a + 2**result - 9) % 2**result for a, _ in pairs]
        wanted = [(p + c) % 2**result for p, c in zip(products, third, strict=True)]
        assert compute(f"{name}.{type}", [width, width, result], [*columns, third], result) == wanted


@pytest.mark.parametrize("width", [16, 32, 64])
def test_one_operand(width: int) -> None:
    given = values(width)
    assert compute(f"abs.s{width}", [width], [given], width) == [abs(signed(v, width)) % 2**width for v in given]
    assert compute(f"neg.s{width}", [width], [given], width) == [-v % 2**width for v in given]
    assert compute(f"not.b{width}", [width], [given], width) == [~v % 2**width for v in given]
    assert compute(f"cnot.b{width}", [width], [given], width) == [int(v == 0) for v in given]
    if width > 16:
        assert compute(f"popc.b{width}", [width], [given], 32) == [v.bit_count() for v in given]
        assert compute(f"clz.b{width}", [width], [given], 32) == [width - v.bit_length() for v in given]
        assert compute(f"brev.b{width}", [width], [given], width) == [int(f"{v:0{width}b}"[::-1], 2) for v in given]


@pytest.mark.parametrize("type", ["u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64"])
def test_comparisons(type: str) -> None:
    width = int(type[1:])
    pairs = list(product(values(width), values(width)))
    columns = [list(column) for column in zip(*pairs, strict=True)]
    read = (lambda v: signed(v, width)) if type[0] == "s" else int
    operators = {"eq": int.__eq__, "ne": int.__ne__}
    if type[0] != "b":
        operators |= {"lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__}
    if type[0] == "u":
        operators |= {"lo": int.__lt__, "ls": int.__le__, "hi": int.__gt__, "hs": int.__ge__}
    for name, function in operators.items():
        wanted = [int(function(read(a), read(b))) for a, b in pairs]
        assert compute(f"setp.{name}.{type}", [width] * 2, columns, 1) == wanted


@pytest.mark.parametrize(("name", "function"), [("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)])
def test_logic(name: str, function: Callable[[int, int], int]) -> None:
    for width in (16, 32, 64):
        pairs = list(product(values(width), values(width)))
        columns = [list(column) for column in zip(*pairs, strict=True)]
        assert compute(f"{name}.b{width}", [width] * 2, columns, width) == [function(a, b) for a, b in pairs]
    assert compute(f"{name}.pred", [1, 1], [[0, 0, 1, 1], [0, 1, 0, 1]], 1) == [
        function(a, b) for a, b in product((0, 1), (0, 1))
    ]
    rows = list(product((1, 5, 9), (5,), (0, 1)))
    columns = [list(column) for column in zip(*rows, strict=True)]
    assert compute(f"setp.lt.{name}.s32", [32, 32, 1], columns, 1) == [function(int(a < b), c) for a, b, c in rows]


def test_lop3_and_selection() -> None:
    triples = list(product(values(32)[:12:3], values(32)[2::4], values(32)[::5]))
    columns = [list(column) for column in zip(*triples, strict=True)]
    for table in (0xC0, 0x3C, 0xE8, 0x01, 0x96):
        wanted = []
        for a, b, c in triples:
            bits = ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1) for i in range(32))
            wanted.append(sum((table >> case & 1) << i for i, case in enumerate(bits)))
        assert compute("lop3.b32", [32] * 3, columns, 32, f", {table}") == wanted
    for type, width in (("b16", 16), ("u32", 32), ("s32", 32), ("f32", 32), ("b64", 64)):
        assert compute(f"selp.{type}", [width, width, 1], [[3, 4], [5, 6], [1, 0]], width) == [3, 6]


AMOUNTS = [0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 255, 2**31, 2**32 - 1]


@pytest.mark.parametrize("width", [16, 32, 64])
def test_shifts_by_the_width_or_more_leave_nothing(width: int) -> None:
    pairs = list(product(values(width), AMOUNTS))
    columns = [list(column) for column in zip(*pairs, strict=True)]
    assert compute(f"shl.b{width}", [width, 32], columns, width) == [(a << min(n, 99)) % 2**width for a, n in pairs]
    for kind in "bu":
        assert compute(f"shr.{kind}{width}", [width, 32], columns, width) == [a >> min(n, 99) for a, n in pairs]
    wanted = [(signed(a, width) >> min(n, 99)) % 2**width for a, n in pairs]
    assert compute(f"shr.s{width}", [width, 32], columns, width) == wanted


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str) -> None:
    rows = list(product(values(32)[::3], values(32)[1::3], AMOUNTS))
    columns = [list(column) for column in zip(*rows, strict=True)]
    by = [n % 32 if mode == "wrap" else min(n, 32) for *_, n in rows]
    both = [low | high << 32 for low, high, _ in rows]
    assert compute(f"shf.l.{mode}.b32", [32] * 3, columns, 32) == [
        (v << n >> 32) % 2**32 for v, n in zip(both, by, strict=True)
    ]
    assert compute(f"shf.r.{mode}.b32", [32] * 3, columns, 32) == [
        (v >> n) % 2**32 for v, n in zip(both, by, strict=True)
    ]


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
def test_fields(type: str) -> None:
    width = int(type[1:])
    rows = list(
        product(values(width), [0, 1, 5, 28, 31, 32, 60, 63, 64, 200, 256 + 3], [0, 1, 4, 31, 32, 64, 255, 256 + 4])
    )
    columns = [list(column) for column in zip(*rows, strict=True)]
    wanted = []
    for a, start, length in rows:  # the loops of the manual
        position, size, top = start & 0xFF, length & 0xFF, width - 1
        fill = 0 if type[0] == "u" or size == 0 else a >> min(position + size - 1, top) & 1
        bits = [a >> (position + i) & 1 if i < size and position + i <= top else fill for i in range(width)]
        wanted.append(sum(bit << i for i, bit in enumerate(bits)))
    assert compute(f"bfe.{type}", [width, 32, 32], columns, width) == wanted
    if type[0] == "u":
        base, inserted = [v * 7 % 2**width for v in columns[0]], []
        for (a, start, length), b in zip(rows, base, strict=True):
            bits = [b >> i & 1 for i in range(width)]
            for i in range(min(length & 0xFF, max(width - (start & 0xFF), 0))):
                bits[(start & 0xFF) + i] = a >> i & 1
            inserted.append(sum(bit << i for i, bit in enumerate(bits)))
        assert compute(f"bfi.b{width}", [width, width, 32, 32], [columns[0], base, *columns[1:]], width) == inserted


def test_permutation() -> None:
    bytes_ = [0x11, 0x82, 0x33, 0xF4, 0x05, 0x96, 0x77, 0x88]
    a, b = (sum(byte << 8 * i for i, byte in enumerate(part)) for part in (bytes_[:4], bytes_[4:]))
    selectors = [0x3340, 0x5410, 0x7632, 0x9ABC, 0xFEDC, 0x0123, 0xFFFFFFFF]
    wanted = []
    for selector in selectors:
        picks = [selector >> 4 * i & 15 for i in range(4)]
        chosen = [(255 if bytes_[p & 7] >> 7 else 0) if p & 8 else bytes_[p] for p in picks]
        wanted.append(sum(byte << 8 * i for i, byte in enumerate(chosen)))
    count = len(selectors)
    assert compute("prmt.b32", [32] * 3, [[a] * count, [b] * count, selectors], 32) == wanted
    tables = {  # of the manual, for selectors 0 to 3, the highest byte first
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    for mode, picks in tables.items():
        wanted = [sum(bytes_[int(p)] << 8 * i for i, p in enumerate(reversed(row))) for row in picks]
        assert compute(f"prmt.b32.{mode}", [32] * 3, [[a] * 4, [b] * 4, [0, 1, 2, 3]], 32) == wanted
