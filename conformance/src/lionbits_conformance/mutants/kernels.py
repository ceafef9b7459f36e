"""Wrong kernels: texts of the reference, replaced. Old and new are quoted whole, however long."""

from .mutant import kernel

_DIRECTION = "u = torch.sign(blend(m, g, hyper.b1, hyper.one_minus_b1))"
_FMA = "(m.double() * b + (g * one_minus_b).double()).float()"
_FMA_1 = "(m.double() * hyper.b1 + (g * hyper.one_minus_b1).double()).float()"
_FMA_2 = "((m * hyper.b1).double() + g.double() * hyper.one_minus_b1).float()"
_HALVES = "return column >> 1, (column & 1) << 4"

KERNELS = (
    # the rule
    kernel("decay after the step", "update.py", "moved = p * keep - lr * u", "moved = (p - lr * u) * keep"),
    kernel(
        "decay coupled to the step", "update.py", "moved = p * keep - lr * u", "moved = p - (lr * u + (p - p * keep))"
    ),
    kernel("fused multiply-add", "update.py", "blended: Tensor = m * b + g * one_minus_b", f"blended = {_FMA}"),
    kernel(
        "lerp form", "update.py", "blended: Tensor = m * b + g * one_minus_b", "blended = m + one_minus_b * (g - m)"
    ),
    kernel("difference form", "update.py", "blended: Tensor = m * b + g * one_minus_b", "blended = (m - g) * b + g"),
    kernel("fused multiply-add in the direction", "update.py", _DIRECTION, f"u = torch.sign({_FMA_1})"),
    kernel("the other fused multiply-add in the direction", "update.py", _DIRECTION, f"u = torch.sign({_FMA_2})"),
    kernel("lerp in the direction", "update.py", _DIRECTION, "u = torch.sign(m + hyper.one_minus_b1 * (g - m))"),
    kernel("difference form in the direction", "update.py", _DIRECTION, "u = torch.sign((m - g) * hyper.b1 + g)"),
    kernel(
        "direction in bfloat16",
        "update.py",
        _DIRECTION,
        "u = torch.sign(blend(m.bfloat16(), g.bfloat16(), hyper.b1, hyper.one_minus_b1).float())",
    ),
    kernel(
        "1-b of the direction formed in the kernel",
        "update.py",
        _DIRECTION,
        "u = torch.sign(blend(m, g, hyper.b1, float(1 - torch.tensor(hyper.b1))))",
    ),
    kernel(
        "1-b formed in the kernel",
        "update.py",
        "blended: Tensor = m * b + g * one_minus_b",
        "blended = m * b + g * (1 - torch.tensor(b))",
    ),
    kernel(
        "update from the new momentum",
        "update.py",
        "u = direction(m, g, hyper, caution)",
        "u = direction(next_momentum(m, g, hyper, nonfinite)[0], g, hyper, caution)",
    ),
    kernel(
        "betas swapped in the kernel",
        "update.py",
        "advanced = blend(m, g, hyper.b2, hyper.one_minus_b2)",
        "advanced = blend(m, g, hyper.b1, hyper.one_minus_b1)",
    ),
    kernel(
        "zero counts as positive",
        "update.py",
        _DIRECTION,
        "u = torch.where(blend(m, g, hyper.b1, hyper.one_minus_b1) >= 0, 1.0, -1.0)",
    ),
    kernel(
        "sign by copysign",
        "update.py",
        _DIRECTION,
        "u = torch.copysign(torch.ones_like(m), blend(m, g, hyper.b1, hyper.one_minus_b1))",
    ),
    kernel(
        "subnormal c flushed to zero",
        "update.py",
        _DIRECTION,
        "c = blend(m, g, hyper.b1, hyper.one_minus_b1); u = torch.sign(torch.where(c.abs() < 2.0**-126, 0.0, c))",
    ),
    kernel(
        "mask by the product of signs and values",
        "update.py",
        "return torch.where(u == sign, u, 0.0)",
        "return torch.where(blend(m, g, hyper.b1, hyper.one_minus_b1) * g > 0, u, 0.0)",
    ),
    kernel("masked elements keep moving", "update.py", "return torch.where(u == sign, u, 0.0)", "return u"),
    kernel(
        "conflict takes zero, not the gradient",
        "update.py",
        "return torch.where(u == -sign, sign, u)",
        "return torch.where(u == -sign, 0.0, u)",
    ),
    kernel(
        "skipped parameter still decays",
        "update.py",
        "return Updated(torch.where(applied, moved, p)",
        "return Updated(torch.where(applied, moved, p * keep)",
    ),
    kernel(
        "skipped momentum becomes zero",
        "update.py",
        "return torch.where(applied, advanced, m), applied",
        "return torch.where(applied, advanced, 0.0), applied",
    ),
    kernel(
        "infinity is let through",
        "update.py",
        "applied = advanced.abs() < torch.inf",
        "applied = ~torch.isnan(advanced)",
    ),
    kernel(
        "skipped elements count as aligned",
        "update.py",
        '(direction(m, g, hyper, "mask") != 0) & applied',
        '(direction(m, g, hyper, "mask") != 0) | ~applied',
    ),
    # the formats
    kernel(
        "scale by the reciprocal of top",
        "formats.py",
        "absmax.clamp(max=HUGE) / _top(absmax, format))",
        "absmax.clamp(max=HUGE) * (1 / _top(absmax, format)))",
    ),
    kernel(
        "reciprocal that is an ulp short",
        "formats.py",
        "y = (m * inverse).abs()",
        "y = (m * (inverse * (1 - 2.0**-24))).abs()",
    ),
    kernel(
        "largest code not held",
        "formats.py",
        "usable.to(torch.int32) * format.largest_code",
        "usable.to(torch.int32) * (format.largest_code - 1)",
    ),
    kernel(
        "ties toward zero",
        "formats.py",
        "(t + (noise << (format.shift - 16)))",
        "(t + ((noise << (format.shift - 16)) - 1).clamp(min=0) if isinstance(noise, torch.Tensor) else t + (noise << (format.shift - 16)) - 1)",
    ),
    kernel(
        "dither one bit too low", "formats.py", "(noise << (format.shift - 16))", "(noise << (format.shift - 16) >> 1)"
    ),
    kernel(
        "subnormal codes as normal ones",
        "formats.py",
        "return (torch.minimum(normal, subnormal) | sign)",
        "return (torch.where(normal == _ONE, 0, normal) | sign)",
    ),
    kernel("zero keeps its sign", "formats.py", "m.view(torch.int32) & -k", "m.view(torch.int32)"),
    kernel("tiny blocks are kept", "formats.py", "TINY = 2.0**-100", "TINY = 0.0"),
    kernel(
        "nibbles in the other order",
        "formats.py",
        "packed = packed | (slots[..., j] << (j * bits))",
        "packed = (packed << bits) | slots[..., j]",
    ),
    kernel(
        "last short block filled with ones",
        "formats.py",
        "return (pad(x, (0, short)) if short else x)",
        "return (pad(x, (0, short), value=1.0) if short else x)",
    ),
    kernel(
        "scale of the neighbour block",
        "formats.py",
        "return x[..., None].expand(",
        "return x.roll(1, -1)[..., None].expand(",
    ),
    kernel(
        "absmax by the signed maximum",
        "formats.py",
        "return _in_blocks(m, format).abs().amax(dim=-1)",
        "return _in_blocks(m, format).amax(dim=-1).abs()",
    ),
    kernel(
        "NaN lost in the maximum",
        "formats.py",
        "return _in_blocks(m, format).abs().amax(dim=-1)",
        "return _in_blocks(m, format).abs().nan_to_num(0.0, posinf=torch.inf).amax(dim=-1)",
    ),
    kernel(
        "scale of the old momentum",
        "backend.py",
        "absmax = formats.block_absmax(m, format)",
        "absmax = formats.block_absmax(_load_momentum(piece, format), format)",
    ),
    kernel(
        "tensor-wise scale stored too early",
        "backend.py",
        "    if absmax is None:\n",
        '    if absmax is not None:\n        piece.state["exp_avg_scale"].fill_(float(formats.block_scale(absmax, format)) * 2)\n    if absmax is None:\n',
    ),
    kernel("the largest momentum is not held", "formats.py", "HUGE = 2.0**127", "HUGE = 2.0**128 - 2.0**104"),
    # the noise
    kernel("halves of the hash in the other order", "rounding.py", _HALVES, "return column >> 1, (~column & 1) << 4"),
    kernel("one noise for both of a pair", "rounding.py", _HALVES, "return column >> 1, (column & 0) << 4"),
    kernel("noise without the step", "rounding.py", "(step * _GOLDEN_16)", "(step * 0)"),
    kernel("noise of the step before", "rounding.py", "(step * _GOLDEN_16)", "((step - 1) * _GOLDEN_16)"),
    kernel(
        "stochastic draws without the step",
        "rounding.py",
        "return fmix32(salt ^ word(step * _GOLDEN_32)), ",
        "return salt, ",
    ),
    kernel(
        "index within the shard",
        "backend.py",
        "return rounding.noise(mode, salt, step, piece.start, piece.row_pitch,",
        "return rounding.noise(mode, salt, step, 0, piece.row_pitch,",
    ),
    kernel(
        "pairs that straddle rows",
        "backend.py",
        "piece.start, piece.row_pitch, piece.matrix)",
        "piece.start, piece.matrix[1], piece.matrix)",
    ),
    kernel("index above 2^33 wraps", "rounding.py", "return fmix32(words ^ high)", "return fmix32(words ^ (high & 0))"),
    kernel(
        "parameter position ignored",
        "backend.py",
        "salt = rounding.salt(hyper.seed, piece.index, purpose)",
        "salt = rounding.salt(hyper.seed, 0, purpose)",
    ),
    kernel(
        "one salt for both purposes",
        "backend.py",
        "salt = rounding.salt(hyper.seed, piece.index, purpose)",
        "salt = rounding.salt(hyper.seed, piece.index, 0)",
    ),
    kernel(
        "upper half of the seed ignored",
        "rounding.py",
        "mixed = fmix32(fmix32(seed & _MASK) ^ (seed >> 32))",
        "mixed = fmix32(fmix32(seed & _MASK))",
    ),
    # the parameter
    kernel(
        "bfloat16 truncated",
        "backend.py",
        "    stored = p\n",
        "    stored = p if plan.param_dtype != torch.bfloat16 else (p.view(torch.int32) & ~0xFFFF).view(torch.float32)\n",
    ),
    kernel(
        "decay rounded before the step",
        "update.py",
        "moved = p * keep - lr * u",
        "moved = (p * keep).bfloat16().float() - lr * u",
    ),
    kernel(
        "what bfloat16 drops is not read back",
        "rounding.py",
        "    if residual is None:\n",
        "    if rest is not None:\n",
    ),
    kernel(
        "compensated parameter cut, not rounded",
        "rounding.py",
        "kept = _upper_half(bits + 0x8000)",
        "kept = _upper_half(bits + 0x7FFF)",
    ),
    kernel("24 bits by truncation", "rounding.py", "bits = (bits + (noise >> 8)) & ~0xFF", "bits = bits & ~0xFF"),
    # many tensors
    kernel(
        "numbers of slot 0 for all",
        "backend.py",
        "scalars.lr[j], scalars.keep[j], hyper",
        "scalars.lr[0], scalars.keep[0], hyper",
    ),
    kernel(
        "a gradient is kept by what was prepared",
        "backend.py",
        "    del grads\n    return Prepared(plan, tuple(slots))",
        "    prepare.kept = grads\n    return Prepared(plan, tuple(slots))",
    ),
    kernel(
        "gradient scale of slot 0 for all",
        "backend.py",
        "    for j, piece, grad in _pieces(prepared, grads):\n        p = _load_param(piece, plan)\n        m, g = _load_momentum(piece, plan.format), _load_grad(piece, grad, scalars.grad_scale[j])",
        "    for j, piece, grad in _pieces(prepared, grads):\n        p = _load_param(piece, plan)\n        m, g = _load_momentum(piece, plan.format), _load_grad(piece, grad, scalars.grad_scale[0])",
    ),
    kernel(
        "strides of the gradient ignored",
        "backend.py",
        "return grad.reshape(piece.matrix)",
        "return grad.as_strided(grad.shape, torch.empty(grad.shape).stride()).reshape(piece.matrix)",
    ),
    kernel(
        "last column left out",
        "backend.py",
        "piece.param.copy_(stored.view(piece.param.shape))",
        "piece.param[..., : max(piece.param.shape[-1] - (piece.param.shape[-1] > 200), 1)].copy_(stored.view(piece.param.shape)[..., : max(piece.param.shape[-1] - (piece.param.shape[-1] > 200), 1)]) if piece.param.dim() else piece.param.copy_(stored.view(()))",
    ),
)
