"""The roofline on numbers that are known, and what counts as the fast path of a listing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from lionbits_bench import cli, roofline, sass
from lionbits_bench.roofline import GPUS, Gpu
from lionbits_reference.spec import Format, Plan

A100, H100, H200, RTX4090, L4 = GPUS
PLAIN = Plan(torch.bfloat16, torch.bfloat16, Format.of(8))

LISTING = """
.L_x_0:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   I2F.RP R8, R7 ;
        /*0030*/                   IMAD.HI.U32 R8, R8, R9, R8 ;
.L_x_1:
        /*0040*/                   FMUL R4, R4, R5 ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   FCHK P2, R5, R4 ;
        /*0070*/              @!P2 BRA `(.L_x_2) ;
        /*0080*/                   MOV R10, 0x90 ;
        /*0090*/                   CALL.REL.NOINC `(slowpath) ;
.L_x_2:
        /*00a0*/                   FADD R6, R5, R4 ;
.L_x_3:
        /*00b0*/              @!P3 BRA `(.L_x_4) ;
        /*00c0*/                   LDG.E.128 R12, desc[UR4][R2.64] ;
        /*00d0*/                   FSEL R4, R4, R12, P4 ;
.L_x_4:
        /*00e0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00f0*/               @P5 BRA `(.L_x_0) ;
        /*0100*/                   EXIT ;
"""


def test_what_a_tile_rarely_takes_is_not_on_the_fast_path() -> None:
    """Integer division, the slow path of a float's (but not what stands around it), and elements read again."""
    codes = [text.split()[1 if text.startswith("@") else 0] for text in sass._fast_path(*sass._parsed(LISTING))]
    assert codes == ["LDG.E.128", "BRA", "FMUL", "BRA", "FCHK", "BRA", "FADD", "BRA", "STG.E.128", "BRA"]


def test_a_call_that_nothing_jumps_over_counts() -> None:
    always = LISTING.replace("@!P2 BRA `(.L_x_2) ;", "NOP ;").replace("@P1 BRA `(.L_x_3) ;", "NOP ;")
    assert "CALL.REL.NOINC `(slowpath)" in sass._fast_path(*sass._parsed(always))


def test_instructions_are_counted_by_pipe() -> None:
    """With or without a predicate, and whatever follows the opcode; a product of integers is on two pipes."""
    texts = ["@!P0 LOP3.LUT R1, R2, 0x80, RZ, 0xc0, !PT", "FADD R1, -R2, R3", "@P1 IMAD.SHL.U32 R1, R2, 0x8, RZ",
             "STG.E.128 desc[UR4][R2.64], R4", "MUFU.RCP R1, R2", "@UP0 UMOV UR4, 0x1",
             "VIADDMNMX.U32 R1, R2, R3, R4, PT", "FMUL.SAT R1, R2, +INF "]  # fmt: skip
    assert roofline.counts(texts, 2) == {"issue": 4.0, "ALU": 1.0, "FMA": 1.5, "IMAD": 0.5, "XU": 0.5}


@pytest.mark.parametrize(
    ("gpu", "teraflops"), [(A100, 19.5), (H100, 66.9), (H200, 66.9), (RTX4090, 82.6), (L4, 30.3)], ids=str
)
def test_multiprocessors_and_clocks_make_the_float32_rate_of_the_data_sheet(gpu: Gpu, teraflops: float) -> None:
    flops = 2 * gpu.multiprocessors * gpu.lanes["FMA"] * gpu.boost
    assert flops / 1e12 == pytest.approx(teraflops, rel=0.002)


def test_an_h200_has_time_for_62_instructions_per_element_of_an_8_bit_step() -> None:
    """At 8.03 bytes and 4.3 TB/s; half of them on the ALU pipe are as many."""
    for counted in ({"issue": 62.5, "ALU": 20.0}, {"issue": 40.0, "ALU": 31.24}):
        assert roofline.predict(counted, 8.03125, H200).percent == pytest.approx(100, abs=0.2)
    assert roofline.predict({"issue": 31.25}, 8.03125, H200).percent == pytest.approx(200, abs=0.4)
    assert roofline.predict({"issue": 62.5}, 4.0, H200).percent == pytest.approx(50, abs=0.5)


def test_the_busiest_pipe_decides() -> None:
    """An A100 has one pipe of 64 for floats and integer products, later GPUs two, of which one takes products."""
    counted = {"issue": 60.0, "ALU": 20.0, "FMA": 40.0, "IMAD": 10.0, "XU": 0.1}
    assert roofline.predict(counted, 8.0, A100).pipe == "FMA"
    assert roofline.predict(counted, 8.0, H100).pipe == "issue"
    assert roofline.predict(counted | {"IMAD": 32.0}, 8.0, L4).pipe == "IMAD"
    assert roofline.predict(counted | {"XU": 9.0}, 8.0, L4).pipe == "XU"


def test_a_measured_copy_goes_before_nine_tenths_of_the_data_sheet() -> None:
    assert H200.copy_bandwidth == 4.3e12
    assert H100.copy_bandwidth == pytest.approx(0.9 * 3.35e12)


def test_one_plan_from_source_to_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CUDA C++ step of bfloat16 at 8 bits, compiled for sm_90."""
    pytest.importorskip("cupy", reason="it compiles the kernels that are counted")
    try:
        sass._output("nvdisasm", "--version")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no nvdisasm")
    made = roofline.row("cupy", PLAIN, [H100, H200])
    (counted,) = made.counts.values()
    assert made.bytes == 8.03125
    assert 30 < counted["issue"] < 60
    assert 0.4 * counted["issue"] < counted["ALU"] < counted["ALU"] + counted["FMA"] < counted["issue"]
    assert 0 < counted["IMAD"] < counted["FMA"]
    assert made.predictions[0].percent == pytest.approx(made.predictions[1].percent * 4.3 / (0.9 * 3.35))

    monkeypatch.setattr(roofline, "row", lambda backend, plan, gpus: made)
    monkeypatch.setattr(roofline, "plans", lambda: iter([PLAIN]))
    chart = tmp_path / "chart.png"
    assert cli.main(["roofline", "--backend", "cupy", "--gpu", "H100", "H200", "--chart", str(chart)]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == row.count("|") == 8
    assert row.startswith(f"| cupy | 8 | bfloat16 | 8.03 | 90: {counted['issue']:.1f}, ")
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_what_instructions_hold_back_is_bold() -> None:
    counted = {"issue": 54.0, "ALU": 30.0, "FMA": 20.0, "IMAD": 8.0}
    predictions = [roofline.Prediction(92.3, "ALU"), roofline.Prediction(104.0, "issue")]
    text = roofline.line(roofline.Row("cupy", PLAIN, 8.03, {90: counted}, predictions))
    assert text == "| cupy | 8 | bfloat16 | 8.03 | 90: 54.0, 30.0, 20.0, 8.0 | **92** ALU | 104 issue |"


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(["roofline", "--gpu", "H2000"])
    assert refused.value.code == 2
