"""State in host memory, and its copies to where the update runs. Backends only see tensors that they can reach.

``config`` says where state is kept; ``placement`` chooses what stays on the device; ``host_memory`` and ``huge_pages``
allocate. ``pages`` cuts what travels; ``staging`` lays pages out in buffers; ``prefetch`` moves them on the ``streams``
of a device; ``stats`` counts. ``colocated`` allocates state beside its parameter.
"""

from .config import Paged, Pager, Resident, adopt, paging_config
from .host_memory import check_process
from .pages import moving
from .prefetch import Call, PagedCalls, Prefetcher, ResidentCalls
from .stats import PagingStats

__all__ = [
    "Call",
    "Paged",
    "PagedCalls",
    "Pager",
    "PagingStats",
    "Prefetcher",
    "Resident",
    "ResidentCalls",
    "adopt",
    "check_process",
    "moving",
    "paging_config",
]
