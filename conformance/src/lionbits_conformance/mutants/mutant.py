"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass

from lionbits_conformance.patched_import import Edit


@dataclass(frozen=True)
class Mutant:
    """A wrong Lion: what is wrong with it, and the text that makes it so."""

    name: str
    edit: Edit
    where: str  # "kernel": checked as a backend; "front end": checked as an optimizer


def kernel(name: str, file: str, old: str, new: str) -> Mutant:
    """A wrong backend: ``file`` of the reference with ``new`` in place of ``old``."""
    return Mutant(name, Edit(f"lionbits_reference/{file}", old, new), "kernel")


def front_end(name: str, file: str, old: str, new: str) -> Mutant:
    """A wrong optimizer: ``file`` of either package with ``new`` in place of ``old``."""
    return Mutant(name, Edit(file, old, new), "front end")
