"""The types that optimizers and backends share: all that a backend may import of the reference."""

from .call import Backend, Prepared, Scalars, Slot
from .folders import CACHE, cache_folder
from .format import DEFAULTS, FLOAT32, FORMATS, MIN_COLUMNS, Format, TensorSpec, matrix_shape
from .plan import (
    CAUTIONS,
    MASTER_BITS,
    NONFINITE,
    PARAM_DTYPES,
    PARAM_ROUNDINGS,
    ROUNDINGS,
    Hyper,
    Plan,
    check_rate,
    decay_factor,
    float32,
)
from .wide import binary64

__all__ = [
    "CACHE",
    "CAUTIONS",
    "DEFAULTS",
    "FLOAT32",
    "FORMATS",
    "MASTER_BITS",
    "MIN_COLUMNS",
    "NONFINITE",
    "PARAM_DTYPES",
    "PARAM_ROUNDINGS",
    "ROUNDINGS",
    "Backend",
    "Format",
    "Hyper",
    "Plan",
    "Prepared",
    "Scalars",
    "Slot",
    "TensorSpec",
    "binary64",
    "cache_folder",
    "check_rate",
    "decay_factor",
    "float32",
    "matrix_shape",
]
