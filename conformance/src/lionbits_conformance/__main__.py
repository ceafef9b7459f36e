"""``python -m lionbits_conformance --backend NAME``: the suite, from a checkout or an installation."""

import sys
from importlib.metadata import entry_points

import pytest

PLUGIN = "lionbits_conformance.plugin"

if __name__ == "__main__":
    # Installed, the plugin is there already, and pytest takes no plugin twice.
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    named = () if installed else ("-p", PLUGIN)
    # `python -m` has imported the package before pytest can rewrite its assertions, which are few and have messages.
    quiet = ("-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning")
    sys.exit(pytest.main([*named, *quiet, "--pyargs", "lionbits_conformance.suite", *sys.argv[1:]]))
