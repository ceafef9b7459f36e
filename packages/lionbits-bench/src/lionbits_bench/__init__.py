"""Benchmarks of lionbits, beside a plain copy, which is the upper limit, and beside other libraries."""

__version__ = "0.1.0.dev0"
