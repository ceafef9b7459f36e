"""The meaning of lionbits in pure PyTorch: simple, slow, exact. It is itself the backend ``reference``.

Read :mod:`~lionbits_reference.update` (the rule), :mod:`~lionbits_reference.formats` (the codes) and
:mod:`~lionbits_reference.rounding` (the lanes); :mod:`~lionbits_reference.spec` has the nouns.
"""

from .backend import absmax, aligned, decode, encode, name, step, supports

__all__ = ["absmax", "aligned", "decode", "encode", "name", "step", "supports"]
