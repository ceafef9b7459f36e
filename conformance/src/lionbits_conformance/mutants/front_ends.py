"""Wrong front ends: texts of the optimizer and its nouns, replaced."""

from .mutant import front_end

FRONT_ENDS = (
    front_end(
        "betas swapped", "lionbits_reference/spec/plan.py", "        b1, b2 = betas\n", "        b2, b1 = betas\n"
    ),
    front_end(
        "1-b formed in binary32",
        "lionbits_reference/spec/plan.py",
        "float32(1 - b1), float32(b2), float32(1 - b2)",
        "float32(1 - float32(b1)), float32(b2), float32(1 - float32(b2))",
    ),
    front_end(
        "decay without the rate",
        "lionbits_reference/spec/plan.py",
        "return float32(1 - float32(float32(lr) * decay))",
        "return float32(1 - decay)",
    ),
    front_end(
        "decay forgotten",
        "lionbits_reference/spec/plan.py",
        "return float32(1 - float32(float32(lr) * decay))",
        "return 1.0",
    ),
    front_end(
        "keep rounded once too few",
        "lionbits_reference/spec/plan.py",
        "return float32(1 - float32(float32(lr) * decay))",
        "return float32(1 - lr * weight_decay)",
    ),
    front_end("rate twice", "lionbits/scalars.py", 'lr = [group["lr"] for', 'lr = [2 * group["lr"] for'),
    front_end(
        "decay of the first group for all",
        "lionbits/scalars.py",
        'decay_factor(group["lr"], group["weight_decay"])',
        'decay_factor(group["lr"], self._groups[0]["weight_decay"])',
    ),
    front_end(
        "maximize of the first group for all",
        "lionbits/scalars.py",
        '-1.0 if group["maximize"] else 1.0',
        '-1.0 if self._groups[0]["maximize"] else 1.0',
    ),
    front_end(
        "position counts gradients, not parameters",
        "lionbits/work.py",
        "            position += 1\n",
        "            position += param.grad is not None\n",
    ),
    front_end(
        "position within the group",
        "lionbits/work.py",
        "    for group in param_groups:\n        options.check(group)",
        "    for group in param_groups:\n        position = 0\n        options.check(group)",
    ),
    front_end(
        "step counted from zero",
        "lionbits/work.py",
        "update(step=counts.tensor(0))",
        "update(step=counts.tensor(1))",
    ),
    front_end(
        "history off by one",
        "lionbits_reference/clipping.py",
        "return norms.sort().values[q - 1]",
        "return norms.sort().values[min(q, 99)]",
    ),
    front_end(
        "history without the present",
        "lionbits/factors.py",
        '        clipping.remember(state["grad_norms"], norm, step)\n        usual = clipping.percentile_limit(state["grad_norms"], percentile)\n',
        '        usual = clipping.percentile_limit(state["grad_norms"], percentile)\n        clipping.remember(state["grad_norms"], norm, step)\n',
    ),
    front_end(
        "a first norm of zero fills the history",
        "lionbits_reference/clipping.py",
        "    norms.copy_(torch.where(norms.amax() == 0, norm, norms))\n",
        "    norms.copy_(norm) if step == 1 else None\n",
    ),
    front_end("norm in binary32", "lionbits_reference/clipping.py", "x = binary64(run)", "x = run.to(torch.float32)"),
    front_end(
        "one NaN stops the clipping of its tensor",
        "lionbits_reference/clipping.py",
        '    if nonfinite == "skip":\n',
        '    if nonfinite == "never":\n',
    ),
    front_end(
        "clipped a little always",
        "lionbits_reference/clipping.py",
        "return torch.where(norm > limit, limit / norm, 1.0)",
        "return (limit / (norm + 1e-6)).clamp(max=1.0)",
    ),
    front_end(
        "clips gradients of every norm",
        "lionbits_reference/clipping.py",
        "return torch.where(norm > limit, limit / norm, 1.0)",
        "return limit / norm if limit.isfinite() else torch.ones_like(norm)",
    ),
    front_end(
        "mask divides by aligned + 1", "lionbits_reference/caution.py", "moving = k.clamp(min=1)", "moving = k + 1"
    ),
    front_end("c-optim as the mask", "lionbits_reference/caution.py", "moving = k + 1", "moving = k.clamp(min=1)"),
    front_end(
        "timm without its floor",
        "lionbits_reference/caution.py",
        "moving = torch.maximum(k, n * 1e-3)",
        "moving = k.clamp(min=1)",
    ),
    front_end(
        "cautious factor forgotten",
        "lionbits/factors.py",
        "return replace(scalars, lr=scalars.lr * caution.rate_factor(work.launch.cautious, aligned, work.numel))",
        "return scalars",
    ),
    front_end(
        "cautious factor on the decay too",
        "lionbits/factors.py",
        "return replace(scalars, lr=scalars.lr * caution.rate_factor(work.launch.cautious, aligned, work.numel))",
        "factor = caution.rate_factor(work.launch.cautious, aligned, work.numel); return replace(scalars, lr=scalars.lr * factor, keep=(scalars.keep * factor).clamp(max=1))",
    ),
    front_end(
        "cautious factor stays for the next step",
        "lionbits/factors.py",
        "return replace(scalars, lr=scalars.lr * caution.rate_factor(work.launch.cautious, aligned, work.numel))",
        "scalars.lr.mul_(caution.rate_factor(work.launch.cautious, aligned, work.numel)); return scalars",
    ),
    front_end(
        "small tensors quantised too",
        "lionbits_reference/spec/format.py",
        "math.prod(shape) >= min_8bit_size and matrix_shape(shape)[1] >= MIN_COLUMNS",
        "math.prod(shape) >= 1 and matrix_shape(shape)[1] >= MIN_COLUMNS",
    ),
    front_end(
        "short rows quantised too",
        "lionbits_reference/spec/format.py",
        "math.prod(shape) >= min_8bit_size and matrix_shape(shape)[1] >= MIN_COLUMNS",
        "math.prod(shape) >= min_8bit_size",
    ),
    front_end(
        "block of the default, whatever is asked",
        "lionbits_reference/spec/format.py",
        "default_block if block_size is None else block_size)",
        "default_block)",
    ),
    front_end(
        "rows are the last dimension",
        "lionbits_reference/spec/format.py",
        "return shape[0], math.prod(shape[1:])",
        "return math.prod(shape[:-1]), shape[-1]",
    ),
    front_end(
        "rounding asked for is not used",
        "lionbits/work.py",
        'Hyper.of(group["betas"], group["seed"], group["rounding"])',
        'Hyper.of(group["betas"], group["seed"])',
    ),
    front_end(
        "seed asked for is not used",
        "lionbits/work.py",
        'Hyper.of(group["betas"], group["seed"], group["rounding"])',
        'Hyper.of(group["betas"], 0, group["rounding"])',
    ),
    front_end(
        "non-finite policy asked for is not used",
        "lionbits/options.py",
        '"propagate" if nonfinite == "propagate" else "skip"',
        '"skip"',
    ),
    front_end(
        "24-bit masters kept as 32",
        "lionbits/options.py",
        'master_bits=master_bits if rounding == "compensated" else 32',
        "master_bits=32",
    ),
    front_end(
        "new tensor-wise scale not stored",
        "lionbits/work.py",
        '            state["exp_avg_scale"].copy_(scale)\n',
        "            scale.abs()\n",
    ),
    front_end(
        "state cast to the parameter's dtype on load",
        "lionbits/checkpoint.py",
        "    held |= {key: Sealed(state) for key, _, _, state in read_states(groups, completed, state_dict)}\n",
        "    held |= {key: state for key, _, _, state in read_states(groups, completed, state_dict)}\n",
    ),
    front_end(
        "loaded step forgotten",
        "lionbits/examination.py",
        "own[counts.KEY] = counts.tensor(step)",
        "own[counts.KEY] = counts.tensor(min(step, 1))",
    ),
    front_end(
        "loaded state is the dict's own",
        "lionbits/paging/arrangement.py",
        "copies[j][key] = value.detach().to(near, copy=True, memory_format=contiguous)",
        "copies[j][key] = value.detach().to(near)",
    ),
    front_end(
        "copies lose their state",
        "lionbits/copies.py",
        "        optimizer.state.update(zip(params, copies, strict=True))\n",
        "        optimizer.state.update((param, {}) for param in params)\n",
    ),
    front_end(
        "page not written back",
        "lionbits/paging/pages.py",
        "far.copy_(near, non_blocking=True)",
        "near.copy_(far, non_blocking=True)",
    ),
    front_end(
        "frame filled before its page has left",
        "lionbits/paging/movement.py",
        "after = (frames.free[frame], made)",
        "after = ()",
    ),
    front_end(
        "page updated before it has arrived",
        "lionbits/paging/movement.py",
        "            lanes.compute_after(arrived)\n",
        "            lanes.compute_after(None)\n",
    ),
    front_end(
        "numbers of the wrong slots for a page",
        "lionbits/paging/movement.py",
        "at = [torch.tensor(page.places, device=there) for page in pages]",
        "at = [torch.tensor(page.places, device=there) * 0 for page in pages]",
    ),
    front_end(
        "settings of the checkpoint ignored",
        "lionbits/checkpoint.py",
        "    complete |= {key: value for key, value in saved.items() if key != VERSION_KEY}\n",
        '    complete |= {"params": saved["params"]}\n',
    ),
    front_end(
        "skip count not kept",
        "lionbits/steady.py",
        "now = torch.zeros_like(total) if w.launch.raises else total\n",
        "now = torch.zeros_like(total)\n",
    ),
    front_end(
        "learning rate of the step before",
        "lionbits/steady.py",
        "                w.numbers.write()\n",
        "                del w\n",
    ),
    front_end(
        "steps counted on the host alone", "lionbits/steady.py", "w.numbers.step.add_(1)", "w.numbers.step.add_(0)"
    ),
    front_end(
        "a parameter whose first gradient comes late is not noticed",
        "lionbits/steady.py",
        "for param in self._others if param.grad is not None]",
        "for param in self._others if param is None]",
    ),
    front_end(
        "a swapped p.data is not noticed",
        "lionbits/watch.py",
        "            and list(map(torch.Tensor.data_ptr, params)) == self._addresses\n",
        "",
    ),
    front_end(
        "a replaced state tensor is not noticed",
        "lionbits/watch.py",
        "            and [list(map(id, map(get, held))) for get, held in self._tensors] == self._ids\n            and not self._dead\n",
        "",
    ),
    front_end(
        "a replaced count is not noticed",
        "lionbits/watch.py",
        "            and _same(list(map(_step, self._counted)), self.steps)\n",
        "",
    ),
    front_end(
        "state in another dict is not noticed",
        "lionbits/watch.py",
        "            and _same(states.values(), self._dicts)\n",
        "",
    ),
)
