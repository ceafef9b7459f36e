"""Lion's arithmetic on elements, for Triton: rule, codes, rounding noise, 16-bit floats. No addresses here.

Every written operation rounds once: these functions are compiled without contraction (``enable_fp_fusion=False``), and
division is ``div_rn``. Numbers come ready-made from the host, as binary32: what is formed from them in a kernel
(``1 - beta``, say) has other bits in the interpreter. Bits are uint32, so that shifts are logical and sums wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from . import triton_private

#: True if kernels run in Triton's interpreter, as ``TRITON_INTERPRET=1`` says when Triton is first imported.
INTERPRETED: tl.constexpr = tl.constexpr(not isinstance(tl.zeros, triton.JITFunction))


def _probe() -> None:
    """Do nothing: the type that Triton gives to this function is what is tested."""


if isinstance(triton.jit(_probe), triton.JITFunction) == INTERPRETED.value:
    raise ImportError("TRITON_INTERPRET has changed since Triton was imported: set it before Python starts.")
if INTERPRETED.value:
    triton_private.skip_overflow_checks()


def device_function(function: Callable[..., Any]) -> Any:
    """Return a function for kernels to call: plain for the interpreter, which is slow to enter a jit function."""
    return function if INTERPRETED.value else triton.jit(function)


STATE: tl.constexpr = tl.constexpr(0)  # purposes of a salt
PARAMETER: tl.constexpr = tl.constexpr(1)

#: Bits of |x| from here on are those of infinity or a NaN.
INFINITE: tl.constexpr = tl.constexpr(0x7F800000)
_MAGNITUDE: tl.constexpr = tl.constexpr(0x7FFFFFFF)
_SIGN: tl.constexpr = tl.constexpr(0x80000000)
_NAN: tl.constexpr = tl.constexpr(0x7FC00000)
_TINY: tl.constexpr = tl.constexpr(2.0**-100)
_HUGE: tl.constexpr = tl.constexpr(2.0**127)
_UP: tl.constexpr = tl.constexpr(2.0**127)
_DOWN: tl.constexpr = tl.constexpr(2.0**-127)


@device_function
def bits_of(x):
    """The bits of a float32, as uint32."""
    return x.to(tl.uint32, bitcast=True)


@device_function
def float_of(bits):
    """The float32 that has these bits."""
    return bits.to(tl.float32, bitcast=True)


# --- the rule -------------------------------------------------------------------------------------------


@device_function
def blend(m, g, b, one_minus_b):
    """m*b + g*(1-b), three roundings."""
    return m * b + g * one_minus_b


@device_function
def towards(rate, x):
    """rate * sign(x): the rate with x's sign, and rate * 0 for a zero and for a NaN."""
    signed = float_of(bits_of(rate) ^ (bits_of(x) & _SIGN))
    return tl.where(tl.abs(x) > 0, signed, rate * 0.0)


@device_function
def move(m, g, lr, b1, one_minus_b1, VARIANT: tl.constexpr):
    """lr * u, u being the sign of c after caution. Signs are compared, not products, which can underflow."""
    c = blend(m, g, b1, one_minus_b1)
    if VARIANT.plan.caution == "mask":
        return tl.where(agree(c, g), towards(lr, c), lr * 0.0)
    elif VARIANT.plan.caution == "gradient":
        return towards(lr, tl.where(agree(c, -g), g, c))
    else:
        return towards(lr, c)


@device_function
def agree(x, y):
    """True where x and y have the same sign, and it is not zero."""
    return ((x > 0) & (y > 0)) | ((x < 0) & (y < 0))


@device_function
def magnitude(x):
    """The bits of |x|: ordered like the numbers, infinity next to last, NaN last."""
    return bits_of(x) & _MAGNITUDE


# --- codes ----------------------------------------------------------------------------------------------


@device_function
def decode(code, scale, VARIANT: tl.constexpr):
    """m of uint32 codes: the float with bits k << w, times 2^127, times the block's scale."""
    top = (code << (32 - VARIANT.format.bits)).to(tl.int32, bitcast=True)  # the sign stands where a float has it
    bits = (top >> (32 - VARIANT.format.bits - VARIANT.format.shift)).to(tl.uint32, bitcast=True)
    return float_of(bits & (_SIGN | (VARIANT.format.largest_code << VARIANT.format.shift))) * _UP * scale


@device_function
def held(absmax):
    """The largest magnitude that codes are scaled for: min(absmax, 2^127), NaN where that is NaN."""
    return tl.where(absmax > _HUGE, _HUGE, absmax)


@device_function
def divided_by_top(x, VARIANT: tl.constexpr):
    """x / top, rounded once: as a product, which is exact, where top is a power of two."""
    if VARIANT.top_is_power_of_two:
        return x * (1 / VARIANT.format.top)
    else:
        return tl.math.div_rn(x, tl.full(x.shape, VARIANT.format.top, tl.float32))


@device_function
def block_scale(absmax, VARIANT: tl.constexpr):
    """absmax / top; 0 where a block holds nothing, NaN where it is not finite."""
    scale = tl.where(absmax > _TINY, divided_by_top(held(absmax), VARIANT), 0.0)
    return tl.where(magnitude(absmax) < INFINITE, scale, float("nan"))


@device_function
def block_inverse(absmax, VARIANT: tl.constexpr):
    """r = top / absmax; 0 where a block holds nothing or is not finite."""
    usable = (absmax > _TINY) & (magnitude(absmax) < INFINITE)
    top = tl.full(absmax.shape, VARIANT.format.top, tl.float32)
    return tl.where(usable, tl.math.div_rn(top, tl.where(usable, held(absmax), 1.0)), 0.0)


@device_function
def encode(m, inverse, noise, VARIANT: tl.constexpr):
    """The magnitude of a code, uint32: t = bits(|m| * r * 2^-127), k = min((t + dither) >> w, largest k)."""
    t = bits_of(tl.abs(m) * inverse * _DOWN)
    largest = tl.where(inverse > 0, VARIANT.format.largest_code, 0).to(tl.uint32)
    return tl.minimum((t + (noise << (VARIANT.format.shift - 16))) >> VARIANT.format.shift, largest)


# --- rounding noise -------------------------------------------------------------------------------------


@device_function
def fmix32(h):
    """MurmurHash3's 32-bit finalizer."""
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35
    return h ^ (h >> 16)


@device_function
def salt(seed_low, seed_high, index, purpose: tl.constexpr):
    """Salt of one parameter and purpose, which separates their noise from all other noise; uint32."""
    mixed = fmix32(fmix32(seed_low) ^ seed_high)
    return fmix32(fmix32(mixed ^ index) ^ purpose)


# --- 16-bit floats --------------------------------------------------------------------------------------


@device_function
def widen(stored, TYPE: tl.constexpr):
    """float32 of what is stored: a float32, or the uint16 bits of a bfloat16 or float16."""
    if TYPE == tl.float32:
        return stored
    elif TYPE == tl.float16:
        return stored.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return float_of(stored.to(tl.uint32) << 16)


@device_function
def narrow(x, TYPE: tl.constexpr):
    """The inverse of :func:`widen`, rounded once to nearest even."""
    if TYPE == tl.float32:
        return x
    elif TYPE == tl.float16:
        return x.to(tl.float16).to(tl.uint16, bitcast=True)
    elif INTERPRETED:  # whose own conversion to bfloat16 truncates
        bits = bits_of(x)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(magnitude(x) > INFINITE, _NAN >> 16, rounded).to(tl.uint16)
    else:
        return x.to(tl.bfloat16).to(tl.uint16, bitcast=True)


@device_function
def narrow_unbiased(x, noise):
    """float32 to the bits of a bfloat16: (bits + noise) >> 16; NaN stays NaN."""
    return tl.where(magnitude(x) > INFINITE, _NAN >> 16, (bits_of(x) + noise) >> 16).to(tl.uint16)


@device_function
def join_master(stored, residual, VARIANT: tl.constexpr):
    """p of a compensated bfloat16 parameter, from its bits (uint16) and the residual (int16 or int8)."""
    dropped = residual.to(tl.int32).to(tl.uint32, bitcast=True) << (32 - VARIANT.plan.master_bits)
    return float_of((stored.to(tl.uint32) << 16) + dropped)


@device_function
def split_master(x, noise, VARIANT: tl.constexpr):
    """Split x into the nearest bfloat16 (ties away from zero) as uint16 bits, and the residual as int32."""
    bits = bits_of(x)
    if VARIANT.plan.master_bits == 24:
        bits = (bits + (noise >> 8)) & 0xFFFFFF00
    bits = tl.where(magnitude(x) > INFINITE, _NAN, bits)
    kept = (bits + 0x8000) >> 16
    residual = (bits - (kept << 16)).to(tl.int32, bitcast=True) >> (32 - VARIANT.plan.master_bits)
    return kept.to(tl.uint16), residual
