"""Exhaustive checks, of sets that are small enough."""

import pytest
import torch

import lionbits_reference as reference
from lionbits_conformance import bits
from lionbits_reference import rounding
from lionbits_reference.spec import FORMATS, Backend, Format, Hyper, Plan, Scalars, Slot

NARROW = [(4, name) for name in FORMATS[4]] + [(2, name) for name in FORMATS[2]]


def _numbers(device: torch.device, count: int = 1) -> Scalars:
    numbers = {"lr": 1e-3, "keep": 0.999, "grad_scale": 1.0}
    return Scalars(
        **{key: torch.tensor([value] * count, device=device) for key, value in numbers.items()},
        step=torch.tensor([7] * count, device=device),
        skipped=torch.zeros(1, dtype=torch.int64, device=device),
    )


def _stepped(
    backend: Backend,
    plan: Plan,
    hyper: Hyper,
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum: torch.Tensor,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """Return the results of one step on copies of these tensors."""
    state = {key: value.to(device) for key, value in reference.encode(plan.format, momentum).items()}
    slot, grads = Slot(param.clone().to(device), state, index=5), [grad.clone().to(device)]
    numbers = _numbers(device)
    backend.step(backend.prepare(plan, [slot], grads), grads, hyper, numbers)
    return {"param": slot.param, "skipped": numbers.skipped, **state}


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("bits_of_state", [32, 8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_gradient(
    dtype: torch.dtype, bits_of_state: int, nonfinite: str, backend: Backend, device: torch.device
) -> None:
    """All 65,536 patterns of a 16-bit gradient, beside momentum of four sizes, give the reference's bits."""
    plan = Plan(torch.float32, dtype, Format.of(bits_of_state), nonfinite=nonfinite)
    if reason := backend.supports(plan, device):
        pytest.skip(reason)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    grad = patterns.reshape(1, -1).repeat(4, 1)
    momentum = torch.tensor([[0.0], [1.0], [-1e-30], [3e38]]).repeat(1, 65536)
    param = torch.full((4, 65536), 0.7)
    hyper = Hyper.of((0.9, 0.99))
    got = _stepped(backend, plan, hyper, param, grad, momentum, device)
    want = _stepped(reference, plan, hyper, param, grad, momentum, torch.device("cpu"))
    bits.require_equal(got, want, f"every {dtype} gradient at {bits_of_state} bits, {nonfinite}")


@pytest.mark.parametrize(("bits_of_state", "name"), NARROW)
def test_every_interval_and_noise(bits_of_state: int, name: str, backend: Backend, device: torch.device) -> None:
    """Momentum inside each interval between two codes, and at its ends, meets each of the 65,536 noise values."""
    format = Format.of(bits_of_state, name, block_size=4096)
    plan = Plan(torch.float32, torch.float32, format)
    if reason := backend.supports(plan, device):
        pytest.skip(reason)
    hyper = Hyper.of((0.9, 0.0))  # b2 = 0: the new momentum is the gradient
    rounds = 2**20
    for k in range(format.largest_code):
        low, high = format.value(k), format.value(k + 1)
        for value in (low, low + (high - low) * 0.3, (low + high) / 2):
            grad = torch.full((1, rounds), -value)
            grad[:, ::4096] = format.top
            zeros = torch.zeros_like(grad)
            got = _stepped(backend, plan, hyper, zeros, grad, zeros, device)
            want = _stepped(reference, plan, hyper, zeros, grad, zeros, torch.device("cpu"))
            bits.require_equal(got, want, f"{name}: {value} between codes {k} and {k + 1}")


@pytest.mark.parametrize("block", [32, 256])
@pytest.mark.parametrize("bits_of_state", [8, 4, 2])
def test_every_short_row(bits_of_state: int, block: int, backend: Backend, device: torch.device) -> None:
    """Every number of columns below 32, in rows that end inside blocks and bytes, gives what a vector gives.

    Gradients lie row-major and column-major: elements count in row-major order all the same.
    """
    plan = Plan(torch.float32, torch.float32, Format.of(bits_of_state, block_size=block))
    if reason := backend.supports(plan, device):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(11)
    shapes = [(2 * block // columns + 2, columns) for columns in range(1, 32)]
    values = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    for name, lie in (("row-major", torch.clone), ("column-major", lambda grad: grad.t().contiguous().t())):
        got = _many(backend, plan, values, [lie(grad) for grad in values[1]], device)
        flat = [[tensor.flatten() for tensor in tensors] for tensors in values]
        want = _many(reference, plan, flat, flat[1], torch.device("cpu"))
        for shape, ours, theirs in zip(shapes, got, want, strict=True):
            flattened = {key: value.reshape(theirs[key].shape) for key, value in ours.items()}
            bits.require_equal(
                flattened, theirs, f"{shape} at {bits_of_state} bits in blocks of {block}, gradient {name}"
            )


def _many(
    backend: Backend,
    plan: Plan,
    values: list[list[torch.Tensor]],
    grads: list[torch.Tensor],
    device: torch.device,
) -> list[dict[str, torch.Tensor]]:
    """Return what one call makes of copies of these parameters, gradients and momenta."""
    on_device = [grad.to(device) for grad in grads]
    states = [reference.encode(plan.format, momentum) for momentum in values[2]]
    slots = [
        Slot(param.clone().to(device), {key: value.to(device) for key, value in state.items()}, index=5)
        for param, state in zip(values[0], states, strict=True)
    ]
    numbers = _numbers(device, count=len(slots))
    backend.step(backend.prepare(plan, slots, on_device), on_device, Hyper.of((0.9, 0.99)), numbers)
    return [{"param": slot.param, **slot.state} for slot in slots]


def test_all_noise_is_met() -> None:
    """2^20 elements meet every noise value, as the test above requires."""
    salt = rounding.salt(0, 5, rounding.STATE)
    noise = rounding.noise("dithered", salt, torch.tensor(7), 0, 2**20, (1, 2**20))
    assert isinstance(noise, torch.Tensor)
    assert len(noise.unique()) == 65536
