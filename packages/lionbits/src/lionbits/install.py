"""The command that installs a missing part of lionbits."""

from __future__ import annotations

#: Extras, each with what pip takes in a checkout instead.
_IN_A_CHECKOUT = {
    "cli": "./packages/lionbits-cli",
    "cpp": "./backends/table ./backends/cpp",
    "cupy": './backends/table "./backends/cupy[cuda13]"',
    "safetensors": '"./packages/lionbits[safetensors]"',
    "triton": "./backends/table ./backends/triton",
}

EXTRAS = tuple(_IN_A_CHECKOUT)


def command(extra: str) -> str:
    """Return the command that installs an extra of lionbits.

    No index has development versions: for these the command takes the folders of a checkout.
    """
    from . import __version__

    if ".dev" in __version__:
        return f"pip install {_IN_A_CHECKOUT[extra]} (in a checkout of lionbits)"
    return f'pip install "lionbits[{extra}]"'
