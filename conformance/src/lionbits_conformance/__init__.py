"""The conformance suite: what any Lion backend must hold, and the proof that a wrong one does not pass.

:mod:`~lionbits_conformance.properties` and :mod:`~lionbits_conformance.runs` have the properties, ``oracle`` checks the
reference itself, ``mutants`` are wrong Lions that must be rejected, ``suite`` is what pytest collects.
"""
