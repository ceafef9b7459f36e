"""The optimizer: torch.optim's contract around :mod:`lionbits.step.prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import advice, groups, paging, select, settings, sharding, summary
from .checkpoint import copies, state_dicts
from .checkpoint.state_dicts import LoadedKeys
from .decorators import hooked_if_watched, outside_inference_mode, uncompiled
from .interrupts import uninterrupted
from .options import Bits, Cautious, MasterBits, Nonfinite, PagedCompute, ParamRounding, Rounding
from .paging import PagingStats, Prefetcher
from .spelling import known_arguments
from .step import launch, momenta, prepare
from .step.agreement import Agreed
from .step.backward import InBackward, tell_of_others
from .step.cache import StepCache, update
from .step.single import ParameterStep, step_parameter

T = TypeVar("T")

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Lion(Optimizer):
    """Lion, with the momentum in 32, 8, 4 or 2 bits.

    For each element, in float32, one rounding per operation::

        c = m*b1 + g*(1-b1)       p = p*(1 - lr*wd) - lr*sign(c)       m = m*b2 + g*(1-b2)

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675). A good start is
    a third to a tenth of AdamW's learning rate with three to ten times its weight decay: :func:`lionbits.from_adamw`.

    Everything from ``lr`` to ``weight_decay``, and from ``optim_bits`` on, may be set per parameter group,
    but for ``args``, ``seed``, ``is_paged``, the ``page_`` settings, ``backend`` and ``overrides``,
    which are the optimizer's.

    Args:
        params: parameters, named parameters, or groups (dicts with ``"params"``): float32, bfloat16 or
            float16 tensors of any shape and strides. Gradients may have another of these dtypes. Parameters
            are changed in place.
        lr: learning rate, >= 0; a float, or a tensor of one element (read on its device, without a sync).
        betas: (b1, b2), floats in [0, 1): of the update direction and of the momentum.
        weight_decay: decoupled: the parameter is multiplied by 1 - lr*wd before it moves.
        optim_bits: bits of momentum per element: 32, 8, 4; 2 is for research and warns.
        args: mapping or object, overrides ``optim_bits``, ``min_8bit_size``, ``percentile_clipping``, ``block_wise``.
        min_8bit_size: parameters with fewer elements (fewer than 32 at least) keep float32 momentum.
        percentile_clipping: q in 1..100: scale a gradient down to the q-th smallest of the last 100 norms of
            its tensor. 100: off.
        block_wise: one scale per block; False: one per tensor.
        is_paged: keep the state in host memory, and copy it to the device during the step.
        block_size: elements of a row that share a scale, a power of two, 32..4096. None: 256, 128, 64 at 8, 4, 2 bits.
        state_format: ``"eXmY"``: X exponent, Y mantissa bits beside the sign. None: e3m4, e3m0, e0m1 at 8, 4, 2 bits.
        rounding: of the momentum below 32 bits: ``"dithered"`` and ``"stochastic"`` are unbiased; ``"nearest"`` sticks.
        cautious: None; ``"mask"``: elements whose c and g do not share a sign stay, the others make up for
            them by n/max(aligned, 1) (``"c-optim"``: n/(aligned+1), ``"timm"``: at most 1000);
            ``"gradient"``: where c and g have opposite signs the update takes the gradient's.
        grad_clip: scale a tensor's gradient down to this norm; 0: off. ``p.grad`` itself is never changed.
        param_rounding: of bfloat16 parameters: ``"nearest"``; ``"dithered"``, ``"stochastic"``: unbiased;
            ``"compensated"``: what bfloat16 drops is kept in the state. float16 takes ``"nearest"`` only.
        master_bits: with ``"compensated"``: 32 keeps all (2 bytes per element), 24 most (1 byte).
        nonfinite: ``"skip"``: an element whose gradient or new momentum is not finite stays as it is and is
            counted; ``"raise"``: likewise, and the step ends in FloatingPointError (one host sync);
            ``"propagate"``: plain arithmetic.
        maximize: go up instead of down.
        seed: of the rounding noise, 0..2^64-1. No global generator is used.
        page_budget: with ``is_paged``: bytes of state that may be on the device at a time. None: what it can spare.
        page_size: with ``is_paged``: bytes that move at a time. None: 16 MiB.
        page_dir: with ``is_paged``: a folder for memory-mapped files, for state larger than memory.
        paged_compute: with ``is_paged``: ``"device"`` (None means that) copies state to the parameters; ``"host"``
            copies parameters and gradients to the state, and the CPU updates.
        backend: a name or a backend module; None: ``LIONBITS_BACKEND``, else the best that serves.
        overrides: name pattern -> settings for named parameters, ``{"*embed*": {"optim_bits": 32}}``. They
            become groups of their own.

    Raises:
        TypeError: a value of the wrong type. ValueError: a wrong value. Both name the argument, the value and
            the rule, and leave everything as it was, here, in ``add_param_group`` and in ``load_state_dict``.
    """

    #: Arguments that a variant's name decides.
    _fixed: ClassVar[Mapping[str, Any]] = {}

    #: Backend of a family that is bound to one, if ``backend=None``; None: ``LIONBITS_BACKEND``, else the best.
    default_backend: ClassVar[str | None] = None

    #: Settings of groups that a subclass has beside Lion's, with their defaults; :meth:`_translated` reads them.
    _own_settings: Mapping[str, Any] = {}

    #: GradScaler hands its scale and found_inf to ``step`` instead of unscaling ``p.grad`` itself.
    _step_supports_amp_scaling = True

    #: Launch groups that the last step leaves to the next. Never copied: the copy makes its own.
    _step_cache: StepCache | None = None

    #: The same for the last steps of single parameters. Never copied either.
    _parameter_steps: dict[Tensor, ParameterStep] | None = None

    #: What the ranks that share parameters agreed on, by their last check; None: they were not compared yet. Never
    #: copied either.
    _agreed: Agreed | None = None

    #: The hooks that update parameters during backward, if any. Never copied: hooks belong to parameters.
    _in_backward: InBackward | None = None

    #: Prefetches state that is kept elsewhere than on its device. Never copied either.
    _prefetcher: Prefetcher | None = None

    @known_arguments
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
        is_paged: bool = False,
        *,
        block_size: int | None = None,
        state_format: str | None = None,
        rounding: Rounding = "dithered",
        cautious: Cautious | None = None,
        grad_clip: float = 0.0,
        param_rounding: ParamRounding = "nearest",
        master_bits: MasterBits = 32,
        nonfinite: Nonfinite = "skip",
        maximize: bool = False,
        seed: int = 0,
        page_budget: int | None = None,
        page_size: int | None = None,
        page_dir: str | None = None,
        paged_compute: PagedCompute | None = None,
        backend: str | ModuleType | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        given = locals()
        defaults: dict[str, Any] = {key: given[key] for key in given if key in settings.NAMES}
        defaults = {key: settings.plain(value) for key, value in (defaults | settings.from_args(args)).items()}
        settings.check(defaults)
        self._pager = paging.paging_config(
            is_paged, page_budget=page_budget, page_dir=page_dir, page_size=page_size, paged_compute=paged_compute
        )
        settings.check_fixed(type(self).__name__, self._fixed, defaults | {"is_paged": is_paged})
        self._backend = select.requested(self.default_backend if backend is None else backend)
        self._overrides = groups.check_overrides(overrides, {**defaults, **self._own_settings})
        self._skipped: launch.Counts = {}
        super().__init__(cast(Any, groups.checked_params(params)), defaults)
        groups.check_used(self._overrides, self.param_groups)
        advice.on_slow_backend(self.param_groups, self._backend, self._pager)
        advice.on_small_parameters(self.param_groups)
        advice.on_surroundings()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own or the optimizer's; see :class:`Lion`.

        Raises:
            TypeError, ValueError: nothing was added.
        """
        before = len(self.param_groups)
        try:
            for part in groups.split(groups.checked_form(param_group), self._overrides):
                group = self._translated(part)
                groups.inherit(group, self.defaults)
                super().add_param_group(group)
                groups.check(group, self._backend, self._pager)
                groups.name_format(group)
                advice.on_group(group, self.param_groups[:-1])
        except BaseException:
            del self.param_groups[before:]
            raise

    def _translated(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group in Lion's settings; for subclasses that have others."""
        return group

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    @hooked_if_watched
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: recomputes the loss, with gradients enabled; its value is returned.

        Raises:
            FloatingPointError: with ``nonfinite="raise"``, if an element was skipped. All others were updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @uncompiled
    @uninterrupted
    @outside_inference_mode
    def _update(self) -> None:
        if self._in_backward is not None:
            self._in_backward.step(getattr(self, "grad_scale", None))
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        before = self._step_cache
        update(self)
        if self._step_cache is not before:
            tell_of_others(self)

    @torch.no_grad()
    @uncompiled
    @uninterrupted
    @outside_inference_mode
    def step_parameter(self, p: Tensor, group: dict[str, Any], i: int | None = None) -> None:
        """Update ``p`` alone, now, as ``step`` would and with the same bits, if it has a gradient.

        Trainers call it in a hook of each parameter, to free its gradient in backward; :func:`fuse_into_backward` does
        all of that. The gradient stays: set it to None, or the next ``step`` uses it again. Step hooks do not run.

        Args:
            p: one of this optimizer's parameters.
            group: the one of ``param_groups`` that holds it, itself.
            i: its place in ``group["params"]``; None: wherever it is.

        Raises:
            TypeError, ValueError: ``p`` is not there; nothing was changed. FloatingPointError: as ``step``.
        """
        self._parameter_steps = {} if self._parameter_steps is None else self._parameter_steps
        step_parameter(self, self._parameter_steps, p, group, i)

    @torch.no_grad()
    def momentum(self, param: Tensor) -> Tensor:
        """The momentum of ``param``, decoded: float32, of its shape, on its device; zeros before its first update.

        Of a sharded parameter, a DTensor placed like it.

        Raises:
            ValueError: the optimizer does not hold ``param``.
        """
        return momenta.read(self, param)

    @torch.no_grad()
    @uninterrupted
    @outside_inference_mode
    def set_momentum(self, param: Tensor, momentum: Tensor) -> None:
        """Replace the momentum of ``param`` with ``momentum``, rounded to nearest into the format that its state has.

        Blocks that hold these numbers already keep their codes and scales, so setting what :meth:`momentum` returned
        changes no bit. Missing state is created; the count of updates and all else in the state stays.

        Args:
            param: one of this optimizer's parameters.
            momentum: float32, finite, of its shape; of a sharded one a DTensor placed like it, or the whole tensor.

        Raises:
            TypeError, ValueError: the optimizer does not hold ``param``; ``momentum`` is not that; nothing was changed.
        """
        momenta.write(self, param, momentum)

    @outside_inference_mode
    def init_state(self) -> None:
        """Create zero state for every parameter that requires a gradient and has none yet. Nothing else changes.

        Parameters on the meta device get theirs when they hold values: at their first step, or at another call.

        Torch's checkpoint tools take a step at learning rate 0 if there is no state at all, which counts as one, and
        leave out parameters that never had a gradient. Call this before them to avoid both.
        """
        prepare.allocate(prepare.learning(self.param_groups), self.state, self._get_prefetcher())

    def skipped_elements(self) -> int:
        """Return how many element updates were skipped because something was not finite. Waits for the device.

        If parameters are sharded it is a collective call: every rank has to make it, and gets the whole number.
        """
        counts = [sharding.total(count.clone(), spread) for (_, spread), count in self._skipped.items()]
        return sum(int(count.item()) for count in counts)

    def paging_stats(self) -> PagingStats:
        """Return counts of paging since this optimizer was made, copied or unpickled; all 0 if nothing is paged."""
        return replace(self._get_prefetcher().stats)

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict: as in torch, not a copy; the same for every backend, paged or resident.

        State of sharded parameters is in DTensors placed like them. There, once one parameter has state all get it, as
        torch's distributed checkpoints want to find the same names on every side.
        """
        return state_dicts.taken(self, super().state_dict)

    @uninterrupted
    @outside_inference_mode
    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> LoadedKeys | None:
        """Continue bit for bit where ``state_dict`` was taken, with its settings. Tensors are copied, never cast.

        Args:
            state_dict: as :meth:`state_dict` returns it.
            strict: False: match parameters by name and load those that both sides have. A group takes the settings of
                the groups that its parameters come from; without any it keeps its own.

        Returns:
            With ``strict=False`` the names that matched, are missing and were unexpected.

        Raises:
            TypeError, ValueError: the state dict does not fit this optimizer; nothing was changed.
        """
        return state_dicts.load(self, super().load_state_dict, state_dict, strict=strict)

    def __repr__(self) -> str:
        """Return torch's text, with each group's momentum format, bytes of state, paging and backend."""
        return summary.with_groups(super().__repr__(), self.param_groups, self._backend, self._pager)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | copies.kept(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        copies.take_up(self, state)

    def _get_prefetcher(self) -> Prefetcher:
        paging.check_process(self.state.values())
        self._prefetcher = self._prefetcher or Prefetcher(self._pager)
        return self._prefetcher
