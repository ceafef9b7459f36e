"""The format of codes in a state: settings may be edited, and codes of one width look alike in all formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lionbits import settings
from lionbits_reference.spec import Format

Group = Mapping[str, Any]
States = Mapping[Any, Mapping[str, Any]]


class CodeFormats:
    """Names of the formats of the code tensors in a state, each for as long as the tensor lives."""

    def __init__(self) -> None:
        self._names = WeakTensorKeyDictionary()

    def note(self, format: Format, state: Mapping[str, Any]) -> None:
        """Record ``format`` as that of the codes in ``state``, if there are any."""
        codes = state.get("exp_avg_codes")
        if isinstance(codes, Tensor) and format.quantised:
            self._names[codes] = format.name

    def check(self, name: str, param: Tensor, state: Mapping[str, Any]) -> None:
        """Refuse a format that is not that of the codes.

        Args:
            name: of the format that settings ask for.
            param: whose state it is.
            state: of the parameter.

        Raises:
            ValueError: naming both formats.
        """
        codes = state.get("exp_avg_codes")
        known = self._names.get(codes) if isinstance(codes, Tensor) else None
        if known not in (None, name):
            raise ValueError(
                f"state_format={name!r} is not accepted: the state of a parameter of shape {tuple(param.shape)} has "
                f"codes in {known}. Set the group's state_format back to {known!r}, and convert a state dict with "
                f"lionbits.convert(state_dict, optimizer) for an optimizer that is made with another."
            )

    def note_all(self, groups: Sequence[Group], states: States) -> None:
        """Record the groups' formats as those of all codes."""
        for group, _, state in _held(groups, states):
            self.note(settings.state_format(group), state)

    def check_all(self, groups: Sequence[Group], states: States) -> None:
        """Refuse groups whose format is not that of their codes.

        Raises:
            ValueError: naming both formats.
        """
        for group, param, state in _held(groups, states):
            self.check(group["state_format"] or settings.state_format(group).name, param, state)


def _held(groups: Sequence[Group], states: States) -> Iterator[tuple[Group, Tensor, Mapping[str, Any]]]:
    for group in groups:
        for param in group["params"] if "state_format" in group else ():
            state = states.get(param)
            if state:
                yield group, param, state
