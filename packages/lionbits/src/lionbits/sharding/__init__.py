"""Sharded parameters (DTensor): each rank updates its part, and they add up what is about whole tensors.

``optimizer.state`` holds plain tensors of parts, so that backends and paging see nothing new; they become DTensors,
placed like their parameter, where torch's tools look: in a state dict. Formats and what is kept follow from whole
shapes and placements alone, never from the number of ranks: so a checkpoint of N ranks loads on M.

``local`` says which part is on this rank; ``slots`` gives it to backends; ``gradients`` moves those that are placed
otherwise than their parameters; ``dtensors`` converts state to DTensors and back, in the form that ``carried`` gives
it; ``whole`` puts parts together; ``validation`` refuses what cannot be sharded.
"""

from .carried import RESIDUAL, as_dtensors, codes_are_copied, from_carried, packed_codes, state_spec, to_carried
from .dtensors import from_dtensor, placed_like
from .gradients import redistributed
from .local import (
    Run,
    ShardGroup,
    can_hold,
    coordinate,
    distributed,
    local_tensor,
    placement,
    run_of,
    shard_group,
    shares_blocks,
    total,
)
from .slots import LocalTensors, PaddedShard, slot
from .validation import check, check_gradient, check_moving, check_settings, needs_whole
from .whole import carried_whole, cut, decode, gather, whole

__all__ = [
    "RESIDUAL",
    "LocalTensors",
    "PaddedShard",
    "Run",
    "ShardGroup",
    "as_dtensors",
    "can_hold",
    "carried_whole",
    "check",
    "check_gradient",
    "check_moving",
    "check_settings",
    "codes_are_copied",
    "coordinate",
    "cut",
    "decode",
    "distributed",
    "from_carried",
    "from_dtensor",
    "gather",
    "local_tensor",
    "needs_whole",
    "packed_codes",
    "placed_like",
    "placement",
    "redistributed",
    "run_of",
    "shard_group",
    "shares_blocks",
    "slot",
    "state_spec",
    "to_carried",
    "total",
    "whole",
]
