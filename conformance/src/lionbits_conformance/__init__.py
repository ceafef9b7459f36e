"""The court: what any Lion backend must hold, and the proof that a wrong one does not pass.

:mod:`~lionbits_conformance.laws` and :mod:`~lionbits_conformance.runs` say the laws, ``oracle`` judges the reference
itself, ``mutants`` are wrong Lions that must be rejected, ``suite`` is what pytest collects.
"""
