"""Rounding noise: 16 bits for each element, a function of seed, parameter, purpose, step and place alone.

All words are unsigned 32-bit integers modulo 2^32::

    salt = fmix32(fmix32(fmix32(fmix32(seed_lo) ^ seed_hi) ^ parameter) ^ purpose)
    h    = fmix32(lo32(i >> 1) ^ fmix32(hi32(i >> 1) ^ salt))          i = row * even(cols) + col
    noise = (h & 0xFFFF if i is even else h >> 16)
    dithered:    noise = (noise + step * 40503) mod 2^16
    stochastic:  salt is first replaced by fmix32(salt ^ (step * 0x9E3779B9 mod 2^32))
"""

from __future__ import annotations

from collections.abc import Iterator

STATE, PARAMETER = 0, 1  # purposes

#: The noise that rounds to nearest: half of a dropped unit.
HALF = 1 << 15

_WORD = 1 << 32
_LANE = 1 << 16


def fmix32(word: int) -> int:
    """The finalizer of MurmurHash3 (32 bits): two multiplications between three xor-shifts by 16, 13 and 16."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ (word // 2**shift)) * factor % _WORD
    return word


def salt_of(seed: int, parameter: int, purpose: int) -> int:
    """Return the salt of a parameter's noise of one purpose, from seed (low word, high), position and purpose."""
    salt = 0
    for word in (seed % _WORD, seed // _WORD, parameter % _WORD, purpose):
        salt = fmix32(salt ^ word)
    return salt


def noise_at(mode: str, salt: int, step: int, i: int) -> int:
    """Return the noise of the element with counting position ``i``, at update number ``step`` of its parameter."""
    if mode == "nearest":
        return HALF
    if mode == "stochastic":
        salt = fmix32(salt ^ (step * 0x9E3779B9 % _WORD))
    pair, odd = divmod(i, 2)
    high, low = divmod(pair, _WORD)
    hashed = fmix32(low ^ fmix32(high ^ salt))
    noise = hashed // _LANE if odd else hashed % _LANE
    return (noise + step * 40503) % _LANE if mode == "dithered" else noise


def position(row: int, column: int, columns: int) -> int:
    """Return the counting position of an element: a row takes the next even number, so that no pair is in two rows."""
    return row * (columns + columns % 2) + column


def noise_of(mode: str, salt: int, step: int, rows: int, columns: int) -> Iterator[int]:
    """Yield the noise of a whole parameter, in logical row-major order."""
    for row in range(rows):
        for column in range(columns):
            yield noise_at(mode, salt, step, position(row, column, columns))
