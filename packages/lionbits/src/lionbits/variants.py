"""Variants of the optimizer: a class for each, which holds its defaults and nothing else.

Positional arguments are those of bitsandbytes. A variant's name decides bits or paging: that argument is not
positional, is accepted by keyword, and is refused if it contradicts the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from .optimizer import Lion, Params
from .options import Bits, Options


class _BitsByKeyword(Options, total=False):
    optim_bits: Bits


class _PagingByKeyword(Options, total=False):
    is_paged: bool


class _BothByKeyword(_BitsByKeyword, _PagingByKeyword, total=False):
    pass


class _FixedBits(Lion):
    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        args: object = None,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        is_paged: bool = False,
        **options: Unpack[_BitsByKeyword],
    ) -> None:
        options.setdefault("optim_bits", self._fixed["optim_bits"])
        super().__init__(
            params,
            lr,
            betas,
            weight_decay,
            args=args,
            min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping,
            block_wise=block_wise,
            is_paged=is_paged,
            **options,
        )


class Lion32bit(_FixedBits):
    """:class:`Lion` with float32 momentum: 4 bytes per element."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 32}


class Lion8bit(_FixedBits):
    """:class:`Lion` with 8-bit momentum: 1.016 bytes per element."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 8}


class Lion4bit(_FixedBits):
    """:class:`Lion` with 4-bit momentum: 0.531 bytes per element."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 4}


class PagedLion(Lion):
    """:class:`Lion` with its state in host memory."""

    _fixed: ClassVar[Mapping[str, Any]] = {"is_paged": True}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        optim_bits: Bits = 32,
        args: object = None,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        **options: Unpack[_PagingByKeyword],
    ) -> None:
        options.setdefault("is_paged", True)
        super().__init__(
            params,
            lr,
            betas,
            weight_decay,
            optim_bits,
            args,
            min_8bit_size,
            percentile_clipping,
            block_wise,
            **options,
        )


class _PagedFixedBits(Lion):
    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        args: object = None,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        **options: Unpack[_BothByKeyword],
    ) -> None:
        options.setdefault("optim_bits", self._fixed["optim_bits"])
        options.setdefault("is_paged", True)
        super().__init__(
            params,
            lr,
            betas,
            weight_decay,
            args=args,
            min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping,
            block_wise=block_wise,
            **options,
        )


class PagedLion32bit(_PagedFixedBits):
    """:class:`Lion32bit` with its state in host memory."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 32, "is_paged": True}


class PagedLion8bit(_PagedFixedBits):
    """:class:`Lion8bit` with its state in host memory."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 8, "is_paged": True}


class PagedLion4bit(_PagedFixedBits):
    """:class:`Lion4bit` with its state in host memory."""

    _fixed: ClassVar[Mapping[str, Any]] = {"optim_bits": 4, "is_paged": True}
