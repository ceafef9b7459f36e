"""Texts that are refused, launches that are refused, counters."""

from __future__ import annotations

import numpy as np
import pytest

from ptx_on_cpu import Module, ParseError, UnknownInstruction

from .programs import HEAD, kernel, launch


@pytest.mark.parametrize(
    "instruction",
    [
        "add.ftz.f32 %r1, %r2, %r3;",
        "add.rz.f32 %r1, %r2, %r3;",
        "add.rn.sat.f32 %r1, %r2, %r3;",
        "div.approx.f32 %r1, %r2, %r3;",
        "div.full.f32 %r1, %r2, %r3;",
        "sqrt.approx.f32 %r1, %r2;",
        "ex2.approx.f32 %r1, %r2;",
        "fma.rn.ftz.f32 %r1, %r2, %r3, %r4;",
        "add.cc.u32 %r1, %r2, %r3;",
        "add.sat.s32 %r1, %r2, %r3;",
        "cvt.rna.bf16.f32 %h1, %r2;",
        "cvt.rn.relu.bf16.f32 %h1, %r2;",
        "cvt.f32.u32 %r1, %r2;",
        "cvt.rn.satfinite.e4m3x2.f32 %h1, %r2, %r3;",
        "setp.lt.b32 %p1, %r2, %r3;",
        "setp.hi.s32 %p1, %r2, %r3;",
        "shl.u32 %r1, %r2, %r3;",
        "min.f16 %h1, %h2, %h3;",
        "ld.u32 %r1, [%d1];",
        "ld.local.u32 %r1, [%d1];",
        "ld.volatile.global.u32 %r1, [%d1];",
        "ld.global.v8.b32 %r1, [%d1];",
        "st.async.shared.u32 [%r1], %r2;",
        "cp.async.ca.shared.global [%r1], [%d1], 16;",
        "atom.global.inc.u32 %r1, [%d1], %r2;",
        "atom.add.u32 %r1, [%d1], %r2;",
        "red.global.exch.b32 [%d1], %r2;",
        "shfl.bfly.b32 %r1, %r2, 1, 31;",
        "shfl.sync.bfly.b64 %d1, %d2, 1, 31, -1;",
        "match.any.sync.b32 %r1, %r2, -1;",
        "activemask.b32 %r1;",
        "bar.arrive 0, 64;",
        "bar.sync 0, 64;",
        "bar.red.popc.u32 %r1, 0, %p1;",
        "mbarrier.init.shared.b64 [%r1], 1;",
        "call foo;",
        "brx.idx %r1, $A;",
        "mov.u32 %r1, %clock;",
        "mov.u32 %r1, %smid;",
        "mov.b32 %r1, %d1;",
        "add.s32 %r1, %d1, %r2;",
        "add.s32 %r1, %r2;",
        "add.s32 %q1, %r2, %r3;",
        "frobnicate %r1;",
        "bra $NOWHERE;",
        ".local .align 4 .b8 depot[4];",
    ],
)
def test_what_is_not_known_is_refused_before_anything_runs(instruction: str) -> None:
    with pytest.raises(UnknownInstruction) as caught:
        Module(kernel(instruction)).get_function("k")
    assert instruction.removesuffix(";").split(" ")[0] in str(caught.value)


def test_texts_that_are_not_ptx_are_refused() -> None:
    for text in ("", "int main() { return 0; }", ".visible .entry k() { ret; }"):
        with pytest.raises((ParseError, UnknownInstruction)):
            Module(text)
    with pytest.raises(ParseError, match=r"cannot read|no end"):
        Module(f"{HEAD}.visible .entry k()\n{{ ret;")
    with pytest.raises(UnknownInstruction, match="func"):
        Module(f"{HEAD}.func helper()\n{{ ret; }}\n.visible .entry k()\n{{ ret; }}")


def test_launches_that_a_gpu_would_refuse() -> None:
    function = Module(kernel("", ".param .u64 out").replace(")\n{", ")\n.reqntid 64\n{")).get_function("k")
    with pytest.raises(ValueError, match="compiled for"):
        function((1,), (32,), [0], [])
    function((1,), (64,), [0], [])
    free = Module(kernel("")).get_function("k")
    with pytest.raises(ValueError, match="at most 1024"):
        free((1,), (2048,), [0], [])
    with pytest.raises(ValueError, match="positive"):
        free((0,), (32,), [0], [])
    with pytest.raises(KeyError, match="there are k"):
        Module(kernel("")).get_function("other")


def test_more_threads_than_run_together() -> None:
    out = np.zeros(1000, dtype=np.uint32)
    body = "mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r3, %r2, 50, %r1; mad.wide.u32 %d1, %r3, 4, %d30; st.global.u32 [%d1], %r3;"
    for seed, together in ((0, 64), (3, 128), (0, 1), (5, 8192)):
        out[:] = 0
        launch(body, out, threads=50, grid=20, seed=seed, together=together)
        assert out.tolist() == list(range(1000))


def counted(body: str, array: np.ndarray, threads: int) -> object:
    text = kernel(f"ld.param.u64 %d30, [out];\nmov.u32 %r1, %tid.x;\n{body}")
    from ptx_on_cpu import Buffer

    function = Module(text).get_function("k")
    return function(
        (1,),
        (threads,),
        [array.ctypes.data],
        [Buffer(array.ctypes.data, array.nbytes, "out")],
        counters=function.counters(),
    )


@pytest.mark.parametrize(
    ("stride", "form", "moved", "ideal"),
    [
        (4, "u32", 4, 4),
        (8, "u32", 8, 4),
        (32, "u32", 32, 4),
        (16, "v4.u32", 16, 16),
        (64, "v4.u32", 32, 16),
        (0, "u32", 1, 1),
    ],
)
def test_sectors_of_a_request(stride: int, form: str, moved: int, ideal: int) -> None:
    array = np.zeros(4096, dtype=np.uint8)
    array = array[-array.ctypes.data % 64 :]
    target = "{%r2, %r3, %r4, %r5}" if "v4" in form else "%r2"
    found = counted(f"mad.wide.u32 %d1, %r1, {stride}, %d30; ld.global.{form} {target}, [%d1];", array, 64)
    ((_, traffic),) = found.sectors.items()
    distinct = 1 if stride == 0 else 2
    assert (traffic.requests, traffic.moved, traffic.ideal) == (2, 2 * moved, distinct * ideal if stride else 2)
    assert "sectors per request" in found.table()


@pytest.mark.parametrize(("words", "passes"), [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8), (32, 32)])
def test_bank_conflicts(words: int, passes: int) -> None:
    body = (
        f".shared .align 4 .b8 s[4096]; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, {4 * words}, %r2; st.shared.u32 [%r3], 1;"
    )
    if words == 0:
        body = body.replace(
            "st.shared.u32 [%r3], 1;",
            "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r3], 1; bar.warp.sync -1; ld.shared.u32 %r4, [%r3];",
        )
    found = counted(body, np.zeros(8, dtype=np.uint8), 32)
    traffic = list(found.passes.values())[-1]
    assert (traffic.requests, traffic.moved, traffic.ideal) == (1, passes, 1)


def test_wide_shared_accesses_are_served_in_parts() -> None:
    body = ".shared .align 16 .b8 s[512]; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 16, %r2; st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1};"
    (traffic,) = counted(body, np.zeros(8, dtype=np.uint8), 32).passes.values()
    assert (traffic.requests, traffic.moved, traffic.ideal) == (1, 4, 4)


def test_instructions_and_divergence() -> None:
    body = (
        "setp.lt.u32 %p1, %r1, 8; @%p1 bra $A; add.s32 %r2, %r1, 1; add.s32 %r2, %r1, 2; $A: mul.lo.u32 %r3, %r1, %r1;"
    )
    found = counted(body, np.zeros(8, dtype=np.uint8), 64)
    assert found.by_opcode()["add.s32"] == 4
    assert found.by_opcode()["mul.lo.u32"] == 2
    threads = dict(zip([each.opcode for each in found.instructions], found.threads.tolist(), strict=True))
    assert (threads["add.s32"], threads["mul.lo.u32"]) == (56, 64)
    assert 28 < found.active < 32
    assert "| add.s32 | 4 |" in found.table()
