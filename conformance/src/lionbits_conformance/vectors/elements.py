"""Cases of one element, and of the numbers that whole tensors share."""

from __future__ import annotations

from typing import Any

from lionbits_conformance.oracle import clipping, rule
from lionbits_conformance.oracle.floats import BINARY32, BINARY64, ONE, ZERO, Number, of_float
from lionbits_conformance.oracle.records import TYPES, Settings

from .draws import Draws
from .texts import double, single, words

Case = dict[str, Any]

BETAS = ((0.9, 0.99), (0.95, 0.98), (0.5, 0.5), (0.0, 0.99), (0.9, 0.0), (0.3, 0.9999999999999999))
RATES = (1e-4, 3e-3, 0.1, 1.0, 0.0, 1e-42)
DECAYS = (0.0, 0.1, 1.0, 30.0)
FACTORS = (1.0, -1.0, 1.52587890625e-05, 0.3333333432674408, -0.009999999776482582)


def arithmetic() -> list[Case]:
    """g, c, u, p' and m' of single elements."""
    draws = Draws("arithmetic")
    cases = []
    for number in range(480):
        kind = ("normal", "cancelling", "edges", "tiny", "huge", "zeros", "notfinite", "cancelling")[number % 8]
        settings = Settings(lr=draws.pick(RATES), betas=draws.pick(BETAS), weight_decay=draws.pick(DECAYS))
        rates = rule.rates_of(settings)
        m = draws.value("normal" if kind in {"cancelling", "notfinite"} else kind, draws.below(8) - 4)
        factor = BINARY32.round(of_float(draws.pick(FACTORS)))
        if kind == "cancelling":
            grad, factor = draws.cancelling(m, rates.b1, rates.one_minus_b1), ONE
        else:
            grad = draws.value(kind, draws.below(8) - 4)
        if kind == "notfinite" and number % 16 == 14:
            grad = draws.pick(((0, -1, 0), (1, -1, 0), (0, -2, 0)))
        p = draws.value("edges" if number % 5 == 0 else "normal", 2)
        cases.append(_element(p, m, grad, factor, rates, draws))
    return cases


def _element(p: Number, m: Number, grad: Number, factor: Number, rates: rule.Rates, draws: Draws) -> Case:
    cautious = draws.pick((None, None, "mask", "gradient"))
    nonfinite = draws.pick(("skip", "skip", "propagate"))
    g = BINARY32.mul(grad, factor)
    after = rule.moved(p, m, g, rates, cautious, nonfinite)
    return {
        "p": single(p),
        "m": single(m),
        "grad": single(grad),
        "grad_scale": single(factor),
        **{name: single(value) for name, value in rates._asdict().items()},
        "cautious": cautious,
        "nonfinite": nonfinite,
        "g": single(g),
        "c": single(rule.blend(m, g, rates.b1, rates.one_minus_b1)),
        "u": 0 if after.skipped else rule.direction(m, g, rates, cautious),
        "aligned": rule.is_aligned(m, g, rates, nonfinite),
        "skipped": after.skipped,
        "p_new": single(after.param),
        "m_new": single(after.momentum),
    }


def numbers() -> list[Case]:
    """Numbers that a parameter's elements share: rates, cautious factors, norms, clipping histories."""
    return [*_rates(), *_caution(), *_norms(), *_delicate(), *_histories()]


def _rates() -> list[Case]:
    draws = Draws("rates")
    cases = []
    for number in range(60):
        lr, decay, betas = draws.pick((*RATES, 3e38)), draws.pick((*DECAYS, 1e-30)), draws.pick(BETAS)
        if number >= 20:  # any doubles below 1, whose rounding matters
            lr, decay = _fraction(draws), _fraction(draws)
            betas = (_fraction(draws), _fraction(draws))
        rates = rule.rates_of(Settings(lr=lr, betas=betas, weight_decay=decay))
        given = {"lr": double(lr), "weight_decay": double(decay), "betas": [double(b) for b in betas]}
        cases.append({"of": "rates", "given": given, **{key: single(x) for key, x in rates._asdict().items()}})
    return cases


def _fraction(draws: Draws) -> float:
    """A binary64 number in [1/2, 1) times a small power of two, spelled in hexadecimal: no arithmetic."""
    return float.fromhex(f"0x1.{draws.word() >> 12:013x}p{-1 - draws.below(9)}")


def _caution() -> list[Case]:
    draws = Draws("caution")
    cases = []
    for number in range(90):
        n = draws.pick((1, 2, 3, 111, 1007, 4096, 10**6 + 3, 2**31 + 11, 2**40 + 1))
        aligned = draws.pick((0, 1, n, n // 2, n // 1000, n // 1001, draws.below(min(n, 2**31)) + 1))
        mode = ("mask", "c-optim", "timm")[number % 3]
        lr = BINARY32.round(of_float(draws.pick(RATES)))
        factor = rule.caution_factor(mode, n, aligned)
        case = {"of": "caution", "cautious": mode, "n": n, "aligned": aligned, "lr": single(lr)}
        cases.append({**case, "factor": single(factor), "lr_new": single(BINARY32.mul(lr, factor))})
    return cases


def _norms() -> list[Case]:
    draws = Draws("norms")
    cases = []
    for number in range(40):
        dtype = ("float32", "bfloat16", "float16")[number % 3]
        kind = draws.pick(("normal", "normal", "huge", "tiny", "notfinite", "zeros"))
        length = draws.pick((0, 1, 2, 3, 5, 31, 64, 65, 100))
        bits = [draws.pattern(kind, draws.below(20) - 10, TYPES[dtype]) for _ in range(length)]
        nonfinite = draws.pick(("skip", "propagate"))
        norm = clipping.norm_of([TYPES[dtype].from_bits(b) for b in bits], nonfinite)
        case = {"of": "norm", "dtype": dtype, "nonfinite": nonfinite, "grad": words(bits, TYPES[dtype].width)}
        cases.append({**case, "norm": single(norm)})
    return cases


def _delicate() -> list[Case]:
    """Return norms that differ if the squares are added in another order.

    1, 2^-12, 2^-12 and 2^-24 have the norm 1 + 2^-24, halfway between two binary32 numbers. About ten squares below
    2^-53 are lost one by one beside 1, and may change its rounding together: that depends on the order.
    """
    cases: list[Case] = []
    draws = Draws("delicate norms")
    while len(cases) < 24:
        grad: list[Number] = [(0, 1, 0), (0, 1, -12), (0, 1, -12), (0, 1, -24)]
        grad += [(0, 1 << 23 | draws.below(1 << 23), -51) for _ in range(8 + draws.below(5))]
        for at in range(len(grad) - 1, 0, -1):
            other = draws.below(at + 1)
            grad[at], grad[other] = grad[other], grad[at]
        squares = [BINARY64.mul(x, x) for x in grad]
        in_order, neighbours = squares[0], [*squares, *[ZERO] * (16 - len(squares))]
        for square in squares[1:]:
            in_order = BINARY64.add(in_order, square)
        while len(neighbours) > 1:
            neighbours = [BINARY64.add(*neighbours[at : at + 2]) for at in range(0, len(neighbours), 2)]
        norm = clipping.norm_of(grad, "skip")
        others = [BINARY32.round(BINARY64.sqrt(total)) for total in (in_order, neighbours[0])]
        if single(norm) != single(others[len(cases) % 2]):
            bits = words((BINARY32.to_bits(x) for x in grad), 32)
            cases.append({"of": "norm", "dtype": "float32", "nonfinite": "skip", "grad": bits, "norm": single(norm)})
    return cases


def _histories() -> list[Case]:
    cases = []
    for q, clip in ((100, 0.5), (1, 0.0), (5, 0.0), (50, 0.75), (99, 0.0), (95, 1e-3)):
        draws = Draws(f"history {q}")
        settings = Settings(percentile_clipping=q, grad_clip=clip)
        history = [ZERO] * clipping.HISTORY
        norms, factors = [], []
        for step in range(1, 231):
            norm = ZERO if step < 3 or draws.below(50) == 0 else (0, *draws.normal(draws.below(3))[1:])
            history = clipping.remembered(history, norm, step)
            norms.append(BINARY32.to_bits(norm))
            factors.append(BINARY32.to_bits(clipping.clip_factor(norm, settings, history)))
        case = {"of": "history", "percentile_clipping": q, "grad_clip": double(clip), "norms": words(norms, 32)}
        last = [] if q == 100 else [BINARY32.to_bits(x) for x in history]
        cases.append({**case, "factors": words(factors, 32), "grad_norms": words(last, 32)})
    return cases
