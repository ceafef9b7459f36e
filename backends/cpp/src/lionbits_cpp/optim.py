"""The whole family, bound to this backend: ``from lionbits_cpp.optim import Lion8bit``.

They are what ``lionbits`` has under the same names, with ``backend="cpp"`` as their default: neither the environment
nor the device chooses, and where the library cannot serve they say so.
"""

from __future__ import annotations

import lionbits

from .backend import name


class Lion(lionbits.Lion):
    """:class:`lionbits.Lion`, by C++ kernels."""

    default_backend = name


class Lion32bit(lionbits.Lion32bit):
    """:class:`lionbits.Lion32bit`, by C++ kernels."""

    default_backend = name


class Lion8bit(lionbits.Lion8bit):
    """:class:`lionbits.Lion8bit`, by C++ kernels."""

    default_backend = name


class Lion4bit(lionbits.Lion4bit):
    """:class:`lionbits.Lion4bit`, by C++ kernels."""

    default_backend = name


class PagedLion(lionbits.PagedLion):
    """:class:`lionbits.PagedLion`, by C++ kernels."""

    default_backend = name


class PagedLion32bit(lionbits.PagedLion32bit):
    """:class:`lionbits.PagedLion32bit`, by C++ kernels."""

    default_backend = name


class PagedLion8bit(lionbits.PagedLion8bit):
    """:class:`lionbits.PagedLion8bit`, by C++ kernels."""

    default_backend = name


class PagedLion4bit(lionbits.PagedLion4bit):
    """:class:`lionbits.PagedLion4bit`, by C++ kernels."""

    default_backend = name


class QLion(lionbits.QLion):
    """:class:`lionbits.QLion`, by C++ kernels."""

    default_backend = name
