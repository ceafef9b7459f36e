"""Wrong launches: faults of what a front end decides for several tensors, groups and steps together.

Each is one that people meet with groups of different settings, loss scales, frozen parameters or schedules.
"""

from .mutant import Mutant, front_end

FACTORS, PREPARE, RUN, SCALARS, CACHE, SNAPSHOT = (
    f"lionbits/step/{name}.py" for name in ("factors", "prepare", "run", "scalars", "cache", "snapshot")
)
CLIPPING, SETTINGS = "lionbits_reference/clipping.py", "lionbits/settings.py"

_KEY = 'LaunchKey(plan, hyper, device, param.device, group["cautious"], raises, shards, shares)'
_PLACE = "(steps % HISTORY)"
_SCALED = "scalars = replace(scalars, grad_scale=scalars.grad_scale * factors)"


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
        "dtype=torch.float32).scatter(0, self._places,",
        "dtype=torch.float32).scatter(0, torch.arange(len(norms), device=norms.device),",
    ),
    front_end("clipping does not unscale", FACTORS, "norms if unscale is None else norms * unscale", "norms"),
    front_end(
        "clipping unscales the norm twice", FACTORS, "else norms * unscale\n", "else norms * unscale * unscale\n"
    ),
    front_end(
        "clipping unscales the gradient twice",
        RUN,
        _SCALED,
        "scalars = replace(scalars, grad_scale=scalars.grad_scale * factors * (1.0 if unscale is None else unscale))",
    ),
    front_end(
        "clipping forgets the loss scale",
        RUN,
        _SCALED,
        "scalars = replace(scalars, grad_scale=group.scalars.now(skipped, None).grad_scale * factors)",
    ),
    front_end(
        "clipping forgets to maximize",
        RUN,
        _SCALED,
        "scalars = replace(scalars, grad_scale=scalars.grad_scale.abs() * factors)",
    ),
    front_end(
        "clipping by the settings of the first",
        FACTORS,
        "self._limits = upload(limits,",
        "self._limits = upload(limits[:1] * len(limits),",
    ),
    front_end(
        "clipping by the norms of another",
        FACTORS,
        "states[self._clipped[i]] for i in keeping]",
        "states[self._clipped[keeping[-1]]] for i in keeping]",
    ),
    front_end(
        "clipping by the step of the first",
        FACTORS,
        "self._usual_limits(norms, steps[self._places])",
        "self._usual_limits(norms, steps[:1].expand(len(norms)))",
    ),
    front_end(
        "percentiles of the first",
        FACTORS,
        'upload([clipped[i]["percentile_clipping"] for i in keeping],',
        'upload([clipped[keeping[0]]["percentile_clipping"] for i in keeping],',
    ),
    front_end(
        "norms are remembered of the first tensors",
        FACTORS,
        "norms[self._keeping], steps[self._keeping])",
        "norms[: len(held)], steps[self._keeping])",
    ),
    front_end("the percentile alone limits", FACTORS, "torch.where(usual < limits, usual, limits)", "usual"),
    front_end(
        "a percentile by itself does not clip",
        FACTORS,
        'keeps_norms(group) or bool(group["grad_clip"] > 0)',
        'bool(group["grad_clip"] > 0)',
    ),
    front_end(
        "clipping of all, where the first is clipped",
        PREPARE,
        "if any(map(factors.clips, group.groups)):",
        "if factors.clips(group.groups[0]):",
    ),
    front_end(
        "norms of gradients to raise at are whole",
        PREPARE,
        "factors.Clipping(*clipped, device, plan.nonfinite,",
        'factors.Clipping(*clipped, device, "propagate" if group.key.raises else plan.nonfinite,',
    ),
    front_end(
        "the history ends after 100 norms",
        CLIPPING,
        _PLACE,
        "steps.clamp(max=HISTORY - 1)",
    ),
    front_end(
        "the history is of 99 norms",
        CLIPPING,
        _PLACE,
        "(steps % (HISTORY - 1))",
    ),
    front_end(
        "long gradients are summed by torch",
        CLIPPING,
        "    return pairwise.sums(x * x, runs)\n",
        "    return torch.stack([part.sum() for part in (x * x).split(runs)])\n",
    ),
    front_end("squares are summed in longer runs", CLIPPING, "_RUN = 1 << 16", "_RUN = 1 << 17"),
    front_end("squares are summed in shorter runs", CLIPPING, "_RUN = 1 << 16", "_RUN = 1 << 15"),
    front_end(
        "only the first portion of squares",
        CLIPPING,
        "        for first in range(0, max(total, 1), _AT_ONCE):",
        "        for first in range(0, 1):",
    ),
    # what belongs to a tensor among several
    front_end(
        "rates of the first group for all",
        SCALARS,
        "upload([column[id(group)] for group in groups]",
        "upload([0 for group in groups]",
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
        'LaunchKey(plan, hyper, device, param.device, group["cautious"] and next((k.cautious for k in found if k.plan == plan), group["cautious"]), raises, shards, shares)',
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
        "scales.unbind())",
        "scales[:1].expand_as(scales).unbind())",
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
