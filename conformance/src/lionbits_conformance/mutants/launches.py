"""Wrong launches: faults of what a front end decides for several tensors, groups and steps together.

Each is one that people meet with groups of different settings, loss scales, frozen parameters or schedules.
"""

from .mutant import Mutant, front_end

FACTORS, PREPARE, RUN, SCALARS, CACHE, SNAPSHOT = (
    f"lionbits/step/{name}.py" for name in ("factors", "prepare", "run", "scalars", "cache", "snapshot")
)
CLIPPING, SETTINGS = "lionbits_reference/clipping.py", "lionbits/settings.py"

_FACTORS = "_clip_factor(groups[j], states[j], norm if unscale is None else norm * unscale, steps[j])"
_KEY = 'LaunchKey(plan, hyper, device, param.device, group["cautious"], raises, shards)'
_PLACE = "place = torch.as_tensor(step % HISTORY, device=norms.device)"


def _forgotten(setting: str) -> Mutant:
    """The step does not notice that this setting of a group has changed."""
    listed = next(text for text in _LISTED if f'"{setting}"' in text)
    without = listed.replace(f'"{setting}", ', "").replace(f', "{setting}"', "")
    return front_end(f"a change of {setting} is not noticed", SETTINGS, f"*({listed})", f"*({without})")


_LISTED = (
    '"betas", "optim_bits", "min_8bit_size", "percentile_clipping", "block_wise", "block_size", "state_format"',
    '"rounding", "cautious", "grad_clip", "param_rounding", "master_bits", "nonfinite", "seed"',
)
#: Settings of which a change in a running optimizer needs no other state.
CHANGEABLE = ("percentile_clipping", "rounding", "cautious", "grad_clip", "param_rounding", "nonfinite", "seed")

LAUNCHES = (
    # clipping
    front_end(
        "the clipping factor goes to another tensor",
        FACTORS,
        f"    for j, norm in zip(clipped, norms.unbind(), strict=True):\n        factors[j] = {_FACTORS}\n",
        f"    for at, (j, norm) in enumerate(zip(clipped, norms.unbind(), strict=True)):\n        factors[at] = {_FACTORS}\n",
    ),
    front_end("clipping does not unscale", FACTORS, "norm if unscale is None else norm * unscale", "norm"),
    front_end("clipping unscales the norm twice", FACTORS, "else norm * unscale,", "else norm * unscale * unscale,"),
    front_end(
        "clipping unscales the gradient twice",
        RUN,
        "scalars = replace(scalars, grad_scale=scalars.grad_scale * clip)",
        "scalars = replace(scalars, grad_scale=scalars.grad_scale * clip * (1.0 if unscale is None else unscale))",
    ),
    front_end(
        "clipping forgets the loss scale",
        RUN,
        "scalars = replace(scalars, grad_scale=scalars.grad_scale * clip)",
        "scalars = replace(scalars, grad_scale=group.scalars.now(skipped, None).grad_scale * clip)",
    ),
    front_end(
        "clipping forgets to maximize",
        RUN,
        "scalars = replace(scalars, grad_scale=scalars.grad_scale * clip)",
        "scalars = replace(scalars, grad_scale=scalars.grad_scale.abs() * clip)",
    ),
    front_end("clipping by the settings of the first", FACTORS, "_clip_factor(groups[j],", "_clip_factor(groups[0],"),
    front_end("clipping by the norms of another", FACTORS, "states[j], norm if", "states[clipped[-1]], norm if"),
    front_end(
        "clipping by the step of the first", FACTORS, "else norm * unscale, steps[j])", "else norm * unscale, steps[0])"
    ),
    front_end("the percentile alone limits", FACTORS, "torch.where(usual < limit, usual, limit)", "usual"),
    front_end(
        "a percentile by itself does not clip",
        FACTORS,
        'keeps_norms(group) or bool(group["grad_clip"] > 0)',
        'bool(group["grad_clip"] > 0)',
    ),
    front_end(
        "clipping of all, where the first is clipped",
        PREPARE,
        "group.clips = any(map(factors.clips, group.groups))",
        "group.clips = factors.clips(group.groups[0])",
    ),
    front_end(
        "norms of gradients to raise at are whole",
        FACTORS,
        '"propagate" if group["nonfinite"] == "propagate" else "skip"',
        '"skip" if group["nonfinite"] == "skip" else "propagate"',
    ),
    front_end(
        "the history ends after 100 norms",
        CLIPPING,
        _PLACE,
        "place = torch.as_tensor(step, device=norms.device).clamp(max=HISTORY - 1)",
    ),
    front_end(
        "the history is of 99 norms",
        CLIPPING,
        _PLACE,
        "place = torch.as_tensor(step % (HISTORY - 1), device=norms.device)",
    ),
    front_end(
        "long gradients are summed by torch",
        CLIPPING,
        "return _halve(torch.stack([_leaf(run, nonfinite) for run in flat.split(_LEAF)]))",
        "return torch.stack([_leaf(run, nonfinite) for run in flat.split(_LEAF)]).sum()",
    ),
    front_end("squares are summed in longer runs", CLIPPING, "_LEAF = 1 << 16", "_LEAF = 1 << 17"),
    front_end("squares are summed in shorter runs", CLIPPING, "_LEAF = 1 << 16", "_LEAF = 1 << 15"),
    front_end(
        "only the first run of squares", CLIPPING, "for run in flat.split(_LEAF)]", "for run in flat.split(_LEAF)[:1]]"
    ),
    # what belongs to a tensor among several
    front_end(
        "rates of the first group for all",
        SCALARS,
        "self.upload([column[id(group)] for group in groups]",
        "self.upload([0 for group in groups]",
    ),
    front_end(
        "the mask's factor by the first one's size",
        PREPARE,
        "[entry.param.numel() for entry in group.entries]",
        "[group.entries[0].param.numel() for entry in group.entries]",
    ),
    front_end(
        "the first mask of a launch for all",
        PREPARE,
        _KEY,
        'LaunchKey(plan, hyper, device, param.device, group["cautious"] and next((k.cautious for k in found if k.plan == plan), group["cautious"]), raises, shards)',
    ),
    front_end(
        "betas of the first group for all",
        PREPARE,
        'hyper = Hyper.of(group["betas"],',
        'hyper = Hyper.of(param_groups[0]["betas"],',
    ),
    front_end(
        "rounding of the first group for all",
        PREPARE,
        'group["seed"], group["rounding"])\n        for',
        'group["seed"], param_groups[0]["rounding"])\n        for',
    ),
    front_end(
        "raises where any group does",
        PREPARE,
        'group["nonfinite"] == "raise", sharding',
        'any(g["nonfinite"] == "raise" for g in param_groups), sharding',
    ),
    front_end(
        "gradients of the first launch for all",
        CACHE,
        "own, at = grads[at : at + len(found.entries)], at + len(found.entries)",
        "own, at = (grads * 2)[: len(found.entries)], at + len(found.entries)",
    ),
    front_end(
        "one scale of a launch for all",
        RUN,
        '            state["exp_avg_scale"].copy_(scale)\n',
        '            state["exp_avg_scale"].copy_(formats.block_scale(scalars.absmax, plan.format)[0] + 0 * scale)\n',
    ),
    # what comes in which order
    front_end(
        "the largest momentum without clipping",
        RUN,
        "absmax=_absmax(group, grads, scalars))",
        "absmax=_absmax(group, grads, group.scalars.now(skipped, unscale)))",
    ),
    front_end(
        "aligned elements without clipping",
        RUN,
        "lr=_cautious_rates(group, grads, scalars))",
        "lr=_cautious_rates(group, grads, group.scalars.now(skipped, unscale)))",
    ),
    # loss scales
    front_end(
        "the loss scale multiplies",
        RUN,
        "binary64(loss_scale.to(device)).reciprocal().float()",
        "binary64(loss_scale.to(device)).float()",
    ),
    front_end(
        "the loss scale of the first step stays",
        SCALARS,
        "        return replace(self._scalars, grad_scale=self._scalars.grad_scale * unscale)\n",
        "        self._scalars = replace(self._scalars, grad_scale=self._scalars.grad_scale * unscale)\n        return self._scalars\n",
    ),
    front_end(
        "the loss scale takes the sign of maximize",
        SCALARS,
        "grad_scale=self._scalars.grad_scale * unscale)",
        "grad_scale=unscale.expand_as(self._scalars.grad_scale))",
    ),
    # positions
    front_end(
        "frozen parameters have no position",
        PREPARE,
        "            position += 1\n",
        "            position += param.requires_grad\n",
    ),
    front_end(
        "position of the first in its launch",
        PREPARE,
        "sharding.slot(plan, entry.param, state, entry.position)",
        "sharding.slot(plan, entry.param, state, group.entries[0].position)",
    ),
    # what changes between steps
    front_end("a rate that comes back is not noticed", CACHE, "            self._groups.seen(groups)\n", ""),
    front_end(
        "betas that change in place are not noticed",
        SNAPSHOT,
        "            and _same(_flat(_betas, groups), self._betas)\n",
        "",
    ),
    front_end(
        "a learning rate in a tensor is read once",
        SNAPSHOT,
        "if not all(map(is_, _rates(group), rates)) or isinstance(rates[0], Tensor)",
        "if not all(map(is_, _rates(group), rates))",
    ),
    *map(_forgotten, CHANGEABLE),
)
