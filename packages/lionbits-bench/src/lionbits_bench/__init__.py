"""How fast lionbits is: side by side with a plain copy, which is the limit, and with its peers."""

__version__ = "0.1.0.dev0"
