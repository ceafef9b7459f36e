"""The rule for one element, and its numbers.

All is binary32, one rounding for each written operation::

    g  = float32(grad) * grad_scale
    c  = m*b1 + g*(1-b1)
    u  = sign(c)                       after caution
    p' = p*keep - lr*u                 keep = 1 - lr*wd
    m' = m*b2 + g*(1-b2)               from the old m
"""

from __future__ import annotations

from typing import NamedTuple

from .floats import BINARY32, BINARY64, MINUS_ONE, ONE, Number, greater, is_finite, of_float, of_int, sign_of
from .records import Settings

#: 1/1000 as a binary64 number, the floor that "timm" puts under the aligned share.
_TIMM_FLOOR = 1e-3


class Rates(NamedTuple):
    """The numbers of a parameter's update, binary32 each."""

    lr: Number
    keep: Number
    b1: Number
    one_minus_b1: Number
    b2: Number
    one_minus_b2: Number


class Moved(NamedTuple):
    """Result of the rule for one element."""

    param: Number  # p', or p where the element was skipped
    momentum: Number  # m', or m
    skipped: bool


def rates_of(settings: Settings) -> Rates:
    """lr, wd and the betas rounded to binary32 once; 1-b1 and 1-b2 formed in binary64 first, keep in binary32."""
    lr, decay = (BINARY32.round(of_float(x)) for x in (settings.lr, settings.weight_decay))
    b1, b2 = (of_float(x) for x in settings.betas)
    return Rates(
        lr=lr,
        keep=BINARY32.sub(ONE, BINARY32.mul(lr, decay)),
        b1=BINARY32.round(b1),
        one_minus_b1=BINARY32.round(BINARY64.sub(ONE, b1)),
        b2=BINARY32.round(b2),
        one_minus_b2=BINARY32.round(BINARY64.sub(ONE, b2)),
    )


def blend(m: Number, g: Number, b: Number, one_minus_b: Number) -> Number:
    """m*b + g*(1-b): two products and a sum, each rounded."""
    return BINARY32.add(BINARY32.mul(m, b), BINARY32.mul(g, one_minus_b))


def direction(m: Number, g: Number, rates: Rates, cautious: str | None) -> int:
    """u = sign(c); under a mask 0 unless c and g share a sign, under "gradient" g's sign where theirs are opposite."""
    c, towards = sign_of(blend(m, g, rates.b1, rates.one_minus_b1)), sign_of(g)
    if cautious is None:
        return c
    if cautious == "gradient":
        return towards if c * towards == -1 else c
    return c if c == towards else 0


def advanced(m: Number, g: Number, rates: Rates, nonfinite: str) -> tuple[Number, bool]:
    """m', and whether the element is skipped and keeps m, as g or m' is not finite; "propagate" skips none."""
    new = blend(m, g, rates.b2, rates.one_minus_b2)
    if nonfinite != "propagate" and not (is_finite(g) and is_finite(new)):
        return m, True
    return new, False


def moved(p: Number, m: Number, g: Number, rates: Rates, cautious: str | None, nonfinite: str) -> Moved:
    """p' = p*keep - lr*u and m', or the old ones where the element is skipped."""
    momentum, skipped = advanced(m, g, rates, nonfinite)
    if skipped:
        return Moved(p, m, True)
    u = of_int(direction(m, g, rates, cautious))
    param = BINARY32.sub(BINARY32.mul(p, rates.keep), BINARY32.mul(rates.lr, u))
    return Moved(param, momentum, False)


def is_aligned(m: Number, g: Number, rates: Rates, nonfinite: str) -> bool:
    """True if c and g share a sign that is not zero and the element is not skipped."""
    return not advanced(m, g, rates, nonfinite)[1] and direction(m, g, rates, "mask") != 0


def caution_factor(cautious: str, n: int, aligned: int) -> Number:
    """Return the factor of a mask on the learning rate: a binary64 quotient, rounded to binary32.

    "mask": n / max(aligned, 1). "c-optim": n / (aligned + 1). "timm": n / max(aligned, n * 0.001), the product
    rounded to binary64.
    """
    if cautious == "mask":
        moving = of_int(max(aligned, 1))
    elif cautious == "c-optim":
        moving = of_int(aligned + 1)
    else:
        floor = BINARY64.mul(of_int(n), of_float(_TIMM_FLOOR))
        moving = floor if greater(floor, of_int(aligned)) else of_int(aligned)
    return BINARY32.round(BINARY64.div(of_int(n), moving))


def gradient_factor(clip: Number, unscale: Number, maximize: bool) -> Number:
    """The one number that a gradient is multiplied by: clipping factor * 1/loss_scale, negated to maximize."""
    factor = BINARY32.mul(clip, unscale)
    return BINARY32.mul(factor, MINUS_ONE) if maximize else factor
