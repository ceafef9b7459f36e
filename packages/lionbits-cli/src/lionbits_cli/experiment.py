"""QLion's detailed test, measured: one short training with three groups, one batch, and an explosion in it.

The original plots the momentum of the unquantised biases as "update norm". Here it is the
update itself: the norm of the parameters' change in the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from lionbits import QLion

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
GRAD_CLIP = 0.5
EXPLOSION_STEP = 10
EXPLODING = "2.weight"
COVERAGE_WANTED = 0.5  # of all elements, with 4-bit state
# Rounding a parameter that is far larger than its step moves the change by less than this.
ROUNDING_SLACK = 1e-3
# A 4-bit momentum may be rounded up to the next power of two, and its small elements to the smallest code.
QUANTISATION_SLACK = 4.0


@dataclass
class Explosion:
    """The gradient, momentum and change of one tensor at the step of the explosion, with their bounds."""

    name: str
    gradient: float
    momentum: float
    momentum_bound: float
    change: float
    change_bound: float


@dataclass
class Record:
    """All data of the charts and the checks, which need no optimizer."""

    clip: float = GRAD_CLIP  # what the checks hold the run to
    losses: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    update_norms: list[float] = field(default_factory=list)
    elements: dict[str, tuple[int, bool]] = field(default_factory=dict)  # size, and whether its state has 4 bits
    explosion: list[Explosion] = field(default_factory=list)
    finite: bool = True


def build(seed: int, grad_clip: float) -> tuple[nn.Sequential, QLion]:
    """Return the model of the test and QLion with its three groups."""
    from lionbits import QLion

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 10))
    groups: list[dict[str, Any]] = [
        {"params": [model[0].weight], "use_4bit": True, "lr": 1e-4},
        {"params": [model[0].bias], "use_4bit": False},
        {"params": list(model[2].parameters()), "use_4bit": True, "quant_threshold": 512},
    ]
    return model, QLion(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, grad_clip=grad_clip)


def measure(steps: int, seed: int, grad_clip: float = GRAD_CLIP) -> Record:
    """Train and record; another ``grad_clip`` shows that the checks can fail."""
    model, optimizer = build(seed, grad_clip)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 100, generator=generator)
    targets = torch.randint(0, 10, (256,), generator=generator)
    record = Record()
    for step in range(1, steps + 1):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        if step == EXPLOSION_STEP:
            gradient = model.get_parameter(EXPLODING).grad
            assert gradient is not None
            gradient += torch.randn(gradient.shape, generator=generator) * 10
        record.losses.append(loss.item())
        advance(model, optimizer, record, exploding=step == EXPLOSION_STEP)
    record.finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return record


def advance(model: nn.Sequential, optimizer: QLion, record: Record, *, exploding: bool) -> None:
    """Take one optimizer step and record the change of the parameters."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if exploding:
        record.explosion = [expected(name, p, optimizer, record.clip) for name, p in model.named_parameters()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    record.gradient_norms.append(total_norm(gradients))
    optimizer.step()
    changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    record.update_norms.append(total_norm(list(changes.values())))
    for seen in record.explosion if exploding else ():
        seen.change = changes[seen.name].norm().item()
        seen.momentum = optimizer.momentum(model.get_parameter(seen.name)).norm().item()
    record.elements = {name: (p.numel(), has_4bit_state(optimizer, p)) for name, p in model.named_parameters()}
    total = sum(size for size, _ in record.elements.values())
    record.coverage.append(sum(size for size, packed in record.elements.values() if packed) / total)


def expected(name: str, parameter: nn.Parameter, optimizer: QLion, clip: float) -> Explosion:
    """Return bounds of what a clipped step may do to one tensor.

    The optimizer leaves ``p.grad`` alone, so clipping shows in its effects: the momentum takes in (1 - b2)
    of a gradient no longer than ``clip``, and the parameter moves by lr per element, decay apart.
    """
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    b2, lr = group["betas"][1], float(group["lr"])
    assert parameter.grad is not None
    momentum = b2 * optimizer.momentum(parameter).norm().item() + (1 - b2) * clip
    decay = group["weight_decay"] * parameter.detach().norm().item()
    return Explosion(
        name,
        gradient=parameter.grad.norm().item(),
        momentum=0.0,
        momentum_bound=momentum * QUANTISATION_SLACK,
        change=0.0,
        change_bound=lr * (parameter.numel() ** 0.5 + decay) * (1 + ROUNDING_SLACK),
    )


def total_norm(tensors: list[Tensor]) -> float:
    """Return the norm of all elements together."""
    return float(torch.stack([t.norm() for t in tensors]).norm())


def has_4bit_state(optimizer: QLion, parameter: nn.Parameter) -> bool:
    """True if two codes share a byte, so that there are fewer bytes than elements."""
    codes = optimizer.state[parameter].get("exp_avg_codes")
    return codes is not None and codes.numel() < parameter.numel()
