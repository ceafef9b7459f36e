"""The tests that pytest collects with ``--pyargs lionbits_conformance``."""
