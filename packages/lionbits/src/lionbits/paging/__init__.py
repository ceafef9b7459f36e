"""Where state lives and when it moves. Kernels only ever see tensors that they can reach.

``arrangement`` has the two arrangements; ``host`` the memory of pages; ``residence`` says who lives on the device;
``pages`` how slots are cut and how pages are copied; ``movement`` brings them, on the ``lanes`` of a device;
``account`` counts.
"""

from .account import PagingStats
from .arrangement import Paged, Pager, Resident, adopt, arrangement
from .beside import apart
from .host import check_process
from .movement import Movement

__all__ = ["Movement", "Paged", "Pager", "PagingStats", "Resident", "adopt", "apart", "arrangement", "check_process"]
