"""Lion as CUDA C++ kernels, compiled by NVRTC and launched by CuPy: the backend ``cupy``."""

from .backend import absmax, aligned, decode, encode, name, prepare, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]
