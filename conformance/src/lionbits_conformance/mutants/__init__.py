"""Wrong Lions that the conformance suite must reject. One that survives is a fault of the suite, and fails its tests.

Most are what people really wrote: the orders, formulas and roundings that Lion's implementations differ by, the faults
that were found in them, and the slips that a kernel author makes.
"""

from .front_ends import FRONT_ENDS
from .kernels import KERNELS
from .launches import LAUNCHES
from .mutant import Mutant

ALL = (*KERNELS, *FRONT_ENDS, *LAUNCHES)

__all__ = ["ALL", "FRONT_ENDS", "KERNELS", "LAUNCHES", "Mutant"]
