"""Checkpoints: what they say, what is refused on loading, and that paging and backends leave no trace in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion, Lion4bit, Lion8bit, Lion32bit, PagedLion8bit

from .family import assert_same, snapshot, train, weights

State = dict[str, Any]


def trained(cls: Callable[..., Lion] = Lion8bit, dtype: torch.dtype = torch.float32, **settings: Any) -> State:
    """A state dict after two steps over family.weights()."""
    params = weights(dtype)
    optimizer = cls(params, percentile_clipping=80, **settings)
    train(optimizer, params, [1, 2])
    return copy.deepcopy(optimizer.state_dict())


def _foreign(optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int = 1) -> State:
    params = weights()
    made = optimizer(params)
    train(made, params, range(steps))
    return made.state_dict()


def _edit(*path: Any, to: Any) -> Callable[[State], State]:
    """Set the value at a path of the state dict, or delete it where ``to`` is ..."""

    def edit(given: State) -> State:
        here: Any = given
        for key in path[:-1]:
            here = here[key]
        if to is ...:
            del here[path[-1]]
        else:
            here[path[-1]] = to
        return given

    return edit


FIRST = ("state", 0)
GROUP = ("param_groups", 0)

#: (what is wrong with Lion8bit's dict, exception, words of the message)
BAD: dict[str, tuple[Callable[[State], Any], type[Exception], tuple[str, ...]]] = {
    "none": (lambda given: None, TypeError, ("state_dict", "None")),
    "a list": (lambda given: [], TypeError, ("state_dict=[]",)),
    "a text": (lambda given: "checkpoint.pt", TypeError, ("state_dict='checkpoint.pt'",)),
    "a file of many things": (
        lambda given: {"epoch": 3, "optimizer": given},
        ValueError,
        ("lacks 'state'", "['epoch', 'optimizer']", "pass state_dict['optimizer']"),
    ),
    "empty": (lambda given: {}, ValueError, ("state_dict", "'state'")),
    "no state": (_edit("state", to=...), ValueError, ("'state'",)),
    "no groups": (_edit("param_groups", to=...), ValueError, ("'param_groups'",)),
    "state is a list": (_edit("state", to=[]), TypeError, ("state", "list")),
    "groups are none": (_edit("param_groups", to=None), TypeError, ("param_groups",)),
    "a group is a number": (_edit(*GROUP, to=5), TypeError, ("param_groups[0]",)),
    "a group without params": (_edit(*GROUP, "params", to=...), ValueError, ("param_groups[0]", "'params'")),
    "too many groups": (lambda given: {**given, "param_groups": given["param_groups"] * 2}, ValueError, ("groups",)),
    "too few parameters": (_edit(*GROUP, "params", to=[0, 1, 2]), ValueError, ("[4]", "[3]")),
    "a parameter twice": (_edit(*GROUP, "params", to=[0, 1, 2, 2]), ValueError, ("twice",)),
    "parameters a number": (_edit(*GROUP, "params", to=4), TypeError, ("param_groups[0]['params']",)),
    "parameters of no kind": (_edit(*GROUP, "params", to=[[0], 1, 2, 3]), TypeError, ("param_groups[0]['params']",)),
    "names too few": (_edit(*GROUP, "param_names", to=["a"]), ValueError, ("param_groups[0]", "param_names", "4")),
    "version too new": (_edit(*GROUP, "lionbits_version", to=99), ValueError, ("lionbits_version", "99")),
    "version 1": (_edit(*GROUP, "lionbits_version", to=1), ValueError, ("lionbits_version", "=1: ", "reads version 3")),
    "version zero": (_edit(*GROUP, "lionbits_version", to=0), ValueError, ("lionbits_version", "0")),
    "version a text": (_edit(*GROUP, "lionbits_version", to="2"), ValueError, ("lionbits_version", "'2'")),
    "lr negative": (_edit(*GROUP, "lr", to=-1.0), ValueError, ("lr=-1.0",)),
    "betas": (_edit(*GROUP, "betas", to=(0.9,)), ValueError, ("betas=(0.9,)",)),
    "rounding": (_edit(*GROUP, "rounding", to="up"), ValueError, ("rounding='up'",)),
    "seed": (_edit(*GROUP, "seed", to=-4), ValueError, ("seed=-4",)),
    "optim_bits": (_edit(*GROUP, "optim_bits", to=16), ValueError, ("optim_bits=16",)),
    "block size": (_edit(*GROUP, "block_size", to=128), ValueError, ("256", "128")),
    "format": (_edit(*GROUP, "state_format", to="e4m3"), ValueError, ("e3m4", "e4m3")),
    "one scale": (lambda given: trained(block_wise=False), ValueError, ("block_wise", "False")),
    "4 bits": (lambda given: trained(Lion4bit), ValueError, ("e3m0", "e3m4", "'optim_bits': 4")),
    "32 bits": (lambda given: trained(Lion32bit), ValueError, ("float32", "e3m4")),
    "unknown parameter": (_edit("state", 17, to={}), ValueError, ("17",)),
    "state a list": (_edit(*FIRST, to=[1]), TypeError, ("parameter 0", "list")),
    "no step": (_edit(*FIRST, "step", to=...), ValueError, ("parameter 0", "'step'")),
    "step negative": (_edit(*FIRST, "step", to=-1), ValueError, ("parameter 0", "step=-1")),
    "step a fraction": (_edit(*FIRST, "step", to=1.5), ValueError, ("parameter 0", "step=1.5")),
    "step nan": (_edit(*FIRST, "step", to=float("nan")), ValueError, ("parameter 0", "step=nan")),
    "step infinite": (_edit(*FIRST, "step", to=float("inf")), ValueError, ("parameter 0", "step=inf")),
    "step a text": (_edit(*FIRST, "step", to="2"), ValueError, ("parameter 0", "step='2'")),
    "step a bool": (_edit(*FIRST, "step", to=True), ValueError, ("parameter 0", "step=True")),
    "step beyond int64": (_edit(*FIRST, "step", to=1e30), ValueError, ("parameter 0", "step=1e+30")),
    "no codes": (_edit(*FIRST, "exp_avg_codes", to=...), ValueError, ("parameter 0", "exp_avg_codes")),
    "no scale": (_edit(*FIRST, "exp_avg_scale", to=...), ValueError, ("parameter 0", "exp_avg_scale")),
    "codes a number": (_edit(*FIRST, "exp_avg_codes", to=3), ValueError, ("parameter 0", "exp_avg_codes")),
    "codes cast": (_edit(*FIRST, "exp_avg_codes", to=torch.zeros(64, 64)), ValueError, ("torch.uint8", "float32")),
    "codes of another shape": (
        _edit(*FIRST, "exp_avg_codes", to=torch.zeros(64, 32, dtype=torch.uint8)),
        ValueError,
        ("(64, 64)", "(64, 32)"),
    ),
    "scale cast": (_edit(*FIRST, "exp_avg_scale", to=torch.ones(64, 1).bfloat16()), ValueError, ("torch.bfloat16",)),
    "scale flat": (_edit(*FIRST, "exp_avg_scale", to=torch.ones(64)), ValueError, ("(64, 1)", "(64,)")),
    "norms a list": (_edit(*FIRST, "grad_norms", to=[0.5] * 100), ValueError, ("parameter 0", "grad_norms=[0.5, 0.5")),
    "step beyond floats": (_edit(*FIRST, "step", to=10**400), ValueError, ("parameter 0", "step=1000")),
    "step beyond digits": (_edit(*FIRST, "step", to=10**5000), ValueError, ("parameter 0", "step=<int>")),
    "lr beyond floats": (_edit(*GROUP, "lr", to=10**400), ValueError, ("param_groups[0]", "lr=1000")),
    "weight decay beyond floats": (_edit(*GROUP, "weight_decay", to=10**400), ValueError, ("weight_decay=1000",)),
    "grad_clip beyond digits": (_edit(*GROUP, "grad_clip", to=10**5000), ValueError, ("grad_clip=<int>",)),
    "betas beyond floats": (_edit(*GROUP, "betas", to=(10**400, 0.9)), ValueError, ("betas=(1000",)),
    "seed beyond floats": (_edit(*GROUP, "seed", to=10**400), ValueError, ("seed=1000",)),
    "norms a number": (_edit(*FIRST, "grad_norms", to=3.0), ValueError, ("parameter 0", "grad_norms")),
    "norms too few": (_edit(*FIRST, "grad_norms", to=torch.ones(99)), ValueError, ("grad_norms", "(99,)")),
    "norms cast": (_edit(*FIRST, "grad_norms", to=torch.ones(100).double()), ValueError, ("grad_norms", "float64")),
    "scale negative": (_edit(*FIRST, "exp_avg_scale", to=-torch.ones(64, 1)), ValueError, ("parameter 0", "negative")),
    "scale nan": (_edit(*FIRST, "exp_avg_scale", to=torch.full((64, 1), torch.nan)), ValueError, ("not finite",)),
    "scale infinite": (_edit(*FIRST, "exp_avg_scale", to=torch.full((64, 1), torch.inf)), ValueError, ("not finite",)),
    "scale too large": (_edit(*FIRST, "exp_avg_scale", to=torch.full((64, 1), 1e37)), ValueError, ("not finite",)),
    "momentum nan": (_edit("state", 2, "exp_avg", to=torch.full((33,), torch.nan)), ValueError, ("parameter 2",)),
    "norm negative": (_edit(*FIRST, "grad_norms", to=-torch.ones(100)), ValueError, ("parameter 0", "grad_norms")),
    "norm nan": (_edit(*FIRST, "grad_norms", to=torch.full((100,), torch.nan)), ValueError, ("parameter 0", "NaN")),
    "state that is not Lion's": (
        _edit(*FIRST, "exp_avg_sq", to=torch.zeros(64, 64)),
        ValueError,
        ("exp_avg_sq", "lionbits.from_adamw"),
    ),
    "momentum in two forms": (
        _edit(*FIRST, "exp_avg", to=torch.zeros(64, 64)),
        ValueError,
        ("parameter 0", "exp_avg", "two forms"),
    ),
}  # fmt: skip

#: State dicts of other optimizers, who has to refuse them, and a word of the message.
FOREIGN: dict[str, tuple[Callable[[], State], type[Lion], str]] = {
    "AdamW": (lambda: _foreign(torch.optim.AdamW), Lion32bit, "lionbits.from_adamw"),
    "AdamW into 8 bits": (lambda: _foreign(torch.optim.AdamW), Lion8bit, "lionbits.from_adamw"),
    "SGD": (lambda: _foreign(lambda params: torch.optim.SGD(params, momentum=0.9)), Lion32bit, "parameter 0"),
    "RMSprop": (lambda: _foreign(torch.optim.RMSprop), Lion32bit, "parameter 0"),
    "Adagrad": (lambda: _foreign(torch.optim.Adagrad), Lion32bit, "parameter 0"),
}


def _refused(target: Lion, given: Any, kind: type[Exception], words: tuple[str, ...]) -> None:
    before, held = snapshot(target), copy.deepcopy(given)
    with pytest.raises(kind) as caught:
        target.load_state_dict(given)
    assert caught.type is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 700
    assert_same(snapshot(target), before)
    assert_same(given, held)


@pytest.mark.parametrize("key", BAD)
def test_a_bad_state_dict_is_refused_whole(key: str) -> None:
    """Exact type, the place and the value; the running optimizer and the dict stay as they were."""
    change, kind, words = BAD[key]
    params = weights()
    target = Lion8bit(params, percentile_clipping=80)
    train(target, params, [5])
    _refused(target, change(trained()), kind, words)


@pytest.mark.parametrize("key", FOREIGN)
def test_state_of_another_optimizer_is_refused(key: str) -> None:
    """What another optimizer saved is not taken for Lion's, though Adam too calls something exp_avg."""
    make, cls, word = FOREIGN[key]
    params = weights()
    target = cls(params)
    train(target, params, [5])
    _refused(target, make(), ValueError, (word,))


@pytest.mark.parametrize("saved", ["compensated", "nearest"])
def test_parameter_rest_must_be_there_and_not_be_there(saved: str) -> None:
    """Settings travel with the state: a group that turns compensation on or off by loading keeps its state whole."""
    given = trained(Lion8bit, torch.bfloat16, param_rounding=saved)
    params = weights(torch.bfloat16)
    target = Lion8bit(params, param_rounding="dithered" if saved == "compensated" else "compensated")
    with pytest.warns(UserWarning, match="was given param_rounding="):
        target.load_state_dict(given)
    assert target.param_groups[0]["param_rounding"] == saved
    assert ("param_residual" in target.state[params[0]]) == (saved == "compensated")
    broken = copy.deepcopy(given)
    broken["param_groups"][0]["param_rounding"] = "compensated"
    if saved == "nearest":
        _refused(target, broken, ValueError, ("parameter 0", "param_residual"))


def test_a_checkpoint_says_version_format_block_and_seed() -> None:
    """Every group of a state dict names what is needed to read it; a live group has no version to keep in step."""
    given = trained(Lion4bit, seed=9)
    group = given["param_groups"][0]
    said = {key: group[key] for key in ("lionbits_version", "optim_bits", "state_format", "block_size", "seed")}
    assert said == {"lionbits_version": 3, "optim_bits": 4, "state_format": "e3m0", "block_size": 128, "seed": 9}
    target = Lion4bit(weights())
    target.load_state_dict(given)
    assert "lionbits_version" not in target.param_groups[0]


def test_the_seed_comes_from_the_checkpoint() -> None:
    """Bit-equal continuation does not depend on repeating seed=: the checkpoint's replaces the constructor's."""
    params = weights()
    optimizer = Lion4bit(params, seed=9)
    train(optimizer, params, [1, 2])
    resumed_params, stranger_params = copy.deepcopy((params, params))
    resumed, stranger = Lion4bit(resumed_params, seed=1), Lion4bit(stranger_params, seed=1)
    given = copy.deepcopy(optimizer.state_dict())
    with pytest.warns(UserWarning, match=r"was given seed=1 \(9\)"):
        resumed.load_state_dict(given)
    stranger.load_state_dict({**given, "param_groups": [{**given["param_groups"][0], "seed": 1}]})
    for one, some in ((optimizer, params), (resumed, resumed_params), (stranger, stranger_params)):
        train(one, some, [3, 4])
    assert_same(snapshot(resumed)["state"], snapshot(optimizer)["state"])
    assert resumed.param_groups[0]["seed"] == 9
    assert not torch.equal(
        stranger.state[stranger_params[0]]["exp_avg_codes"], optimizer.state[params[0]]["exp_avg_codes"]
    )


def test_seeds_that_differ_between_groups_are_refused() -> None:
    """An optimizer has one seed, so a state dict with two was put together from two."""
    params = weights()
    target = Lion8bit([{"params": params[:1]}, {"params": params[1:]}])
    train(target, params, [1])
    given = copy.deepcopy(target.state_dict())
    given["param_groups"][1]["seed"] = 5
    _refused(target, given, ValueError, ("seed",))


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_paged_and_resident_checkpoints_are_one(bits: int) -> None:
    """The same dict, key by key and bit by bit, and each loads the other's."""
    resident, paged = getattr(lionbits, f"Lion{bits}bit"), getattr(lionbits, f"PagedLion{bits}bit")
    one, other = trained(resident), trained(paged)
    assert_same(one, other)
    for cls, given in ((paged, one), (resident, other)):
        target = cls(weights())
        target.load_state_dict(given)
        assert_same(target.state_dict(), one)


def test_a_step_in_a_tensor_is_read() -> None:
    """Tools that turn every number into a tensor do no harm: the step becomes an int64 again."""
    given = trained()
    for state in given["state"].values():
        state["step"] = torch.tensor(float(state["step"]))
    target = PagedLion8bit(weights())
    target.load_state_dict(given)
    assert_same(target.state_dict(), trained())


def test_percentile_clipping_may_be_turned_on_later() -> None:
    """A state without norms is complete where clipping was off; turning it on starts the history then."""
    params = weights()
    optimizer = Lion8bit(params)
    train(optimizer, params, [1])
    target = Lion8bit(params)
    target.load_state_dict(optimizer.state_dict())
    target.param_groups[0]["percentile_clipping"] = 50
    train(target, params, [2])
    assert target.state[params[0]]["grad_norms"].shape == (100,)


def test_norms_that_propagate_left_load_with_propagate() -> None:
    """A norm of NaN is lawful there, as an infinite one is everywhere: the squares of large gradients overflow."""
    params = weights()
    optimizer = Lion8bit(params, nonfinite="propagate", percentile_clipping=50)
    params[0].grad = torch.full((64, 64), torch.nan)
    params[1].grad = torch.full((70, 61), 3e38)
    optimizer.step()
    assert optimizer.state[params[0]]["grad_norms"].isnan().any()
    assert optimizer.state[params[1]]["grad_norms"].isinf().any()
    target = Lion8bit(weights())
    target.load_state_dict(optimizer.state_dict())
    assert_same(target.state_dict(), optimizer.state_dict())


def test_what_propagate_left_loads_with_propagate() -> None:
    """A block of NaN is lawful there, and there alone."""
    params = weights()
    optimizer = Lion8bit(params, nonfinite="propagate")
    params[0].grad = torch.full((64, 64), torch.nan)
    optimizer.step()
    given = copy.deepcopy(optimizer.state_dict())
    assert given["state"][0]["exp_avg_scale"].isnan().all()
    target = Lion8bit(weights())
    target.load_state_dict(given)
    assert_same(target.state_dict(), given)
    _refused(target, _edit(*GROUP, "nonfinite", to="skip")(given), ValueError, ("parameter 0", "exp_avg_scale"))


@pytest.mark.parametrize("cls", [Lion32bit, Lion8bit, PagedLion8bit])
def test_state_of_any_strides_is_laid_out_for_kernels(cls: type[Lion]) -> None:
    """Tools may hand over transposed or expanded tensors; kernels count on state in its logical order."""
    given = trained(cls)
    for state in given["state"].values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim == 2:
                state[key] = value.t().contiguous().t()
    target = cls(weights())
    target.load_state_dict(given)
    assert_same(target.state_dict(), trained(cls))
    tensors = [value for state in target.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
