"""The reference, in pure PyTorch: simple, slow and exact. It is also the backend ``reference``.

Read :mod:`~lionbits_reference.update` (the rule), :mod:`~lionbits_reference.formats` (the codes) and
:mod:`~lionbits_reference.rounding` (the noise); :mod:`~lionbits_reference.spec` has the types.
"""

from .backend import absmax, aligned, decode, encode, name, prepare, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "prepare", "step", "supports"]
