"""A scenario of an optimizer, in any order of events, beside a twin to whom only the steps happen.

The subject runs on the backend under test, and is saved, loaded, copied, pickled, paged and moved between
backends; the twin runs on the reference and is left alone. After every event both hold the same bits.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

import lionbits
from lionbits import select
from lionbits_reference import encode
from lionbits_reference.spec import ROUNDINGS, Format

from . import bits, serving, strategies, values
from .cases import TensorCase
from .runs import CPU, OptimizerRun, Run, load

BETAS = st.sampled_from([(0.9, 0.99), (0.5, 0.9), (0.0, 0.999)])

#: Settings that change without another plan, which a backend might not serve.
CHANGES: list[dict[str, Any]] = [
    *({"grad_clip": limit} for limit in (0.0, 1e-3, 1.0)),
    *({"percentile_clipping": percentile} for percentile in (5, 50, 100)),
    *({"rounding": rounding} for rounding in ROUNDINGS),
    *({"maximize": maximize} for maximize in (False, True)),
]


class OptimizerStateMachine(RuleBasedStateMachine):
    """See the module. ``backend`` and ``device`` are set by whoever runs it; ``events`` counts what happened."""

    backend: ClassVar[str] = "reference"
    device: ClassVar[torch.device] = CPU
    events: ClassVar[int] = 0

    @initialize(run=strategies.runs(most=3))
    def born(self, run: Run) -> None:
        """Subject and twin begin alike."""
        self.judged = select.load(self.backend)
        self.run = run = serving.fit_run(run, self.judged, self.device)
        self.tensors = run.tensors
        self.options: dict[str, Any] = dict(run.options)
        self.subject = OptimizerRun(lionbits.Lion, run, self.device, backend=self.backend)
        self.twin = OptimizerRun(lionbits.Lion, run, backend="reference")
        self.frozen: set[int] = set()

    @rule(
        kind=st.sampled_from(values.KINDS),
        seed=st.integers(0, 1000),
        absent=st.sets(st.integers(0, 3), max_size=2),
        scale=st.sampled_from((None, None, 65536.0, 3.0)),
    )
    def step(self, kind: str, seed: int, absent: set[int], scale: float | None) -> None:
        """An update; some parameters may lack a gradient, and a loss scale may divide those that there are."""
        grads = [None if j in absent else self._gradient(j, kind, seed) for j in range(len(self.twin.params))]
        for player in (self.subject, self.twin):
            for j, (param, grad) in enumerate(zip(player.params, grads, strict=True)):
                param.grad = None if grad is None or j in self.frozen else grad.to(param.device).clone()
            if scale is not None:
                player.optimizer.grad_scale = torch.tensor(scale)
            player.optimizer.step()
            vars(player.optimizer).pop("grad_scale", None)

    @rule(lr=st.sampled_from((0.0, 1e-3, 1.0)), decay=st.sampled_from((0.0, 0.1)), betas=BETAS)
    def schedule(self, lr: float, decay: float, betas: tuple[float, float]) -> None:
        """Another learning rate, decay and betas."""
        for player in (self.subject, self.twin):
            for group in player.optimizer.param_groups:
                group.update(lr=lr, weight_decay=decay, betas=betas)

    @rule(change=st.sampled_from(CHANGES), at=st.integers(0, 3))
    def change_one(self, change: dict[str, Any], at: int) -> None:
        """One setting of one group."""
        for player in (self.subject, self.twin):
            groups = player.optimizer.param_groups
            groups[at % len(groups)].update(change)

    @rule(j=st.integers(0, 3))
    def freeze(self, j: int) -> None:
        """A parameter stops, or resumes, having gradients."""
        self.frozen ^= {j}

    @rule(tensor=strategies.tensors())
    def grow(self, tensor: Any) -> None:
        """A further parameter, in a group of its own."""
        if len(self.twin.params) >= 5:
            return
        grown = (*self.tensors, tensor)
        if not self._serves(grown, self.options):
            return
        self.tensors, fresh = grown, Run({}, (tensor,), dtype=self.run.dtype)
        for player, device in ((self.subject, self.device), (self.twin, CPU)):
            param = OptimizerRun(lionbits.Lion, fresh, device).params[0]
            player.params.append(param)
            player.optimizer.add_param_group({"params": [param], "weight_decay": 0.2})

    @rule(is_paged=st.booleans(), budget=st.sampled_from((None, 0, 4096)), switch=st.booleans())
    def save_and_load(self, is_paged: bool, budget: int | None, switch: bool) -> None:
        """A fresh process: another optimizer, paged or not, perhaps on the other backend, loads the checkpoint."""
        file = io.BytesIO()
        torch.save(self.subject.optimizer.state_dict(), file)
        file.seek(0)
        paging = {"is_paged": True, "page_budget": budget} if is_paged else {}
        self._replace("reference" if switch else self.backend, torch.load(file, weights_only=True), **paging)

    @rule(pickled=st.booleans())
    def copied(self, pickled: bool) -> None:
        """The copy continues."""
        self.subject = pickle.loads(pickle.dumps(self.subject)) if pickled else copy.deepcopy(self.subject)

    @rule(params=st.booleans(), state=st.booleans())
    def move(self, params: bool, state: bool) -> None:
        """Storage of parameters and tensors of the state are replaced by copies."""
        if params:
            for param in self.subject.params:
                param.data = param.data.clone()
        if state:
            for held in self.subject.optimizer.state.values():
                held.update({key: value.clone() for key, value in held.items() if isinstance(value, Tensor)})

    @rule(chosen=strategies.formats())
    def convert(self, chosen: Format) -> None:
        """Other bits: momentum decoded and encoded again, on both sides."""
        options = self.options | {
            "optim_bits": chosen.bits,
            "state_format": chosen.name,
            "block_size": chosen.block_size or None,
            "block_wise": not chosen.tensor_wise,
        }
        if not self._serves(self.tensors, options):
            return
        self.options = options
        converted = _converted(self.twin, chosen), _converted(self.subject, chosen)
        skipped = self.twin.optimizer._skipped
        self.twin = self._successor(self.twin, "reference", CPU, converted[0])
        self.twin.optimizer._skipped = skipped
        self._replace(self.backend, converted[1])

    @invariant()
    def equal(self) -> None:
        """Subject and twin hold the same bits."""
        if not hasattr(self, "twin"):
            return
        type(self).events += 1
        context = f"scenario on backend {self.backend} with {self.options}"
        bits.require_equal(self.subject.results(), self.twin.results(), context)

    def _serves(self, tensors: tuple[TensorCase, ...], options: dict[str, Any]) -> bool:
        run = replace(self.run, tensors=tensors, options=options)
        return not serving.refusal(run, self.judged, self.device)

    def _gradient(self, j: int, kind: str, seed: int) -> Tensor:
        param = self.twin.params[j]
        momentum = self.twin.optimizer.momentum(param)
        betas = self.twin.optimizer.param_groups[0]["betas"]
        return values.gradient(kind, 0, momentum, betas, seed + j).to(param.dtype)

    def _replace(self, backend: str, state_dict: dict[str, Any], **paging: Any) -> None:
        skipped = self.subject.optimizer._skipped  # of an object, not of a checkpoint
        self.subject = self._successor(self.subject, backend, self.device, state_dict, **paging)
        self.subject.optimizer._skipped = skipped

    def _successor(
        self, player: OptimizerRun, backend: str, device: torch.device, state_dict: dict[str, Any], **paging: Any
    ) -> OptimizerRun:
        successor = copy.copy(player)
        groups = [{"params": group["params"]} for group in player.optimizer.param_groups]
        successor.optimizer = lionbits.Lion(groups, **self.options, backend=backend, **paging)
        load(successor.optimizer, state_dict)
        return successor


def _converted(player: OptimizerRun, chosen: Format) -> dict[str, Any]:
    """The player's state dict with momentum in another format."""
    optimizer = player.optimizer
    state_dict: dict[str, Any] = optimizer.state_dict()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    new = {"optim_bits": chosen.bits, "state_format": chosen.name, "block_wise": not chosen.tensor_wise}
    new["block_size"] = chosen.block_size or None
    groups = [{**group, **new} for group in state_dict["param_groups"]]
    least = {key: group["min_8bit_size"] for group in groups for key in group["params"]}
    states = {}
    for key, state in state_dict["state"].items():
        param = params[key]
        kept = {name: value for name, value in state.items() if not name.startswith("exp_avg")}
        format = chosen.for_parameter(param.shape, least[key])
        states[key] = kept | encode(format, optimizer.momentum(param).cpu())
    return {"state": states, "param_groups": groups}
