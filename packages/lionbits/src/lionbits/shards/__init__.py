"""Sharded parameters (DTensor): each rank updates its part, and they add up what is about whole tensors.

``optimizer.state`` holds plain tensors of parts, so that backends and paging see nothing new; they become DTensors,
placed like their parameter, where torch's tools look: in a state dict. Formats and what is kept follow from whole
shapes and placements alone, never from the number of ranks: so a checkpoint of N ranks loads on M.

``place`` says what is where; ``slots`` gives it to backends; ``exposure`` shows it to others; ``refusals`` says no.
"""

from .exposure import exposed, like, localised
from .place import Spread, coordinate, cuts_rows, distributed, here, spread, total
from .refusals import check, check_gradient, check_moving, check_settings
from .slots import Parts, Widened, slot

__all__ = [
    "Parts",
    "Spread",
    "Widened",
    "check",
    "check_gradient",
    "check_moving",
    "check_settings",
    "coordinate",
    "cuts_rows",
    "distributed",
    "exposed",
    "here",
    "like",
    "localised",
    "slot",
    "spread",
    "total",
]
