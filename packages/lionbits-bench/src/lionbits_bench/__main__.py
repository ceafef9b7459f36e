"""``python -m lionbits_bench``: from a checkout or an installation."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
