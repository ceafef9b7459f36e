"""The whole family, bound to this backend: ``from lionbits_triton.optim import Lion8bit``."""
