"""Lion as the reference, compiled by Inductor: the backend ``compiled``, fast on any CPU."""

from .backend import absmax, aligned, decode, encode, name, prepare, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]
