"""`lionbits memory` against figures worked out by hand."""

from pathlib import Path

import pytest
import torch

import lionbits
from lionbits_cli import counting, main, members, memory
from lionbits_cli.console import count

# 7e9 parameters in bfloat16 with bfloat16 gradients: 14 GB + 14 GB, and the state:
STATE_GB = {
    "AdamW 32-bit": 56.0,  # 8 bytes
    "AdamW 8-bit": 14.21875,  # 2 + 2 * 4/256
    "Lion32bit": 28.0,
    "Lion8bit": 7.109375,  # 1 + 4/256
    "Lion4bit": 3.71875,  # 1/2 + 4/128
    "Lion 2-bit (research)": 2.1875,  # 1/4 + 4/64
    "Lion8bit, 32-bit master": 21.109375,  # + 2
    "Lion8bit, 24-bit master": 14.109375,  # + 1
    "Lion4bit, 24-bit master": 10.71875,
    "PagedLion8bit": 7.109375,
}


def test_seven_billion_bfloat16_parameters() -> None:
    found = {row.name: row for row in memory.rows("bf16", "bf16")}
    for name, expected in STATE_GB.items():
        assert 7e9 * found[name].state / 1e9 == expected, name
        on_device = 28.0 if name.startswith("Paged") else 28.0 + expected
        assert 7e9 * found[name].device / 1e9 == on_device, name


def test_the_table_names_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--params", "7e9", "--dtype", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert all(row.name in shown for row in memory.rows("bf16", "bf16"))
    assert "84.00" in shown  # AdamW's total
    assert "35.11" in shown  # Lion8bit's


def test_masters_are_for_bfloat16_and_gradients_may_differ() -> None:
    assert not any("master" in row.name for row in memory.rows("fp32", "fp32"))
    row = memory.rows("fp32", "bf16")[0]
    assert (row.parameter, row.gradient) == (4, 2)


@pytest.mark.parametrize(("text", "number"), [("7e9", 7 * 10**9), ("7B", 7 * 10**9), ("350M", 350_000_000), ("12", 12)])
def test_counts(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["", "B", "seven", "-1", "nan", "inf"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - argparse shows its own message
        count(text)
    with pytest.raises(SystemExit):
        main(["memory", f"--params={text}"])


#: (shapes, bytes of state by name): a LoRA pair of rank 8, a depthwise convolution, a bias, worked out by hand.
REAL = {
    "3072x8,8x3072": {
        "AdamW 32-bit": 8 * 49152,
        "AdamW8bit of bitsandbytes": 2 * (49152 + 4 * 192 + 1024),
        "Lion8bit of bitsandbytes": 49152 + 4 * 192 + 1024,
        "Lion32bit": 4 * 49152,
        "Lion8bit": 49152 + 4 * (96 + 8 * 12),
        "Lion4bit": 49152 // 2 + 4 * (192 + 8 * 24),
        "Lion8bit, 32-bit master": 49152 + 4 * (96 + 8 * 12) + 2 * 49152,
        "PagedLion8bit": 49152 + 4 * (96 + 8 * 12),
    },
    "1536x1x5x5,1536": {
        "Lion8bit": 38400 + 4 * 150 + 4 * 1536,
        "Lion4bit": 19200 + 4 * 300 + 4 * 1536,
        "Lion8bit of bitsandbytes": 38400 + 4 * 150 + 4 * 1536 + 1024,
    },
    "64x3x7x7": {"Lion8bit": 9408 + 4 * 64, "Lion4bit": 64 * 74 + 4 * 128},
    "4095": {"Lion8bit": 4 * 4095, "Lion8bit of bitsandbytes": 4 * 4095},
}


@pytest.mark.parametrize("shapes", REAL)
def test_bytes_of_shapes(shapes: str) -> None:
    found = members.from_shapes(shapes, torch.bfloat16)
    counted = {each.name: each.state for each in counting.counts(found, 4096)}
    assert {name: counted[name] for name in REAL[shapes]} == REAL[shapes]


@pytest.mark.parametrize("name", ["Lion8bit", "Lion4bit", "Lion32bit"])
def test_bytes_are_those_that_an_optimizer_allocates(name: str) -> None:
    found = members.from_shapes("300x7,64x3x7x7,100x300,5000,4095,31", torch.float32)
    params = [torch.nn.Parameter(torch.ones(member.shape)) for member in found]
    optimizer = getattr(lionbits, name)(params)
    optimizer.init_state()
    held = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    counted = {each.name: each.state for each in counting.counts(found, 4096)}
    assert counted[name] == sum(value.nbytes for value in held)


MODEL = """
import torch

def build():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 8), torch.nn.Linear(64, 100))
    model[2].requires_grad_(False)
    return model.to(torch.bfloat16)

def parameters():
    return [torch.ones(64, 64, requires_grad=True)]

def number():
    return 5

def wrong():
    raise RuntimeError("not today")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name = f"model_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL, encoding="utf-8")
    return name


def test_a_model_of_a_function(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen parameters take memory, and have neither gradient nor state; what keeps 32 bits is named."""
    assert main(["memory", f"{module}:build", "--grad-dtype", "fp32"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "10,908 trained parameters in 4 tensors" in shown
    assert "Parameters are 34.8 kB, gradients 43.6 kB" in shown
    assert f"{10_000 + 4 * 100 + 4 * 908:,}" in shown  # Lion8bit
    assert "keep 32 bits: 908 elements (8.32 %) of tensors with fewer than 4,096" in shown
    assert "8x100" in shown
    assert "1.weight" in shown
    assert "2.weight" not in shown
    assert main(["memory", f"{module}:build", "--min-8bit-size", "1"]) == 0
    assert "1.weight" not in capsys.readouterr().out
    assert main(["memory", f"{module}:parameters"]) == 0
    assert "keep 32 bits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}:number"], "TypeError"),
        (["{}:wrong"], "RuntimeError: not today"),
        (["{}:missing"], "AttributeError"),
        (["no_such_module:build"], "ModuleNotFoundError"),
        (["{}"], "module:function"),
        (["{}:build", "--dtype", "bf16"], "types of its own"),
        (["--shapes", "4096x"], "'4096x'"),
        (["--shapes", "4x-3"], "'4x-3'"),
        (["--shapes", ""], "''"),
        (["--shapes", "99999999999x99999999999"], "shape"),
        (["--shapes", "4x4", "--min-8bit-size", "0"], "--min-8bit-size"),
    ],
    ids=str,
)
def test_what_is_no_model(arguments: list[str], message: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *(argument.format(module) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_one_way_to_say_the_size() -> None:
    with pytest.raises(SystemExit):
        main(["memory", "--params", "7e9", "--shapes", "4096x8"])
