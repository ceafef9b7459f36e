"""``python -m lionbits``: the command line, which is a distribution of its own."""

import importlib
import sys

from .install import command


def main() -> int:
    """Run the command line; return the exit code of the process."""
    try:
        cli = importlib.import_module("lionbits_cli")
    except ModuleNotFoundError as error:
        if error.name != "lionbits_cli":
            raise
        sys.exit(f"The command line is not installed: {command('cli')}")
    code: int = cli.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
