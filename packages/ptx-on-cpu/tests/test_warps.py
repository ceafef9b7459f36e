"""What threads do together: shuffles, reductions, votes, matrices, barriers."""

from __future__ import annotations

import numpy as np
import pytest

from ptx_on_cpu import DeadlockFault, RaceFault, UndefinedFault

from .programs import launch

TID = "mov.u32 %r1, %tid.x; mad.wide.u32 %d1, %r1, 4, %d30; mad.wide.u32 %d2, %r1, 4, %d31;"
FULL = 0xFFFFFFFF


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The pseudocode of the manual."""
    b, clamp, mask = b & 31, c & 31, c >> 8 & 31
    upper, lower = (lane & mask) | (clamp & ~mask & 31), lane & mask
    if mode == "up":
        j, inside = lane - b, lane - b >= upper
    elif mode == "down":
        j, inside = lane + b, lane + b <= upper
    elif mode == "bfly":
        j, inside = lane ^ b, lane ^ b <= upper
    else:
        j = lower | (b & ~mask & 31)
        inside = j <= upper
    return (j if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 2])
def test_shuffles(mode: str, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    for by in (0, 1, 3, 7, 16, 31, 33):
        out, inside = np.zeros(64, dtype=np.uint32), np.zeros(64, dtype=np.uint32)
        body = f"{TID} mul.lo.u32 %r2, %r1, 10; shfl.sync.{mode}.b32 %r3|%p1, %r2, {by}, {clamp}, -1; selp.u32 %r4, 1, 0, %p1;"
        launch(f"{body} st.global.u32 [%d1], %r3; st.global.u32 [%d2], %r4;", out, inside, threads=64, seed=by)
        wanted = [shuffled(mode, lane % 32, by, clamp) for lane in range(64)]
        assert out.tolist() == [10 * (lane // 32 * 32 + j) for lane, (j, _) in enumerate(wanted)]
        assert inside.tolist() == [int(each) for _, each in wanted]


def test_a_shuffle_by_a_lane_of_each_thread() -> None:
    out = np.zeros(32, dtype=np.uint32)
    launch(f"{TID} xor.b32 %r2, %r1, 5; shfl.sync.idx.b32 %r3, %r1, %r2, 31, -1; st.global.u32 [%d1], %r3;", out, out)
    assert out.tolist() == [lane ^ 5 for lane in range(32)]


@pytest.mark.parametrize(
    "operation", ["add.s32", "add.u32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32"]
)
def test_reductions_of_the_lanes_of_a_mask(operation: str) -> None:
    """Even and odd lanes reduce apart: they come to the same instruction with different masks."""
    given = np.random.default_rng(1).integers(0, 2**32, 64, dtype=np.uint32)
    out = np.zeros(64, dtype=np.uint32)
    mask = "and.b32 %r4, %r1, 1; shl.b32 %r5, 0x55555555, %r4;"
    launch(
        f"{TID} {mask} ld.global.u32 %r2, [%d1]; redux.sync.{operation} %r3, %r2, %r5; st.global.u32 [%d2], %r3;",
        given,
        out,
        threads=64,
    )
    name, type = operation.split(".")
    functions = {
        "add": sum,
        "min": min,
        "max": max,
        "and": lambda v: int(np.bitwise_and.reduce(v)),
        "or": lambda v: int(np.bitwise_or.reduce(v)),
        "xor": lambda v: int(np.bitwise_xor.reduce(v)),
    }
    for lane in range(64):
        values = [int(v) for v in given[lane // 32 * 32 + lane % 2 : lane // 32 * 32 + 32 : 2]]
        if type == "s32":
            values = [v - 2**32 if v >> 31 else v for v in values]
        assert int(out[lane]) == functions[name](values) % 2**32


def test_votes() -> None:
    for kind, wanted in (("any.pred", [1, 0]), ("all.pred", [0, 0]), ("uni.pred", [0, 1])):
        out = np.zeros(64, dtype=np.uint32)
        launch(
            f"{TID} setp.lt.u32 %p1, %r1, 7; vote.sync.{kind} %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2; st.global.u32 [%d1], %r2;",
            out,
            out,
            threads=64,
        )
        assert out[::32].tolist() == wanted
    out = np.zeros(64, dtype=np.uint32)
    launch(
        f"{TID} setp.lt.u32 %p1, %r1, 7; vote.sync.ballot.b32 %r2, %p1, -1; st.global.u32 [%d1], %r2;",
        out,
        out,
        threads=64,
    )
    assert out[::32].tolist() == [0x7F, 0]


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(trans: str) -> None:
    out = np.zeros((32, 2), dtype=np.uint32)
    fill = f"{TID} .shared .align 16 .b8 s[256]; mov.u32 %r2, s; shl.b32 %r3, %r1, 3; add.s32 %r3, %r3, %r2; shl.b32 %r4, %r1, 2;"
    halves = "".join(
        f"add.s32 %r5, %r4, {i}; cvt.u16.u32 %h1, %r5; st.shared.b16 [%r3+{2 * i}], %h1;" for i in range(4)
    )
    load = f"shl.b32 %r6, %r1, 4; and.b32 %r6, %r6, 255; add.s32 %r6, %r6, %r2; ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r7, %r8}}, [%r6];"
    launch(
        f"{fill} {halves} bar.warp.sync -1; {load} mad.wide.u32 %d3, %r1, 8, %d30; st.global.v2.b32 [%d3], {{%r7, %r8}};",
        out,
        out,
    )
    matrices = np.arange(128).reshape(2, 8, 8)
    for lane in range(32):
        for i in range(2):
            matrix = matrices[i].T if trans else matrices[i]
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert int(out[lane, i]) == int(low) | int(high) << 16


REVERSE = f"{TID} .shared .align 4 .b8 s[512]; mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3; st.shared.u32 [%r4], %r1; BAR sub.s32 %r5, 508, %r3; add.s32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6]; st.global.u32 [%d1], %r7;"


def test_a_barrier_orders_shared_memory_and_its_absence_is_a_race() -> None:
    out = np.zeros(128, dtype=np.uint32)
    for seed in range(4):
        launch(REVERSE.replace("BAR", "bar.sync 0;"), out, out, threads=128, seed=seed)
        assert out.tolist() == list(range(127, -1, -1))
    for instead in ("", "bar.warp.sync -1;"):
        for seed in range(4):
            with pytest.raises((RaceFault, UndefinedFault)) as caught:
                launch(REVERSE.replace("BAR", instead), out, out, threads=128, seed=seed)
            assert seed or caught.type is RaceFault


def test_a_barrier_of_a_warp_is_enough_within_it() -> None:
    out = np.zeros(32, dtype=np.uint32)
    body = REVERSE.replace("508", "124")
    launch(body.replace("BAR", "bar.warp.sync 0xffffffff;"), out, out)
    assert out.tolist() == list(range(31, -1, -1))
    with pytest.raises(RaceFault, match="shared address"):
        launch(body.replace("BAR", ""), out, out)


@pytest.mark.parametrize("threads", [32, 128])
def test_equal_stores_to_a_shared_address_may_meet(threads: int) -> None:
    """Triton's programs do so: a thread stores a sum that others store, too."""
    out = np.zeros(threads, dtype=np.uint32)
    body = f"{TID} .shared .align 4 .b8 s[4]; mov.u32 %r2, s; st.shared.u32 [%r2], VALUE; bar.sync 0; ld.shared.u32 %r7, [%r2]; st.global.u32 [%d1], %r7;"
    launch(body.replace("VALUE", "7"), out, out, threads=threads)
    assert out.tolist() == [7] * threads
    with pytest.raises(RaceFault, match="shared address"):
        launch(body.replace("VALUE", "%r1"), out, out, threads=threads)
    with pytest.raises(RaceFault):
        launch(body.replace("VALUE", "7").replace("bar.sync 0;", ""), out, out, threads=threads)


def test_global_addresses_race_unless_atomic_or_ordered() -> None:
    one = np.zeros(4, dtype=np.uint32)
    for body in (
        "st.global.u32 [%d30], %r1;",
        "ld.global.u32 %r2, [%d30]; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d30], 1;",
        "red.global.add.u32 [%d30], 1; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d30], 1;",
    ):
        with pytest.raises(RaceFault, match="no barrier between"):
            launch(f"mov.u32 %r1, %tid.x; {body}", one, threads=8)
        launch(f"mov.u32 %r1, %tid.x; {body}", one, threads=1)
        launch(f"mov.u32 %r1, %tid.x; {body}", one, threads=8, races=False)
    with pytest.raises(RaceFault, match=r"block 0\) and thread 32 of the launch \(block 1"):
        launch("st.global.u32 [%d30], 7;", one, threads=1, grid=2)
    launch("red.global.add.u32 [%d30], 1;", one, threads=64, grid=2)
    launch(
        "mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d30], 1; bar.sync 0; ld.global.u32 %r2, [%d30];",
        one,
        threads=64,
    )


def test_loads_may_race_where_that_is_allowed_but_stores_may_not() -> None:
    one = np.zeros(4, dtype=np.uint32)
    load = "mov.u32 %r1, %tid.x; ld.global.u32 %r2, [%d30]; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d30], 1;"
    launch(load, one, threads=8, racing_loads=True)
    with pytest.raises(RaceFault):
        launch("st.global.u32 [%d30], 1;", one, threads=8, racing_loads=True)


def test_a_shuffle_orders_earlier_loads_before_later_stores_only() -> None:
    one = np.zeros(4, dtype=np.uint32)
    store = "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%d30], 1;"
    launch(f"mov.u32 %r1, %tid.x; ld.global.u32 %r2, [%d30]; shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1; {store}", one)
    with pytest.raises(RaceFault):
        launch(f"mov.u32 %r1, %tid.x; {store} shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1; ld.global.u32 %r2, [%d30];", one)


@pytest.mark.parametrize(
    ("body", "threads", "message"),
    [
        ("setp.lt.u32 %p1, %r1, 40; @%p1 bra $A; bar.sync 0; $A: ret;", 64, "24 of 64 threads"),
        (
            "setp.lt.u32 %p1, %r1, 32; @%p1 bra $A; bar.sync 0; bra $B; $A: bar.sync 1; $B: ret;",
            64,
            "different barriers",
        ),
        (
            "setp.lt.u32 %p1, %r1, 7; @%p1 bra $A; shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; bra $B; $A: bar.sync 0; $B: ret;",
            32,
            "never come",
        ),
        (
            "setp.lt.u32 %p1, %r1, 7; @%p1 bra $A; bar.warp.sync -1; bra $B; $A: bar.warp.sync -1; $B: ret;",
            32,
            "never come",
        ),
    ],
)
def test_barriers_that_not_all_reach_are_deadlocks(body: str, threads: int, message: str) -> None:
    for seed in range(3):
        with pytest.raises(DeadlockFault, match=message):
            launch(f"mov.u32 %r1, %tid.x; {body}", np.zeros(1, dtype=np.uint32), threads=threads, seed=seed)


def test_threads_wait_for_each_other_after_they_part() -> None:
    """Half a warp takes a loop of 20 turns before the shuffle, the other half none."""
    out = np.zeros(32, dtype=np.uint32)
    body = f"{TID} mov.u32 %r2, 0; setp.lt.u32 %p1, %r1, 16; @%p1 bra $C; $L: add.s32 %r2, %r2, 1; setp.lt.u32 %p2, %r2, 20; @%p2 bra $L; $C: shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1; st.global.u32 [%d1], %r3;"
    for seed in range(5):
        launch(body, out, out, seed=seed)
        assert out.tolist() == [20] * 16 + [0] * 16
    ended = "setp.ge.u32 %p1, %r1, 8; @%p1 ret; vote.sync.ballot.b32 %r3, %p1, -1; not.b32 %r3, %r3; st.global.u32 [%d1], %r3;"
    for seed in range(5):
        out[:] = 0
        launch(f"{TID} {ended}", out, out, seed=seed)
        assert out.tolist() == [FULL] * 8 + [0] * 24


def test_a_lane_outside_the_mask_is_undefined() -> None:
    with pytest.raises(UndefinedFault, match="reads a lane"):
        launch(
            "mov.u32 %r1, %tid.x; setp.gt.u32 %p1, %r1, 7; @%p1 ret; shfl.sync.down.b32 %r2, %r1, 1, 31, 255;",
            np.zeros(1, dtype=np.uint32),
        )
    with pytest.raises(UndefinedFault, match="not in its own mask"):
        launch("mov.u32 %r1, %tid.x; shfl.sync.bfly.b32 %r2, %r1, 1, 31, 255;", np.zeros(1, dtype=np.uint32))
