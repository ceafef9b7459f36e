"""Cases of stored values: momentum as codes, rounding noise, parameters in narrower types."""

from __future__ import annotations

from typing import Any

from lionbits_conformance.oracle import dither, formats, storing
from lionbits_conformance.oracle.floats import BINARY32, ZERO, Number, greater, magnitude
from lionbits_conformance.oracle.records import TYPES

from .draws import Draws
from .texts import single, words

Case = dict[str, Any]

#: Noise at the ends, at half, and around where a byte or a bit of them matters.
EDGE_LANES = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x00FF, 0x0100, 0xFF00)

#: absmax of some encodings: 2^-100, the next number, the smallest, zero, the largest, 2^127 and a bit.
PINNED = {0: 0x0D800000, 8: 0x0D800001, 13: 0x00000001, 16: 0x00000000, 24: 0x7F7FFFFF, 32: 0x7F000001}


def state_formats() -> list[Case]:
    """Every format: all its codes, some encodings, and how codes are packed."""
    return [_format(name) for name in formats.NAMES]


def _format(name: str) -> Case:
    fmt, draws = formats.StateFormat.named(name), Draws(f"format {name}")
    values = [BINARY32.to_bits(formats.number_of(code, (0, 1, 0), fmt)) for code in range(2 * fmt.largest + 2)]
    encodings = [_encoding(fmt, draws, number) for number in range(104)]
    packings = []
    for columns in (1, 5, 8, 13):
        codes = [draws.below(2 * fmt.largest + 2) for _ in range(columns)]
        packings.append({"codes": codes, "bytes": words(formats.pack(codes, fmt.bits), 8)})
    return {
        "name": name,
        "bits": fmt.bits,
        "exponent_bits": fmt.exponents,
        "mantissa_bits": fmt.mantissas,
        "top": single(fmt.top),
        "values": words(values, 32),
        "encodings": encodings,
        "packings": packings,
    }


def _encoding(fmt: formats.StateFormat, draws: Draws, number: int) -> Case:
    """One element of a block whose largest magnitude is ``absmax``."""
    kind = ("normal", "ties", "low", "crossing", "edges", "absmax", "crossing", "near")[number % 8]
    power = draws.below(40) - 20
    noise = draws.pick((draws.pick(EDGE_LANES), draws.below(65536)))
    absmax: Number = magnitude(draws.any() if kind == "edges" else draws.normal(power))
    m: Number = ZERO
    if kind in {"ties", "near", "crossing"}:  # r is a power of two, and m on a code, between two, or next to that
        absmax = BINARY32.mul(fmt.top, (0, 1, power))
        m = _crossing(fmt, noise, power, draws) if kind == "crossing" else draws.tie(fmt, power)
        if kind == "near" and m[1]:
            m = BINARY32.from_bits(BINARY32.to_bits(m) + draws.below(5) - 2)
    elif number in PINNED:
        absmax = BINARY32.from_bits(PINNED[number])
    if kind in {"normal", "low", "edges"}:
        share = BINARY32.mul(draws.normal(), (0, 1, -draws.below(8) if kind == "low" else 0))
        m = BINARY32.mul(absmax, share)
    if kind == "absmax" or greater(magnitude(m), absmax):
        m = (draws.below(2), *absmax[1:])
    inverse, scale = formats.inverse_of(absmax, fmt), formats.scale_of(absmax, fmt)
    code = formats.code_of(m, inverse, noise, fmt)
    ticks = 0 if inverse is None else formats.ticks(BINARY32.mul(magnitude(m), inverse))
    case = {"absmax": single(absmax), "m": single(m), "noise": noise, "scale": single(scale), "t": ticks, "code": code}
    return {**case, "decoded": single(formats.number_of(code, scale, fmt))}


def _crossing(fmt: formats.StateFormat, noise: int, power: int, draws: Draws) -> Number:
    """Return a momentum whose t + dither is where one code ends and the next begins, or up to half a tick beside that.

    Times 2^-power it is below 2, where t is rounded: these distinguish roundings of t.
    """
    dither = noise * fmt.spacing // 2**16
    codes = range(1, min(fmt.largest, (2**23 - 2 + dither) // fmt.spacing) + 1)
    begins = draws.pick(codes) * fmt.spacing - dither if codes else 0
    return BINARY32.round((draws.below(2), max(8 * begins + draws.below(9) - 4, 0), power - 25))


def rounding_noise() -> list[Case]:
    """(seed, parameter, purpose, mode, step, i) -> noise."""
    draws = Draws("noise")
    cases = []
    for number in range(360):
        seed = draws.pick((0, 1, 2**32, 2**64 - 1, draws.word()))
        parameter = draws.pick((0, 1, 7, 299, draws.below(2**20)))
        purpose = draws.pick((dither.STATE, dither.PARAMETER))
        mode = ("dithered", "stochastic")[number % 2]
        step = draws.pick((1, 2, 3, 100, 65536, draws.below(10**6) + 1, 2**33 + 5))
        i = draws.pick((0, 1, 2, 3, draws.below(10**4), 2**33 - 1, 2**33, 2**33 + 1, draws.word() >> 11))
        noise = dither.noise_at(mode, dither.salt_of(seed, parameter, purpose), step, i)
        case = {"seed": f"{seed:016x}", "parameter": parameter, "purpose": purpose, "mode": mode, "step": step}
        cases.append({**case, "i": f"{i:016x}", "noise": noise})
    return cases


def parameter_rounding() -> list[Case]:
    """p' (binary32) to what a parameter of a narrower type stores, by rounding and noise."""
    draws = Draws("parameters")
    modes = (
        *(("bfloat16", "nearest"), ("float16", "nearest"), ("bfloat16", "unbiased")),
        *(("bfloat16", "compensated 32"), ("bfloat16", "compensated 24")),
    )
    cases = []
    for number in range(400):
        dtype, mode = modes[number % 5]
        kind = draws.pick(("normal", "normal", "edges", "huge", "tiny", "notfinite"))
        p = draws.value(kind, draws.below(20) - 10)
        if draws.below(3) == 0:  # close to a midpoint of two bfloat16 numbers
            near = (BINARY32.to_bits(p) & 0xFFFF0000) + 0x7FFF + draws.below(3)
            p = BINARY32.from_bits(near)
        noise = draws.pick((draws.pick(EDGE_LANES), draws.below(65536)))
        cases.append(_stored(p, dtype, mode, noise))
    return cases


def _stored(p: Number, dtype: str, mode: str, noise: int) -> Case:
    kind = TYPES[dtype]
    residual: int | None = None
    if mode == "nearest":
        bits = kind.to_bits(kind.round(p))
    elif mode == "unbiased":
        bits = storing.unbiased(p, noise)
    else:
        bits, residual = storing.split(p, 256 if mode.endswith("24") else 1, noise)
    given = {"p": single(p), "dtype": dtype, "mode": mode, "noise": noise}
    return {**given, "stored": words([bits], 16), "residual": residual}
