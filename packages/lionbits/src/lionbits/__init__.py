"""Lion for PyTorch with 32-, 8- and 4-bit state, paged or resident, the same bits on every backend."""

from . import interop
from .advice import from_adamw
from .checkpoint.convert import convert
from .checkpoint.safetensors_files import load_safetensors, save_safetensors
from .checkpoint.saving import save
from .checkpoint.state_dicts import LoadedKeys
from .checkpoint.weights import float32_parameters
from .optimizer import Lion
from .paging import PagingStats
from .qlion import QLion, SymmetricQuantizer
from .select import BackendUnavailable
from .step.backward import fuse_into_backward
from .variants import Lion4bit, Lion8bit, Lion32bit, PagedLion, PagedLion4bit, PagedLion8bit, PagedLion32bit

__version__ = "0.1.0.dev0"

__all__ = [
    "BackendUnavailable",
    "Lion",
    "Lion4bit",
    "Lion8bit",
    "Lion32bit",
    "LoadedKeys",
    "PagedLion",
    "PagedLion4bit",
    "PagedLion8bit",
    "PagedLion32bit",
    "PagingStats",
    "QLion",
    "SymmetricQuantizer",
    "convert",
    "float32_parameters",
    "from_adamw",
    "fuse_into_backward",
    "interop",
    "load_safetensors",
    "save",
    "save_safetensors",
]
