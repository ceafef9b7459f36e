"""`lionbits memory` against figures worked out by hand."""

import pytest

from lionbits_cli import main, memory
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
