"""``python -m lionbits_cli``: the command line from a checkout, without installing."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
