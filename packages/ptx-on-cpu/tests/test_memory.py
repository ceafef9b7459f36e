"""Loads, stores, atomics: widths, vectors, spaces, and every fault of memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ptx_on_cpu import Buffer, MemoryFault, Module

from .programs import HEAD, kernel, launch

TID = "mov.u32 %r1, %tid.x;"


@pytest.mark.parametrize(
    ("type", "wanted"),
    [("u8", 0xF0), ("s8", 0xFFFFFFF0), ("b8", 0xF0), ("u16", 0x80F0), ("s16", 0xFFFF80F0), ("b32", 0x7F0180F0)],
)
def test_narrow_loads_are_extended_and_narrow_stores_truncated(type: str, wanted: int) -> None:
    given, wide, narrow = (
        np.array([0x7F0180F0], dtype=np.uint32),
        np.zeros(1, dtype=np.uint32),
        np.zeros(8, dtype=np.uint8),
    )
    launch(
        f"ld.global.{type} %r2, [%d30]; st.global.u32 [%d31], %r2; st.global.{type} [%d32+4], %r2;",
        given,
        wide,
        narrow,
        threads=1,
    )
    assert int(wide[0]) == wanted
    size = int(type[1:]) // 8
    assert narrow.tolist() == [0] * 4 + [0xF0, 0x80, 0x01, 0x7F][:size] + [0] * (4 - size)


@pytest.mark.parametrize(
    ("form", "letter", "dtype"),
    [("v2.b32", "r", np.uint32), ("v4.b32", "r", np.uint32), ("v2.b64", "d", np.uint64), ("v4.b16", "h", np.uint16)],
)
def test_vectors(form: str, letter: str, dtype: type) -> None:
    count, size = int(form[1]), np.dtype(dtype).itemsize
    given = np.arange(32 * count + 16 // size, dtype=dtype)
    skip = -given.ctypes.data % 16 // size
    given, out = given[skip : skip + 32 * count], np.zeros(32 * count + 16 // size, dtype=dtype)
    out = out[-out.ctypes.data % 16 // size :][: 32 * count]
    names = ", ".join(f"%{letter}{i + 3}" for i in range(count))
    back = ", ".join(f"%{letter}{i + 3}" for i in reversed(range(count)))
    body = f"{TID} mad.wide.u32 %d1, %r1, {size * count}, %d30; mad.wide.u32 %d2, %r1, {size * count}, %d31;"
    launch(
        f"{body} ld.global.nc.L1::evict_last.{form} {{{names}}}, [ %d1 + 0 ]; st.global.cs.{form} [%d2], {{ {back} }};",
        given,
        out,
    )
    assert np.array_equal(out.reshape(-1, count), given.reshape(-1, count)[:, ::-1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.u32 %r2, [%d30+16];", "16 bytes into a0 of 16 bytes"),
        ("ld.global.u32 %r2, [%d30-4];", "-4 bytes into a0"),
        ("ld.global.u32 %r2, [%d30+2];", "not aligned to 4"),
        ("ld.global.v2.u32 {%r2, %r3}, [%d30+12];", "not aligned to 8"),
        ("mov.u64 %d1, 0; st.global.u32 [%d1], 7;", "outside all buffers"),
        ("st.global.u8 [%d30+16], 7;", "outside all buffers"),
        ("red.global.add.u32 [%d30+16], 7;", "outside all buffers"),
        (".shared .align 4 .b8 s[8]; st.shared.u32 [s+8], 7;", "outside the 8 bytes"),
        (".shared .align 4 .b8 s[8]; mov.u32 %r2, s; ld.shared.u32 %r3, [%r2+2];", "not aligned to 4"),
        (".shared .align 4 .b8 s[8]; mov.u32 %r2, s; ld.shared.u32 %r3, [%r2-4];", "outside the 8 bytes"),
    ],
)
def test_accesses_outside_buffers_and_misaligned_ones_are_faults(body: str, message: str) -> None:
    buffer = np.zeros(12, dtype=np.uint32)
    at = (-buffer.ctypes.data % 16) // 4
    buffer = buffer[at : at + 4]
    with pytest.raises(MemoryFault, match="k, PTX line") as caught:
        launch(body, buffer, threads=1)
    assert message in str(caught.value)


def test_a_fault_names_the_line_of_the_source() -> None:
    body = ".loc 1 17 3 // kernels.py:17:3\nld.global.u32 %r2, [%d30+64];"
    buffer = np.zeros(4, dtype=np.uint32)
    text = kernel(f"ld.param.u64 %d30, [a];\n{body}", ".param .u64 a") + '\n.file 1 "/somewhere/kernels.py"\n'
    with pytest.raises(MemoryFault) as caught:
        Module(text).get_function("k")((1,), (1,), [buffer.ctypes.data], [Buffer(buffer.ctypes.data, 16, "grid")])
    assert caught.value.place.source == "kernels.py:17"
    assert text.splitlines()[caught.value.place.line - 1].startswith("ld.global.u32")
    assert "ld.global.u32 %r2, [%d30+64]" in str(caught.value)
    assert "grid" in str(caught.value)


def test_variables_of_the_module() -> None:
    more = ".global .align 4 .u32 N[3] = {5, 0xFFFFFFFF, -2};\n.const .align 4 .f32 HALF = 0f3F000000;\n"
    out = np.zeros(3, dtype=np.uint32)
    launch(
        "ld.global.u32 %r2, [N]; ld.global.u32 %r3, [N+8]; ld.const.f32 %r4, [HALF]; st.global.u32 [%d30], %r2; st.global.u32 [%d30+4], %r3; st.global.u32 [%d30+8], %r4;",
        out,
        threads=1,
        more=more,
    )
    assert out.tolist() == [5, 2**32 - 2, 0x3F000000]


def test_parameters_and_special_registers() -> None:
    text = f"""{HEAD}.visible .entry k(.param .u8 a, .param .f32 b, .param .u64 c)
{{ .reg .b32 %r<20>; .reg .b64 %d<9>; .reg .b16 %h<3>;
 ld.param.u8 %h1, [a]; cvt.u32.u16 %r1, %h1; ld.param.f32 %r2, [b]; ld.param.u64 %d1, [c];
 mov.u32 %r3, %tid.x; mov.u32 %r4, %tid.y; mov.u32 %r5, %tid.z; mov.u32 %r6, %ntid.x; mov.u32 %r7, %ntid.y;
 mov.u32 %r8, %ctaid.x; mov.u32 %r9, %ctaid.y; mov.u32 %r10, %nctaid.x;
 mad.lo.s32 %r11, %r5, %r7, %r4; mad.lo.s32 %r11, %r11, %r6, %r3;
 mad.lo.s32 %r12, %r9, %r10, %r8; mad.lo.s32 %r11, %r12, 12, %r11;
 mad.wide.u32 %d2, %r11, 4, %d1; add.s32 %r13, %r11, %r1; add.f32 %r2, %r2, %r2; st.global.u32 [%d2], %r13; ret; }}"""
    out = np.zeros(72, dtype=np.uint32)
    function = Module(text).get_function("k")
    for seed in range(4):
        out[:] = 0
        function(
            (3, 2), (2, 3, 2), [200, 1.5, out.ctypes.data], [Buffer(out.ctypes.data, out.nbytes, "out")], seed=seed
        )
        assert out.tolist() == [i + 200 for i in range(72)]
    for args, error in (
        ([1, 1.5], "takes 3 arguments"),
        ([300, 1.5, 0], "must fit u8"),
        ([1, "x", 0], "must be a number"),
        ([1, 1.0, 1.5], "an address"),
    ):
        with pytest.raises(TypeError, match=error):
            function((1,), (1,), args, [])


ATOMICS = {
    "add.u32": lambda old, v: (old + v) % 2**32,
    "max.u32": max,
    "min.u32": min,
    "and.b32": lambda old, v: old & v,
    "or.b32": lambda old, v: old | v,
    "xor.b32": lambda old, v: old ^ v,
    "exch.b32": lambda old, v: v,
}


@pytest.mark.parametrize("operation", ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_take_turns(operation: str, space: str) -> None:
    """What threads find, in some order, is what a sequence of the operations gives."""
    function = ATOMICS[operation]
    for seed in range(3):
        target, found = np.array([0x0F0F0F0F, 77], dtype=np.uint32), np.zeros(64, dtype=np.uint32)
        body = f"{TID} mul.lo.u32 %r2, %r1, 0x9E3779B9; and.b32 %r5, %r1, 1; mad.wide.u32 %d1, %r5, 4, %d30; mad.wide.u32 %d2, %r1, 4, %d31;"
        if space == "global":
            body += f"atom.relaxed.gpu.global.{operation} %r3, [%d1], %r2;"
        else:
            body = f""".shared .align 4 .b8 s[8]; {body} setp.gt.u32 %p1, %r1, 1; shl.b32 %r6, %r5, 2; mov.u32 %r7, s; add.s32 %r6, %r6, %r7;
            @%p1 bra $A; ld.global.u32 %r8, [%d1]; st.shared.u32 [%r6], %r8; $A: bar.sync 0;
            atom.shared.{operation} %r3, [%r6], %r2; bar.sync 0; @%p1 bra $B; ld.shared.u32 %r8, [%r6]; st.global.u32 [%d1], %r8; $B:"""
        launch(f"{body} st.global.u32 [%d2], %r3;", target, found, threads=64, seed=seed)
        for word, start in ((0, 0x0F0F0F0F), (1, 77)):
            operands = {i: i * 0x9E3779B9 % 2**32 for i in range(word, 64, 2)}
            found_there = sorted(int(found[i]) for i in operands)
            assert found_there == sorted(_sequence(function, start, operands, found))
            assert int(target[word]) == _sequence(function, start, operands, found, last=True)[-1]


def _sequence(
    function: Callable[[int, int], int], start: int, operands: dict[int, int], found: np.ndarray, last: bool = False
) -> list[int]:
    """Return the values before each operation of a sequence that explains what the threads found; with the last one left."""
    left, value, values = dict(operands), start, []
    while left:
        there = [i for i in left if int(found[i]) == value]
        assert there, "no thread found the value that the last one left"
        now = min(there, key=lambda i: function(value, operands[i]) != value)  # first those that change nothing
        values.append(value)
        value = function(value, left.pop(now))
    return [*values, value] if last else values


def test_reductions_in_memory_and_compare_and_swap() -> None:
    target = np.array([5, 0, 0, 0], dtype=np.uint32)
    body = f"{TID} red.global.gpu.relaxed.add.u64 [ %d30 + 8 ], 3; red.global.gpu.relaxed.max.s32 [%d30], %r1; atom.global.cas.b32 %r4, [%d30+4], 0, 9;"
    skip = target if target.ctypes.data % 8 == 0 else np.array([0, *target], dtype=np.uint32)[1:]
    launch(body, skip, threads=40)
    assert skip.tolist() == [39, 9, 120, 0]
    sums = np.zeros(1, dtype=np.float32)
    launch(f"{TID} cvt.rn.f32.u32 %r2, %r1; red.global.add.f32 [%d30], %r2;", sums, threads=40)
    assert float(sums[0]) == 780.0
