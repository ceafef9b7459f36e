"""Checks of an installation of lionbits: ``python -I smoke.py EXTRA...`` with the installed extras.

``nox -s build`` runs it in an environment for each way to install lionbits. It prints the
backends whose steps on the CPU equalled the reference's.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import metadata, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXTRAS = set(sys.argv[1:])
BACKENDS = ("cpp", "triton", "cupy")
TRAIN = ("train", "--steps", "2", "--context", "16", "--eval-every", "1")


def refusal(kind: type[Exception], call: Callable[[], object]) -> str:
    """Return the message with which the call fails; fail if it does not."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def stepped(backend: str | None) -> list[Tensor]:
    """Return parameters and their momentum after three steps of Lion8bit on the CPU."""
    import torch

    import lionbits

    generator = torch.Generator().manual_seed(0)
    shapes = ((96, 80), (7,))
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = lionbits.Lion8bit(params, lr=1e-2, weight_decay=0.1, backend=backend)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [*(param.detach() for param in params), *(optimizer.momentum(param) for param in params)]


def check_backends() -> list[str]:
    """Check that installed backends equal the reference or say why not, and others say how to install them."""
    import torch

    import lionbits

    expected = stepped("reference")
    good = ["reference"]
    for name in (None, *BACKENDS):
        if name is not None and name not in EXTRAS:
            hint = refusal(lionbits.BackendUnavailable, lambda name=name: stepped(name))  # type: ignore[misc]
            assert lionbits.install.command(name) in hint, hint
            assert name in (metadata("lionbits").get_all("Provides-Extra") or []), name
        elif name == "cupy" and "emulate" not in EXTRAS:
            import lionbits_cupy

            assert "CUDA" in refusal(ValueError, lambda: stepped("cupy"))
            __import__("cupy")
            assert lionbits_cupy.name == "cupy"
        else:
            for found, wanted in zip(stepped(name), expected, strict=True):
                assert torch.equal(found, wanted), name
            good += [name] if name else []
    assert "Did you mean 'triton'?" in refusal(lionbits.BackendUnavailable, lambda: stepped("tritn"))
    return good


def command(*args: str) -> tuple[int, str]:
    """Return the exit code of ``lionbits ARGS``, and its output."""
    import lionbits_cli

    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = lionbits_cli.main(args)
    return code, said.getvalue()


def check_command_line() -> None:
    """``doctor``, ``memory`` and ``train`` work where the command line is installed; ``train`` draws."""
    import lionbits

    script = Path(sys.executable).with_name("lionbits")
    if "cli" not in EXTRAS:
        assert not script.exists()
        return
    done = subprocess.run([script, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert version("lionbits") in done.stdout
    shown = re.sub(r"[│\s]+", " ", done.stdout)  # a table wraps its cells
    for name in BACKENDS:
        assert (lionbits.install.command(name) in shown) == (name not in EXTRAS), done.stdout
    code, said = command("memory", "--params", "7e9")
    assert code == 0
    assert "Lion4bit" in said
    with tempfile.TemporaryDirectory() as folder:
        code, said = command(*TRAIN, "--out", folder)
        assert code == 0, said
        assert list(Path(folder).rglob("*.png")), said


def check_safetensors() -> None:
    """Check that state can be saved and loaded, or that the message names the extra."""
    import torch

    import lionbits

    optimizer = lionbits.Lion4bit([torch.nn.Parameter(torch.ones(64, 64))])
    optimizer.init_state()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimizer.safetensors"
        if "safetensors" in EXTRAS:
            lionbits.save_safetensors(optimizer.state_dict(), path)
            optimizer.load_state_dict(lionbits.load_safetensors(path))
        else:
            path.write_bytes(bytes(8))
            hint = refusal(ImportError, lambda: lionbits.load_safetensors(path))
            assert lionbits.install.command("safetensors") in hint, hint


def main() -> None:
    """Run all checks; a failed one is a traceback."""
    if "triton" in EXTRAS:
        os.environ["TRITON_INTERPRET"] = "1"  # its kernels run on the CPU
    if "emulate" in EXTRAS:
        os.environ["LIONBITS_CUPY_EMULATE"] = "1"  # and those in CUDA C++
    import lionbits

    assert Path(lionbits.__file__).is_relative_to(sys.prefix), f"{lionbits.__file__} is not what was installed"
    assert lionbits.__version__ == version("lionbits")
    good = check_backends()
    check_command_line()
    check_safetensors()
    print(", ".join(good))


if __name__ == "__main__":
    main()
