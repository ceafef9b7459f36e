"""Lion as Triton kernels: the backend ``triton``."""

from .backend import absmax, aligned, decode, encode, name, prepare, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]
