"""The oracle: Lion in exact numbers, standard library only, to check every other Lion (``check`` needs torch)."""

from .lion import OracleLion
from .records import Array, Grad, Param, Settings, State

__all__ = ["Array", "Grad", "OracleLion", "Param", "Settings", "State"]
