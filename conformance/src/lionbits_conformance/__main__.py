"""``python -m lionbits_conformance --backend NAME``: the suite, from a checkout or an installation."""

import sys

import pytest

if __name__ == "__main__":
    plugin = ["-p", "lionbits_conformance.plugin"] if "--installed" not in sys.argv else []
    sys.exit(pytest.main([*plugin, "--pyargs", "lionbits_conformance.suite", *sys.argv[1:]]))
