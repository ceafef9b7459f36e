"""Lion as the reference, compiled by torch.compile: the backend ``compiled``, fast on any CPU."""

from .backend import absmax, aligned, decode, encode, name, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "step", "supports"]
