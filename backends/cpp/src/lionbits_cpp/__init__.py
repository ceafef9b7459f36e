"""Lion as C++ kernels for CPUs, one call for all tensors: the backend ``cpp``."""

from .backend import absmax, aligned, decode, encode, name, prepare, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]
