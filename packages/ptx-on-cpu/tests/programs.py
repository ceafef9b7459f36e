"""Small PTX texts, and how tests run them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx_on_cpu import Buffer, Module

HEAD = ".version 8.5\n.target sm_90\n.address_size 64\n"

_REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %d<40>;"

_LETTER = {8: "h", 16: "h", 32: "r", 64: "d"}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def kernel(body: str, parameters: str = ".param .u64 out", more: str = "") -> str:
    """A text with one kernel ``k`` with registers of each kind."""
    return f"{HEAD}{more}.visible .entry k({parameters})\n{{\n{_REGISTERS}\n{body}\nret;\n}}\n"


def launch(body: str, *arrays: np.ndarray, threads: int = 32, grid: int = 1, more: str = "", **options: Any) -> Any:
    """Run a kernel whose parameters ``a0``, ``a1``... are the addresses of arrays; they are in ``%d30`` and on."""
    parameters = ", ".join(f".param .u64 a{i}" for i in range(len(arrays)))
    loads = "\n".join(f"ld.param.u64 %d{30 + i}, [a{i}];" for i in range(len(arrays)))
    buffers = [Buffer(array.ctypes.data, array.nbytes, f"a{i}") for i, array in enumerate(arrays)]
    function = Module(kernel(f"{loads}\n{body}", parameters, more)).get_function("k")
    return function((grid,), (threads,), [array.ctypes.data for array in arrays], buffers, **options)


def bits(values: Any, width: int) -> np.ndarray:
    """Python integers of any sign, or an array of floats, as unsigned integers of a width."""
    if isinstance(values, np.ndarray):
        return values.view(_UNSIGNED[width])
    return np.array([int(value) % 2**width for value in values], dtype=_UNSIGNED[width])


def compute(opcode: str, widths: list[int], columns: list[Any], result: int, suffix: str = "") -> list[int]:
    """Run an opcode for rows of operands, a row a thread; operands and results are bits, a width of 1 is a predicate.

    Args:
        opcode: with its modifiers.
        widths: of the operands.
        columns: operands, each for all rows.
        result: width.
        suffix: more operands, as text.
    """
    rows = len(columns[0])
    count = -(-rows // 32) * 32
    arrays = [np.resize(bits(column, max(width, 8)), count) for width, column in zip(widths, columns, strict=True)]
    out = np.zeros(count, dtype=_UNSIGNED[max(result, 8)])
    lines = ["mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r3, %r2, 32, %r1;"]
    names = []
    for i, width in enumerate(widths):
        size = max(width, 8) // 8
        register = f"%{_LETTER[max(width, 8)]}{i + 4}"
        lines.append(f"mad.wide.u32 %d2, %r3, {size}, %d{30 + i}; ld.global.b{8 * size} {register}, [%d2];")
        if width == 1:
            lines.append(f"setp.ne.b16 %p{i + 1}, {register}, 0;")
            register = f"%p{i + 1}"
        names.append(register)
    target = "%p8" if result == 1 else f"%{_LETTER[result]}3" if result != 32 else "%r20"
    lines.append(f"{opcode} {target}, {', '.join(names)}{suffix};")
    if result == 1:
        lines.append("selp.b16 %h3, 1, 0, %p8;")
        target = "%h3"
    size = max(result, 8) // 8
    lines.append(f"mad.wide.u32 %d2, %r3, {size}, %d{30 + len(widths)}; st.global.b{8 * size} [%d2], {target};")
    launch("\n".join(lines), *arrays, out, grid=count // 32)
    return [int(value) for value in out[:rows]]
