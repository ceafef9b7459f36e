"""The conformance suite: properties of every Lion backend, and mutants that show that a wrong one is rejected.

:mod:`~lionbits_conformance.properties` and :mod:`~lionbits_conformance.runs` have the properties, ``oracle`` checks the
reference, ``mutants`` are wrong Lions that must be rejected, ``suite`` holds the tests that pytest collects.
"""
