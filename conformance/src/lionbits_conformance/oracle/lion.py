"""The oracle: the whole optimizer in exact numbers, written from the specification alone.

It uses Python's integers and fractions, imports neither torch nor the code that it checks, and has no slots,
slices, launches or backends: one parameter at a time, one element at a time, in the order of the equations. Beside
the rule it covers the decisions of a front end: positions, numbers rounded on the host, which parameters are
quantised, clipping and its history, caution over whole tensors, loss scaling, schedules, and counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import clipping, formats, rule
from .dither import STATE, noise_of, salt_of
from .floats import BINARY32, ONE, ZERO, Number, of_float, sign_of
from .records import TYPES, Array, Grad, Param, Settings, State, Totals
from .storing import Store

#: ``cautious=`` values that hold back elements and rescale the learning rate.
MASKS = ("mask", "c-optim", "timm")


class OracleLion:
    """Lion over some parameters, which it changes in place.

    Attributes:
        params: in the order of all groups; rounding noise depends on positions in this list.
        settings: one for each parameter.
        state: one for each parameter; None before its first update.
        skipped: element updates that were skipped so far, since g or m' was not finite.
        raised: True if the last step skipped an element of a parameter with ``nonfinite="raise"``.
    """

    def __init__(self, params: Sequence[Param], settings: Sequence[Settings]) -> None:
        if len(params) != len(settings):
            raise ValueError(f"{len(params)} parameters need as many settings, not {len(settings)}")
        self.params = list(params)
        self.settings = list(settings)
        self.state: list[State | None] = [None] * len(self.params)
        self._totals = Totals()

    @property
    def skipped(self) -> int:
        """Element updates that were skipped so far."""
        return self._totals.skipped

    @property
    def raised(self) -> bool:
        """True if the last step has to end in an error."""
        return self._totals.raised

    def step(
        self,
        grads: Sequence[Grad | None],
        loss_scale: float | None = None,
        settings: Sequence[Settings] | None = None,
        found_inf: bool = False,
    ) -> None:
        """Update every parameter that has a gradient.

        Args:
            grads: one for each parameter; None leaves it alone, its step number too.
            loss_scale: what all gradients have been multiplied by; a binary32 number.
            settings: replace those of before, from this step on.
            found_inf: the loss scaler found something that is not finite: the step does nothing at all.
        """
        if settings is not None:
            self.settings = list(settings)
        self._totals.raised = False
        if found_inf:
            return
        unscale = ONE if loss_scale is None else BINARY32.div(ONE, of_float(loss_scale))
        for position, grad in enumerate(grads):
            if grad is not None:
                self._update(position, grad, unscale)

    def momentum(self, position: int) -> list[Number]:
        """The decoded momentum of a parameter; zeros before its first update."""
        state, param = self.state[position], self.params[position]
        if state is None:
            return [ZERO] * len(param.bits)
        fmt = formats.format_of(self.settings[position], param)
        if fmt is None:
            return [BINARY32.from_bits(bits) for bits in known(state.exp_avg)]
        return formats.decode(known(state.exp_avg_codes), known(state.exp_avg_scale), param.matrix[1], fmt)

    def _update(self, position: int, grad: Grad, unscale: Number) -> None:
        param, settings = self.params[position], self.settings[position]
        if grad.shape != param.shape:
            raise ValueError(f"a gradient of shape {grad.shape} for a parameter of shape {param.shape}")
        momenta = self.momentum(position)
        state = self.state[position] or State()
        self.state[position] = state
        state.step += 1
        plain = [TYPES[grad.dtype].from_bits(bits) for bits in grad.bits]
        factor = rule.gradient_factor(_clip(plain, state, settings, unscale), unscale, settings.maximize)
        g = [BINARY32.mul(x, factor) for x in plain]
        rates = rule.rates_of(settings)
        if settings.cautious in MASKS:
            aligned = sum(rule.is_aligned(m, x, rates, settings.nonfinite) for m, x in zip(momenta, g, strict=True))
            slower = rule.caution_factor(settings.cautious, len(g), aligned)
            rates = rates._replace(lr=BINARY32.mul(rates.lr, slower))
        momenta = self._move(position, state, momenta, g, rates)
        self._remember(position, state, momenta)

    def _move(
        self, position: int, state: State, momenta: list[Number], g: list[Number], rates: rule.Rates
    ) -> list[Number]:
        """Write p' and its residual, count skipped elements, return m'."""
        param, settings = self.params[position], self.settings[position]
        store = Store(param.dtype, settings, position, state.step, param.matrix[1])
        residual = list(state.param_residual or [0] * len(g))
        new = []
        for at, (m, x) in enumerate(zip(momenta, g, strict=True)):
            p = store.load(param.bits[at], residual[at])
            after = rule.moved(p, m, x, rates, settings.cautious, settings.nonfinite)
            param.bits[at], residual[at] = store.store(after.param, at)
            new.append(after.momentum)
            self._totals.skipped += after.skipped
            self._totals.raised |= after.skipped and settings.nonfinite == "raise"
        if store.compensated:
            state.param_residual = residual
        return new

    def _remember(self, position: int, state: State, momenta: list[Number]) -> None:
        """Store m': its bits, or codes and scales with the noise of this step."""
        param, settings = self.params[position], self.settings[position]
        fmt = formats.format_of(settings, param)
        if fmt is None:
            state.exp_avg = [BINARY32.to_bits(m) for m in momenta]
            return
        salt = salt_of(settings.seed, position, STATE)
        noise = noise_of(settings.rounding, salt, state.step, *param.matrix)
        state.exp_avg_codes, state.exp_avg_scale = formats.encode(momenta, noise, param.matrix[1], fmt)


def known(values: list[int] | None) -> list[int]:
    """Return state that the settings ask for and that must be there."""
    if values is None:
        raise ValueError("the state has another format than the settings ask for")
    return values


def _clip(plain: list[Number], state: State, settings: Settings, unscale: Number) -> Number:
    """Return the clipping factor of a gradient; its norm (of the unscaled gradient, binary32) enters the history."""
    by_percentile = settings.percentile_clipping < 100
    if not by_percentile and sign_of(of_float(settings.grad_clip)) == 0:
        return ONE
    norm = BINARY32.mul(clipping.norm_of(plain, settings.nonfinite), unscale)
    norms = [BINARY32.from_bits(bits) for bits in state.grad_norms or [0] * clipping.HISTORY]
    if by_percentile:
        norms = clipping.remembered(norms, norm, state.step)
        state.grad_norms = [BINARY32.to_bits(x) for x in norms]
    return clipping.clip_factor(norm, settings, norms)


__all__ = ["Array", "Grad", "OracleLion", "Param", "Settings", "State"]
