"""Many tensors in one launch: the device table that Triton and CUDA kernels read, and its cut into work items.

**Even** blocks are what kernels may move 16 bytes at a time: their rows begin at multiples of 16 bytes, and begin and
end at multiples of 16 elements, in parameter, gradient and state alike. All others are walked element by element.
"""

from .extents import Extents, order
from .record import EVEN, Record
from .table import Table

__all__ = ["EVEN", "Extents", "Record", "Table", "order"]
