"""Whose parameter is whose: by position, by name, over groups that differ; and whose state dict it is at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion, Lion8bit, Lion32bit, PagedLion8bit, interop

from ..family import assert_same, train, weights


class Net(nn.Module):
    """An embedding, two matrices and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.first = nn.Linear(64, 80)
        self.last = nn.Linear(80, 64, bias=False)


def plain(momenta: list[Tensor], *sizes: int, **first: Any) -> dict[str, Any]:
    """A state dict in the form of lion-pytorch, its groups of these sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups: list[dict[str, Any]] = [
        {"lr": 0.5, "betas": (0.9, 0.99), "weight_decay": 0.25, "params": list(range(start, start + size))}
        for start, size in zip(starts, sizes, strict=True)
    ]
    groups[0].update(first)
    return {"state": {key: {"exp_avg": m} for key, m in enumerate(momenta)}, "param_groups": groups}


def momenta(net: nn.Module) -> list[Tensor]:
    return [torch.full(param.shape, float(i + 1)) for i, param in enumerate(net.parameters())]


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


def test_by_name_groups_may_differ() -> None:
    """One group there, an override for embeddings here: the way to keep bitsandbytes' 32-bit embeddings."""
    net = Net()
    ours = Lion8bit(net.named_parameters(), overrides={"embed*": {"optim_bits": 32}})
    assert [len(group["params"]) for group in ours.param_groups] == [1, 3]
    given = plain(momenta(net), 4)
    with pytest.raises(ValueError, match=r"pass names="):
        interop.from_lion_pytorch(given, ours)
    for saved, known in ((given, names(net)), (plain(momenta(net), 4, param_names=names(net)), None)):
        ours.load_state_dict(interop.from_lion_pytorch(saved, ours, names=known))
        for param, momentum in zip(net.parameters(), momenta(net), strict=True):
            assert torch.equal(ours.momentum(param), momentum)
        assert [group["lr"] for group in ours.param_groups] == [0.5, 0.5]
        assert [group["optim_bits"] for group in ours.param_groups] == [32, 8]
        rows = interop.compare(saved, ours, names=known)
        assert {row.name: row.after for row in rows} == {
            "embed.weight": "float32",
            "first.weight": "e3m4 in blocks of 256",
            "first.bias": "float32",
            "last.weight": "e3m4 in blocks of 256",
        }
        assert all(row.exact == row.elements for row in rows)


def test_names_that_do_not_fit_are_refused() -> None:
    net = Net()
    named, nameless = Lion8bit(net.named_parameters()), Lion8bit(net.parameters())
    given = plain(momenta(net), 4)
    for optimizer, known, words in (
        (nameless, names(net), r"Build the optimizer with model.named_parameters\(\)"),
        (named, names(net)[:3], "3 names, 3 of them different; the state dict lists 4"),
        (named, ["a", "a", "b", "c"], "4 names, 3 of them different"),
        (named, [*names(net)[:3], "head"], r"'optimizer': \['last.weight'\], 'state dict': \['head'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            interop.from_lion_pytorch(given, optimizer, names=known)


def test_settings_of_groups_that_are_joined_must_agree() -> None:
    net = Net()
    ours = Lion8bit(net.named_parameters())
    ours.load_state_dict(interop.from_lion_pytorch(plain(momenta(net), 1, 3), ours, names=names(net)))
    assert len(ours.param_groups) == 1
    with pytest.raises(ValueError, match=r"2 groups of the state dict, whose settings differ.*0\.125"):
        interop.from_lion_pytorch(plain(momenta(net), 1, 3, lr=0.125), ours, names=names(net))


def test_names_in_another_order_are_reported_by_shapes_not_by_settings() -> None:
    """Decay for matrices alone is how groups mostly differ; who then passes the model's order hears of the order."""
    net = Net()
    ours = Lion8bit(
        [
            {"params": [(name, p) for name, p in net.named_parameters() if p.ndim >= 2]},
            {"params": [(name, p) for name, p in net.named_parameters() if p.ndim < 2]},
        ]
    )
    held = [torch.ones(param.shape) for group in ours.param_groups for param in group["params"]]
    given = plain(held, 3, 1, weight_decay=0.5)
    right = [name for group in ours.param_groups for name in group["param_names"]]
    with pytest.raises(ValueError, match=r"parameters are in another order. names= go in the order of its groups"):
        interop.from_lion_pytorch(given, ours, names=names(net))
    ours.load_state_dict(interop.from_lion_pytorch(given, ours, names=right))
    assert [group["weight_decay"] for group in ours.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("reader", [interop.from_qlion, interop.from_lion_pytorch, interop.from_timm])
def test_the_wrong_function_names_the_right_one(reader: Callable[..., dict[str, Any]]) -> None:
    params = weights()
    ours = Lion8bit(params)
    train(ours, params, [1])
    theirs = interop.to_bitsandbytes(ours)
    with pytest.raises(ValueError, match=r"form of bitsandbytes: read it by lionbits.interop.from_bitsandbytes"):
        reader(theirs, ours)
    with pytest.raises(ValueError, match=r"form of lionbits: load it as it is"):
        interop.from_bitsandbytes(ours.state_dict(), ours)


def test_a_whole_checkpoint_is_reported_where_the_optimizer_is() -> None:
    params = weights()
    ours = Lion8bit(params)
    for load in (ours.load_state_dict, lambda given: interop.from_bitsandbytes(given, ours)):
        with pytest.raises(ValueError, match=r"lacks 'state'.*pass state_dict\['optimizer'\]"):
            load({"model": {}, "optimizer": ours.state_dict()})
        with pytest.raises(ValueError, match=r"lacks 'state'.*pass what an optimizer returned"):
            load({"model": {}})


def test_parameters_without_state_stay_without() -> None:
    """Frozen there, or without a gradient so far."""
    net = Net()
    given = plain(momenta(net), 4)
    del given["state"][1]
    given["state"][3] = {}
    ours = Lion8bit(net.parameters())
    ours.load_state_dict(interop.from_lion_pytorch(given, ours))
    assert len(ours.state) == 2
    assert not ours.momentum(net.first.weight).any()
    assert [row.name for row in interop.compare(given, ours)] == ["0", "2"]


def test_the_optimizers_own_settings_stay() -> None:
    """Format, seed, rounding, clipping: what the peer does not know."""
    params = weights(torch.bfloat16)
    own: dict[str, Any] = {
        "optim_bits": 4,
        "state_format": "e2m1",
        "block_size": 64,
        "seed": 7,
        "rounding": "stochastic",
    }
    own |= {"param_rounding": "compensated", "master_bits": 24, "percentile_clipping": 70, "grad_clip": 2.0}
    ours = Lion(params, **own)
    given = plain([torch.randn(param.shape) for param in params], 4, initial_lr=0.75, betas=[0.95, 0.98])
    made = interop.from_lion_pytorch(given, ours)
    ours.load_state_dict(made)
    group = ours.param_groups[0]
    assert {key: group[key] for key in own} == own
    assert (group["initial_lr"], group["betas"], group["weight_decay"]) == (0.75, (0.95, 0.98), 0.25)
    assert made["param_groups"][0]["lionbits_version"] == 3
    assert {state["param_residual"].dtype for state in ours.state.values()} == {torch.int8}
    train(ours, params, [1])  # its first norm fills the history of percentile clipping
    assert all((state["grad_norms"] > 0).all() for state in ours.state.values())


def test_paged_and_resident_load_and_write_the_same() -> None:
    params = weights()
    given = plain([torch.randn(param.shape) for param in params], 4)
    resident, paged = Lion8bit(params), PagedLion8bit(params)
    for optimizer in (resident, paged):
        optimizer.load_state_dict(interop.from_lion_pytorch(given, optimizer))
        train(optimizer, params, [1])
        optimizer.load_state_dict(interop.from_lion_pytorch(given, optimizer))
    assert_same(interop.to_bitsandbytes(paged), interop.to_bitsandbytes(resident))


def test_momentum_that_is_not_finite_is_refused() -> None:
    """Lion would always skip such an element."""
    params = weights()
    for bad in (torch.nan, torch.inf):
        given = plain([torch.zeros(param.shape) for param in params], 4)
        given["state"][1]["exp_avg"][3, 4] = bad
        with pytest.raises(ValueError, match=r"parameter 1: a momentum of shape .* is not finite in 1 of 4,270"):
            interop.from_lion_pytorch(given, Lion32bit(params))
    given["state"][1]["exp_avg"] = torch.zeros(70, 61, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        interop.from_lion_pytorch(given, Lion32bit(params))


def test_own_state_dicts_are_recognised_and_not_compared() -> None:
    params = weights()
    for name in ("Lion32bit", "Lion8bit", "Lion4bit", "QLion"):
        ours = getattr(lionbits, name)(params)
        train(ours, params, [0])
        assert interop.recognise(ours.state_dict()) == "lionbits"
        with pytest.raises(ValueError, match=r"recognise.. says 'lionbits'"):
            interop.compare(ours.state_dict(), ours)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad])
def test_what_is_no_lion_is_not_recognised(cls: type[torch.optim.Optimizer]) -> None:
    params = weights()
    other = cls(params)
    train(other, params, [0])
    assert interop.recognise(other.state_dict()) is None
    assert interop.recognise(torch.optim.SGD(params, lr=0.1, momentum=0.9).state_dict()) is None


def test_other_libraries_second_moments_are_no_lions_either() -> None:
    for state in ({"exp_avg::quantized": 0, "exp_avg_sq::quantized": 0}, {"state1": 0, "state2": 0}):
        group = {"lr": 0.1, "params": [0], "master_bytewidth": 0}
        assert interop.recognise({"state": {0: state}, "param_groups": [group]}) is None


def test_the_original_is_never_touched() -> None:
    """Neither by reading nor by training on with what was read."""
    params = weights()
    given = plain([torch.randn(param.shape) for param in params], 4)
    held = copy.deepcopy(given)
    ours = Lion32bit(params)
    made = interop.from_lion_pytorch(given, ours)
    for state in made["state"].values():
        state["exp_avg"].add_(1)
    ours.load_state_dict(interop.from_lion_pytorch(given, ours))
    train(ours, params, [0, 1])
    assert_same(given, held)


def test_channels_last_momentum_is_read_by_its_indices() -> None:
    """Plain peers keep it with the parameter's strides, and mean what the tensor says."""
    momentum = torch.randn(4, 8, 16, 3)
    params = [nn.Parameter(torch.zeros(4, 8, 16, 3).contiguous(memory_format=torch.channels_last))]
    ours = Lion32bit(params)
    made = interop.from_lion_pytorch(plain([momentum.contiguous(memory_format=torch.channels_last)], 1), ours)
    assert made["state"][0]["exp_avg"].is_contiguous()
    ours.load_state_dict(made)
    assert torch.equal(ours.momentum(params[0]), momentum)


def test_figures_of_a_comparison() -> None:
    """Worked out by hand: root mean square 2; two of four elements are off, by 1 and 4."""
    ours = Lion32bit([("weight", nn.Parameter(torch.zeros(2, 2))), ("zero", nn.Parameter(torch.zeros(3)))])
    after = plain([torch.tensor([[2.0, -2.0], [3.0, -6.0]]), torch.zeros(3)], 2)
    ours.load_state_dict(interop.from_lion_pytorch(after, ours))
    before = plain([torch.tensor([[2.0, -2.0], [2.0, -2.0]]), torch.zeros(3)], 2)
    weight, zero = interop.compare(before, ours)
    assert (weight.name, weight.shape, weight.elements, weight.exact) == ("weight", (2, 2), 4, 2)
    assert (weight.largest, weight.rms) == (2.0, (17 / 4) ** 0.5 / 2)
    assert (zero.exact, zero.largest, zero.rms) == (3, 0.0, 0.0)
