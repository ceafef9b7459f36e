"""Undefined registers and shared memory: harmless until a use matters, then a fault."""

from __future__ import annotations

import numpy as np
import pytest

from ptx_on_cpu import UndefinedFault

from .programs import launch

SHARED = ".shared .align 8 .b8 s[64]; mov.u32 %r10, s;"


@pytest.mark.parametrize(
    ("body", "use"),
    [
        ("st.global.u32 [%d30], %r5;", "the value that is stored"),
        ("add.s32 %r6, %r5, 1; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("and.b32 %r6, %r5, 1; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("mov.b64 %d5, {%r5, %r1}; st.global.b64 [%d30], %d5;", "the value that is stored"),
        ("shl.b32 %r6, %r5, 31; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("ld.global.u32 %r6, [%d5];", "the address"),
        ("red.global.add.u32 [%d30], %r5;", "the operand of an atomic"),
        ("setp.eq.u32 %p1, %r5, 0; @%p1 bra $A; $A:", "the predicate"),
        ("@%p1 mov.u32 %r6, 1;", "the predicate"),
        ("selp.u32 %r6, 1, %r5, %p2; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("redux.sync.add.s32 %r6, %r5, -1;", "the operand of a reduction"),
        ("shfl.sync.bfly.b32 %r6, %r5, 1, 31, -1; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("div.s32 %r6, %r1, 0; st.global.u32 [%d30], %r6;", "the value that is stored"),
        (f"{SHARED} ld.shared.u32 %r6, [%r10]; st.global.u32 [%d30], %r6;", "the value that is stored"),
        (
            f"{SHARED} st.shared.u32 [%r10], %r5; ld.shared.u32 %r6, [%r10]; st.global.u32 [%d30], %r6;",
            "the value that is stored",
        ),
        (
            f"{SHARED} st.shared.u8 [%r10], %r1; ld.shared.u16 %r6, [%r10]; st.global.u16 [%d30], %r6;",
            "the value that is stored",
        ),
        ("cvt.rn.bf16x2.f32 %r6, %r1, %r5; st.global.u32 [%d30], %r6;", "the value that is stored"),
        ("setp.eq.u32 %p3, %r1, 9; @%p3 mov.u32 %r5, 1; st.global.u32 [%d30], %r5;", "the value that is stored"),
    ],
)
def test_a_use_that_matters_is_a_fault(body: str, use: str) -> None:
    out = np.zeros(4, dtype=np.uint64)
    for seed in range(2):
        with pytest.raises(UndefinedFault, match=use):
            launch(f"mov.u32 %r1, %tid.x; setp.eq.u32 %p2, %r1, 99; {body}", out, seed=seed, races=False)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("mov.b64 %d5, {%r1, %r5}; mov.b64 {%r6, %r7}, %d5; st.global.u32 [%d30], %r6;", 3),
        ("mov.b64 %d5, {%r1, %r5}; add.rn.f32x2 %d6, %d5, %d5; mov.b64 {%r6, %r7}, %d6; st.global.u32 [%d30], %r6;", 6),
        ("and.b32 %r6, %r5, 0; st.global.u32 [%d30], %r6;", 0),
        ("or.b32 %r6, %r5, 0xFFFFFFFF; st.global.u32 [%d30], %r6;", 0xFFFFFFFF),
        ("shl.b32 %r6, %r5, 16; or.b32 %r6, %r6, %r1; and.b32 %r6, %r6, 65535; st.global.u32 [%d30], %r6;", 3),
        ("prmt.b32 %r6, %r1, %r5, 0x0000; st.global.u32 [%d30], %r6;", 0x03030303),
        ("bfe.u32 %r6, %r1, 0, 8; st.global.u32 [%d30], %r6;", 3),
        ("selp.u32 %r6, %r1, %r5, %p2; st.global.u32 [%d30], %r6;", 3),
        ("@%p2 mov.u32 %r5, 4; st.global.u32 [%d30], %r5;", 4),
        ("div.s32 %r6, %r1, 0; selp.u32 %r6, %r1, %r6, %p2; st.global.u32 [%d30], %r6;", 3),
        (
            f"{SHARED} st.shared.u32 [%r10], %r5; st.shared.u32 [%r10], %r1; ld.shared.u32 %r6, [%r10]; st.global.u32 [%d30], %r6;",
            3,
        ),
        ("add.s32 %r6, %r5, 1; mul.lo.u32 %r7, %r6, %r6; st.global.u32 [%d30], %r1;", 3),
    ],
)
def test_bits_that_do_not_matter_may_be_undefined(body: str, wanted: int) -> None:
    out = np.zeros(1, dtype=np.uint32)
    launch(f"mov.u32 %r1, 3; setp.eq.u32 %p2, %r1, 3; {body}", out, threads=1)
    assert int(out[0]) == wanted


def test_an_undefined_value_of_a_few_threads_is_found() -> None:
    """Of 256 threads one has passed by the only definition."""
    out = np.zeros(256, dtype=np.uint32)
    body = "mov.u32 %r1, %tid.x; mad.wide.u32 %d1, %r1, 4, %d30; setp.eq.u32 %p1, %r1, 200; @%p1 bra $A; mov.u32 %r5, 1; $A: st.global.u32 [%d1], %r5;"
    with pytest.raises(UndefinedFault):
        launch(body, out, threads=256)
    launch(body.replace("setp.eq.u32 %p1, %r1, 200", "setp.eq.u32 %p1, %r1, 300"), out, threads=256)
    assert out.all()
