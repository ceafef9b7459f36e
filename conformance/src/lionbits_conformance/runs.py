"""Properties of whole runs: what an optimizer must hold over several steps, whatever happens in between.

Each takes the optimizer class, so that wrong front ends can be checked as well as wrong backends. Gradients are
recorded from a run of the reference, as kinds such as ``"cancelling"`` lean on the momentum that there is; then all
runs get the same.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import lionbits
from lionbits import select
from lionbits_reference.spec import Format

from . import address_caching, bits, values
from .adversarial_streams import AdversarialStreams
from .cases import TensorCase

CPU = torch.device("cpu")

_FORMAT = ("optim_bits", "state_format", "block_size", "block_wise")


@dataclass(frozen=True)
class Run:
    """A few parameters, an optimizer over them, and the gradients of some steps.

    Attributes:
        options: keyword arguments of the optimizer.
        tensors: the parameters; ``kind`` is of their gradients, ``momentum_kind`` is not used.
        groups: settings of a second parameter group with every other parameter, or None for one group.
        dtype: of the parameters and so of their gradients.
        steps: how many.
        rates: learning rates, in turn.
        missing: one gradient in this many is None; 0: none is.
        zero_first: the first gradients are zero, as that of LoRA's A while B is zero.
    """

    options: dict[str, Any]
    tensors: tuple[TensorCase, ...]
    groups: dict[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    steps: int = 4
    rates: tuple[float, ...] = (1e-2,)
    missing: int = 0
    zero_first: bool = False


Optimizer = Any  # a class with lionbits.Lion's constructor, or an instance of one
Property = Callable[[Optimizer, str, Run, torch.device], None]


class OptimizerRun:
    """An optimizer over parameters of its own, fed with given gradients."""

    def __init__(self, lion: Optimizer, run: Run, device: torch.device = CPU, **extra: Any) -> None:
        self.params = list(parameters(run, device))
        self.optimizer = lion(grouped(run, self.params), **{**run.options, **extra})

    def play(self, run: Run, grads: list[list[Tensor | None]], first: int = 0) -> OptimizerRun:
        """Take the steps that ``grads`` has gradients for; ``first`` is the number of steps before them."""
        for i, step in enumerate(grads, first):
            for group in self.optimizer.param_groups:
                group["lr"] = run.rates[i % len(run.rates)]
            for param, grad in zip(self.params, step, strict=True):
                param.grad = None if grad is None else grad.to(param.device).clone()
            self.optimizer.step()
        return self

    def results(self) -> dict[str, Tensor]:
        """Parameters, state tensors and step counts, and the skip count."""
        results = {"skipped": torch.tensor(self.optimizer.skipped_elements())}
        for i, param in enumerate(self.params):
            results[f"param[{i}]"] = param
            for key, value in self.optimizer.state.get(param, {}).items():
                results[f"{key}[{i}]"] = torch.as_tensor(value)
        return results


def parameters(run: Run, device: torch.device) -> Iterator[torch.nn.Parameter]:
    """Fresh parameters of the run; the same bits each time. Layouts other than contiguous are kept."""
    for tensor in run.tensors:
        value = values.values("normal", 0, tensor.shape, tensor.seed + 2).to(run.dtype)
        if tensor.layout == "transposed":
            backwards = list(reversed(range(value.dim())))
            value = value.permute(backwards).contiguous().permute(backwards)
        elif tensor.layout == "channels_last" and value.dim() == 4:
            value = value.to(memory_format=torch.channels_last)
        yield torch.nn.Parameter(value.to(device))


def grouped(run: Run, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters as one group, or as two where the run has settings for a second."""
    if run.groups is None or len(params) < 2:
        return [{"params": params}]
    return [{"params": params[::2]}, {"params": params[1::2], **run.groups}]


def record(run: Run) -> list[list[Tensor | None]]:
    """Gradients for each step and parameter, made along a run of the reference."""
    player = OptimizerRun(lionbits.Lion, run, backend="reference")
    grads: list[list[Tensor | None]] = []
    for i in range(run.steps):
        step = [_gradient(run, player, i, j) for j in range(len(run.tensors))]
        player.play(run, [step], first=i)
        grads.append(step)
    return grads


def _gradient(run: Run, player: OptimizerRun, i: int, j: int) -> Tensor | None:
    if run.missing and (i + 2 * j) % run.missing == 0:
        return None
    tensor, param = run.tensors[j], player.params[j]
    group = next(g for g in player.optimizer.param_groups if any(param is p for p in g["params"]))
    momentum = player.optimizer.momentum(param)
    return gradient(run, tensor, i, momentum, group["betas"], -1.0 if group["maximize"] else 1.0)


def gradient(
    run: Run, tensor: TensorCase, i: int, momentum: Tensor, betas: tuple[float, float], scale: float
) -> Tensor:
    """The gradient at step ``i`` of a parameter with this momentum, in the run's dtype; ``scale`` is -1 to maximize."""
    if run.zero_first and i == 0:
        return torch.zeros(tensor.shape, dtype=run.dtype)
    chosen = Format.of(**{key: run.options[key] for key in _FORMAT if key in run.options} or {"optim_bits": 32})
    grad = values.gradient(tensor.kind, tensor.magnitude, momentum, betas, tensor.seed + 101 * i, chosen, scale)
    return grad.to(run.dtype)


def backend_equals_reference(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """A run on the backend gives the bits of a run of the reference."""
    grads = record(run)
    got = OptimizerRun(lion, run, device, backend=backend).play(run, grads)
    want = OptimizerRun(lion, run, backend="reference").play(run, grads)
    bits.require_equal(got.results(), want.results(), repro_message("backend_equals_reference", backend, run))


def paged_equals_resident(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """Paged state gives the bits of resident state, whatever the budget and page size, and wherever it is updated."""
    grads = record(run)
    want = OptimizerRun(lion, run, device, backend=backend).play(run, grads)
    chance = random.Random(run.options["seed"] + run.steps)
    limits = (None, 0, chance.choice((1024, 4096, 16384)))
    for compute, budget in (*(("device", limit) for limit in limits), ("host", None)):
        server = "reference" if compute == "host" and device.type != "cpu" else backend
        paged = {"is_paged": True, "page_budget": budget, "paged_compute": compute}
        got = OptimizerRun(lion, run, device, backend=server, **paged)
        if device.type == "cpu" and (compute, budget) != ("device", None):  # nothing would move there
            noise = functools.partial(_adversarial, chance.getrandbits(32))
            got.optimizer._pager = replace(got.optimizer._pager, page_size=chance.choice((1, 500, 4096)), streams=noise)
        bits.require_equal(
            got.play(run, grads).results(), want.results(), repro_message("paged_equals_resident", backend, run)
        )


def only_changes_prepare(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """A step before which only gradients and rates have changed prepares nothing, wherever state is kept."""
    steady = replace(run, missing=0, steps=max(run.steps, 3))
    grads = record(steady)
    kept: tuple[dict[str, Any], ...] = ({}, {"page_budget": 0}, {"page_budget": 8192}, {"paged_compute": "host"})
    extra = random.Random(run.options["seed"] + run.steps).choice(kept)
    server = "reference" if extra.get("paged_compute") and device.type != "cpu" else backend
    counting, count = _counting(server)
    got = OptimizerRun(lion, steady, device, backend=counting, is_paged=bool(extra), **extra)
    if extra and device.type == "cpu":  # nothing would move there
        streams = functools.partial(_adversarial, run.options["seed"])
        got.optimizer._pager = replace(got.optimizer._pager, page_size=3000, streams=streams)
    got.play(steady, grads[:1])
    before = count[0]
    got.play(steady, grads[1:], first=1)
    if count[0] != before:
        message = repro_message("only_changes_prepare", backend, run)
        raise bits.Disagreement(
            f"{message}\n  with {extra}: prepared {before} times in the first step, {count[0]} in all"
        )


def _counting(backend: str) -> tuple[ModuleType, list[int]]:
    """The backend under another name, and how often it has been asked to prepare."""
    served, module, count = select.load(backend), ModuleType("lionbits_counting"), [0]

    def prepare(*arguments: Any) -> Any:
        count[0] += 1
        return served.prepare(*arguments)

    for name in ("supports", "aligned", "absmax", "step", "encode", "decode"):
        setattr(module, name, getattr(served, name))
    vars(module).update(name="counting", prepare=prepare)
    return module, count


def _adversarial(seed: int, device: torch.device) -> AdversarialStreams:
    del device
    return AdversarialStreams(seed)


def saving_changes_nothing(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """Save, load into an optimizer built with other settings, paged or not, continue: as if one had never stopped."""
    grads = record(run)
    half = run.steps // 2
    want = OptimizerRun(lion, run, device, backend=backend).play(run, grads)
    first = OptimizerRun(lion, run, device, backend=backend).play(run, grads[:half])
    file = io.BytesIO()
    torch.save(first.optimizer.state_dict(), file)
    unlike = {**run.options, "weight_decay": 0.7, "betas": (0.1, 0.2), "seed": 99, "grad_clip": 7.0}
    other = replace(run, options=unlike, groups=None if run.groups is None else {})
    for is_paged in (False, True):
        file.seek(0)
        second = OptimizerRun(lion, other, device, backend=backend, is_paged=is_paged)
        _copy_params(second, first)
        load(second.optimizer, torch.load(file, weights_only=True))
        second.play(run, grads[half:], first=half)
        _forget_skips(second, want)
        bits.require_equal(second.results(), want.results(), repro_message("saving_changes_nothing", backend, run))


def load(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load into an optimizer that was given other settings, and not be warned that these go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load_state_dict takes settings", UserWarning)
        optimizer.load_state_dict(state_dict)


def copies_continue(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """A deep copy or pickled twin continues as the original does, and the original does not notice."""
    grads = record(run)
    half = run.steps // 2
    want = OptimizerRun(lion, run, device, backend=backend).play(run, grads)
    original = OptimizerRun(lion, run, device, backend=backend).play(run, grads[:half])
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        twin.play(run, grads[half:], first=half)
        bits.require_equal(twin.results(), want.results(), repro_message("copies_continue", backend, run))
    original.play(run, grads[half:], first=half)
    bits.require_equal(original.results(), want.results(), repro_message("copies_continue", backend, run))


def switching_changes_nothing(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """Half the steps on the backend and half on the reference give the bits of one all along, and leave it alone."""
    grads = record(run)
    half = run.steps // 2
    want = OptimizerRun(lion, run, backend="reference").play(run, grads)
    for before, after in ((backend, "reference"), ("reference", backend)):
        first = OptimizerRun(lion, run, device, backend=before).play(run, grads[:half])
        second = OptimizerRun(lion, run, device, backend=after)
        held = {key: tensor.clone() for key, tensor in first.results().items()}
        _copy_params(second, first)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.play(run, grads[half:], first=half)
        bits.require_equal(first.results(), held, repro_message("switching_changes_nothing", backend, run))
        _forget_skips(second, want)
        bits.require_equal(second.results(), want.results(), repro_message("switching_changes_nothing", backend, run))


def moving_changes_nothing(lion: Optimizer, backend: str, run: Run, device: torch.device = CPU) -> None:
    """Parameters and state may move between steps: other storage, other tensors, other dicts, the same values.

    As a backend need not keep addresses, one that does is asked as well.
    """
    grads = record(run)
    want = OptimizerRun(lion, run, device, backend=backend).play(run, grads)
    for held in (backend, address_caching):
        for move in (_move_params, _move_state, _move_counts, _move_dicts):
            got = OptimizerRun(lion, run, device, backend=held)
            for i, step in enumerate(grads):
                got.play(run, [step], first=i)
                move(got)
            bits.require_equal(got.results(), want.results(), repro_message("moving_changes_nothing", backend, run))


def _move_params(player: OptimizerRun) -> None:
    for param in player.params:
        param.data = param.data.clone()


def _move_state(player: OptimizerRun) -> None:
    """Give every state other tensors; its count stays, which would be noticed by itself."""
    for state in player.optimizer.state.values():
        state.update(_cloned(state) | {"step": state["step"]})


def _move_counts(player: OptimizerRun) -> None:
    for state in player.optimizer.state.values():
        state["step"] = state["step"].clone()


def _move_dicts(player: OptimizerRun) -> None:
    for param, state in list(player.optimizer.state.items()):
        player.optimizer.state[param] = _cloned(state)


def _cloned(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def _copy_params(to: OptimizerRun, source: OptimizerRun) -> None:
    with torch.no_grad():
        for mine, theirs in zip(to.params, source.params, strict=True):
            mine.copy_(theirs)


def _forget_skips(*players: OptimizerRun) -> None:
    """Skip counts belong to an optimizer object, not to a checkpoint."""
    for player in players:
        player.optimizer._skipped.clear()


#: Properties of runs, by name.
RUNS: dict[str, Property] = {
    check.__name__: check
    for check in (
        moving_changes_nothing,
        backend_equals_reference,
        only_changes_prepare,
        paged_equals_resident,
        saving_changes_nothing,
        copies_continue,
        switching_changes_nothing,
    )
}


def repro_message(name: str, backend: str, run: Run) -> str:
    """What failed, and the code that runs it again."""
    return (
        f"property {name} is broken on backend {backend} for {run.options}\n"
        f"  to run it again:\n"
        f"    import torch, lionbits; from lionbits_conformance import runs\n"
        f"    from lionbits_conformance.cases import TensorCase; from lionbits_conformance.runs import Run\n"
        f"    runs.{name}(lionbits.Lion, {backend!r}, {run!r})"
    )
