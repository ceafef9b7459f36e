"""`lionbits convert`, from the file alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion8bit, Lion32bit, interop
from lionbits.checkpoint.recognise import WRAPPED
from lionbits_cli import main

SHAPES = ((64, 64), (70, 61), (33,), ())
FIXTURE = Path(__file__).parents[2] / "lionbits" / "tests" / "interop" / "bitsandbytes-0.43.3.pt"


def params() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def trained(cls: Callable[..., Any], **settings: Any) -> lionbits.Lion:
    held = params()
    optimizer: lionbits.Lion = cls(held, **settings)
    for param in held:
        param.grad = param.detach().clone()
    optimizer.step()
    return optimizer


def convert(source: object, target: object, *options: object) -> int:
    return main(["convert", str(source), str(target), *map(str, options)])


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def momenta(optimizer: lionbits.Lion) -> list[torch.Tensor]:
    return [optimizer.momentum(param) for group in optimizer.param_groups for param in group["params"]]


def test_a_checkpoint_of_bitsandbytes_becomes_one_of_lionbits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as the function makes for an optimizer over the model's parameters; the rest of the file stays."""
    content = load(FIXTURE)["blocks"]
    torch.save({"epoch": 3, "train": {"optimizer": content["optimizer"], "lr": 1}}, tmp_path / "old.pt")
    assert convert(tmp_path / "old.pt", tmp_path / "new.pt", "--key", "train.optimizer") == 0
    made = load(tmp_path / "new.pt")
    assert (made["epoch"], made["train"]["lr"]) == (3, 1)
    optimizer = Lion8bit([nn.Parameter(torch.zeros(m.shape)) for m in content["momentum"]])
    optimizer.load_state_dict(interop.from_bitsandbytes(content["optimizer"], optimizer))
    expected = momenta(optimizer)
    optimizer.load_state_dict(made["train"]["optimizer"])
    assert all(torch.equal(one, other) for one, other in zip(momenta(optimizer), expected, strict=True))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    shown = capsys.readouterr().out
    for words in ("70 x 61", "8 bits in blocks of 2048", "e3m4 in blocks of 256", "all", "3 parameters with state"):
        assert words in shown


@pytest.mark.parametrize("peer", interop.WRITERS)
def test_there_and_back_at_32_bits_is_exact(tmp_path: Path, peer: str) -> None:
    optimizer = trained(Lion32bit, lr=0.125, betas=(0.5, 0.75), weight_decay=0.25)
    torch.save(optimizer.state_dict(), tmp_path / "here.pt")
    assert convert(tmp_path / "here.pt", tmp_path / "there.pt", "--to", peer) == 0
    assert interop.recognise(load(tmp_path / "there.pt")) == peer
    assert convert(tmp_path / "there.pt", tmp_path / "back.pt") == 0
    again = Lion32bit(params())
    again.load_state_dict(load(tmp_path / "back.pt"))
    assert all(torch.equal(one, other) for one, other in zip(momenta(again), momenta(optimizer), strict=True))
    group = again.param_groups[0]
    assert (group["lr"], group["betas"][1], group["weight_decay"]) == (0.125, 0.75, 0.25)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_bits_are_the_users(tmp_path: Path, bits: int) -> None:
    torch.save(interop.to_bitsandbytes(trained(Lion32bit)), tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "out.pt", "--bits", bits) == 0
    getattr(lionbits, f"Lion{bits}bit")(params()).load_state_dict(load(tmp_path / "out.pt"))


def test_by_default_bits_stay_about_as_many(tmp_path: Path) -> None:
    for source, expected in ((trained(Lion8bit), 8), (trained(Lion32bit), 32)):
        torch.save(interop.to_bitsandbytes(source), tmp_path / f"{expected}.pt")
        assert convert(tmp_path / f"{expected}.pt", tmp_path / f"{expected}-out.pt") == 0
        assert load(tmp_path / f"{expected}-out.pt")["param_groups"][0]["optim_bits"] == expected


def test_eight_bits_here_are_eight_bits_there(tmp_path: Path) -> None:
    """As the function writes it from the optimizer."""
    optimizer = trained(Lion8bit, cautious="mask")
    torch.save(optimizer.state_dict(), tmp_path / "in.pt")
    with pytest.warns(UserWarning, match="cautious='mask'"):
        assert convert(tmp_path / "in.pt", tmp_path / "out.pt", "--to", "bitsandbytes") == 0
    found = interop.compare(load(tmp_path / "out.pt"), optimizer)
    assert {row.before for row in found} == {"8 bits in blocks of 256", "float32"}
    assert max(row.rms for row in found) < 0.02


def test_safetensors_by_the_name_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="what reads such files")
    torch.save(interop.to_bitsandbytes(trained(Lion32bit)), tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "out.safetensors") == 0
    assert convert(tmp_path / "out.safetensors", tmp_path / "back.pt", "--to", "bitsandbytes") == 0
    first, last = load(tmp_path / "in.pt"), load(tmp_path / "back.pt")
    assert all(
        torch.equal(one, first["state"][key][WRAPPED][name])
        for key, state in last["state"].items()
        for name, one in state[WRAPPED].items()
    )


def test_a_large_model_is_shown_by_its_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = [nn.Parameter(torch.ones(5)) for _ in range(50)]
    optimizer = Lion32bit(held)
    for param in held:
        param.grad = torch.ones(5)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "out.pt", "--to", "timm") == 0
    shown = capsys.readouterr().out
    assert "50 parameters with state; 250 of 250 elements equal" in shown
    assert "Shown are the 40" in shown


def test_what_cannot_be_is_reported_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, out = tmp_path / "here.pt", tmp_path / "out.pt"
    torch.save({"model": {}, "optimizer": trained(Lion8bit).state_dict()}, here)
    packed = tmp_path / "packed.pt"
    torch.save(trained(lionbits.Lion4bit).state_dict(), packed)
    adam = tmp_path / "adam.pt"
    held = params()
    optimizer = torch.optim.AdamW(held)
    held[0].grad = torch.ones(64, 64)
    optimizer.step()
    torch.save(optimizer.state_dict(), adam)
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for arguments, words in (
        ((tmp_path / "missing.pt", out), "cannot read"),
        ((tmp_path / "text.pt", out), "cannot read"),
        ((tmp_path / "list.pt", out), "holds a list"),
        ((here, out), "try --key optimizer"),
        ((here, out, "--key", "optim"), "there is no 'optim', only model, optimizer"),
        ((here, out, "--key", "model"), "--key model is no optimizer's state dict"),
        ((here, here, "--key", "optimizer"), "exists already"),
        ((here, out, "--key", "optimizer", "--from", "bitsandbytes"), "lacks 'state1'"),
        ((here, out, "--key", "optimizer", "--to", "timm", "--bits", 8), "--bits 8"),
        ((here, out, "--key", "optimizer", "--to", "bitsandbytes", "--bits", 4), "optim_bits=4"),
        ((packed, out, "--to", "bitsandbytes"), "codes of 4 bits, packed"),
        ((adam, out), "--from"),
        ((here, tmp_path / "nowhere" / "out.pt", "--key", "optimizer"), "cannot write"),
    ):
        assert convert(*arguments) == 2
        assert words in capsys.readouterr().err
        assert not out.exists()
    assert not list(tmp_path.glob("*.tmp"))
