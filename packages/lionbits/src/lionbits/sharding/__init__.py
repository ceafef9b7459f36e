"""Sharded parameters (DTensor): each rank updates its part, and they add up what is about whole tensors.

``optimizer.state`` holds plain tensors of parts, so that backends and paging see nothing new; they become DTensors,
placed like their parameter, where torch's tools look: in a state dict. Formats and what is kept follow from whole
shapes and placements alone, never from the number of ranks: so a checkpoint of N ranks loads on M.

``local`` says which part is on this rank; ``slots`` gives it to backends; ``gradients`` moves those that are placed
otherwise than their parameters; ``dtensors`` converts state to DTensors and back; ``validation`` refuses what cannot be
sharded.
"""

from .dtensors import from_dtensor, placed_like, to_dtensor
from .gradients import redistributed
from .local import ShardGroup, coordinate, cuts_rows, distributed, local_tensor, placement, shard_group, total
from .slots import LocalTensors, PaddedShard, slot
from .validation import check, check_gradient, check_moving, check_settings, needs_whole

__all__ = [
    "LocalTensors",
    "PaddedShard",
    "ShardGroup",
    "check",
    "check_gradient",
    "check_moving",
    "check_settings",
    "coordinate",
    "cuts_rows",
    "distributed",
    "from_dtensor",
    "local_tensor",
    "needs_whole",
    "placed_like",
    "placement",
    "redistributed",
    "shard_group",
    "slot",
    "to_dtensor",
    "total",
]
