"""``lionbits doctor``: the backends that can run on this machine, and the reasons why others cannot.

It must work on a broken installation, so every question is asked separately and a failure is an answer.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import torch

import lionbits
from lionbits import install
from lionbits_reference.spec import Format, Plan

from .console import Table, show

VARIABLE = "LIONBITS_BACKEND"
COMPILERS = ("c++", "g++", "clang++", "cl")
AVAILABLE = "available"

#: Variables that have GPU kernels run on the CPU.
PRETENCES = {
    "TRITON_INTERPRET": "Triton's kernels are interpreted on the CPU",
    "LIONBITS_CUPY_EMULATE": "CUDA C++ kernels are emulated on the CPU",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of the self-test: the rest of the report answers the same questions on every machine."""
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="let each backend that serves update a few thousand elements in common ways, and compare the bits with "
        "the reference's; kernels are compiled for that, which may take minutes",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report.

    The exit code is 1 if LIONBITS_BACKEND asks for what this machine cannot do, or a self-test finds wrong bits.
    """
    found = backends()
    show(machine())
    show(as_table(found))
    show(choices())
    wrong = args.self_test and not self_tested([(name, device) for name, device, reason in found if not reason])
    wanted = os.environ.get(VARIABLE, "")
    if wrong or wanted in {"", "auto"}:
        return int(wrong)
    usable = [device for name, device, reason in found if name == wanted and not reason]
    if not usable:
        print(f"{VARIABLE}={wanted} cannot serve on this machine: constructing an optimizer will raise")
    return 0 if usable else 1


def machine() -> Table:
    """Versions, devices, compiler, environment."""
    drawn = Table("This machine", ("what", "found"), left=("found",))
    drawn.add("lionbits", lionbits.__version__)
    drawn.add("torch", torch.__version__)
    drawn.add("python", f"{platform.python_version()} ({sys.executable})")
    drawn.add("platform", platform.platform())
    drawn.add("CPU", f"{cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for device in accelerators():
        drawn.add(device, describe(device))
    if not accelerators():
        drawn.add("GPU", f"none that torch sees ({torch_build()})")
    drawn.add("C++ compiler", compiler() or "none found (torch.compile on a CPU needs one)")
    drawn.add("Python headers", headers() or "none found (Triton and torch.compile need Python.h)")
    for package in ("triton", "cupy"):
        drawn.add(package, package_version(package))
    drawn.add(VARIABLE, os.environ.get(VARIABLE) or "not set: automatic")
    for variable, meaning in PRETENCES.items():
        if os.environ.get(variable) == "1":
            drawn.add(variable, f"1: {meaning}, for tests; slow")
    if (value := os.environ.get("LIONBITS_CUPY_EMULATE", "")).startswith("ptx"):
        drawn.add(
            "LIONBITS_CUPY_EMULATE", f"{value}: NVRTC's PTX of the CUDA C++ kernels is executed on the CPU, for tests"
        )
    if (value := os.environ.get("LIONBITS_TRITON_EMULATE", "")) not in ("", "0"):
        drawn.add("LIONBITS_TRITON_EMULATE", f"{value}: Triton's PTX for sm_{value} is executed on the CPU, for tests")
    charts = all(importlib.util.find_spec(name) for name in ("matplotlib", "rich"))
    missing = f"not installed; for train and report: {install.command('cli')}"
    drawn.add("matplotlib and rich", "installed" if charts else missing)
    return drawn


def backends() -> list[tuple[str, str, str]]:
    """Return name, device, and the reason why not ("" if available) of every backend on every device here."""
    from lionbits import select

    devices = ["cpu", *accelerators()]
    return [(name, device, diagnosis(name, device)) for name in select.known() for device in devices]


def self_tested(serving: list[tuple[str, str]]) -> bool:
    """Run the self-test of each of these backends on its device, and print what it finds; return True if all passed."""
    from lionbits import select, self_test

    drawn = Table("Self-test", ("backend", "device", "result"), left=("device", "result"))
    plans, passed = self_test.plans(), True
    for name, device in serving:
        if (name, device) == (select.REFERENCE, "cpu"):  # what the others are compared with
            continue
        backend, where = select.load(name), torch.device(device)
        wrong = [text for plan in plans if (text := self_test.run(backend, plan, where))]
        drawn.add(name, device, wrong[0] if wrong else f"passed: {len(plans)} ways to update")
        passed &= not wrong
    show(drawn)
    return passed


def diagnosis(name: str, device: str) -> str:
    """Ask one backend; an unexpected error of it becomes part of the report."""
    from lionbits import select

    try:
        return str(select.diagnose(name, torch.device(device)))
    except Exception as error:  # noqa: BLE001 - the doctor reports whatever goes wrong
        return f"{type(error).__name__}: {error}"


def as_table(found: list[tuple[str, str, str]]) -> Table:
    """One row per backend and device."""
    drawn = Table(
        "Backends (float32 parameters, 8-bit state)", ("backend", "device", "state"), left=("device", "state")
    )
    for name, device, reason in found:
        drawn.add(name, device, f"not available: {reason}" if reason else AVAILABLE)
    return drawn


def choices() -> Table:
    """Return what is chosen for each device if nobody names a backend, and how to get a faster one."""
    from lionbits import select

    drawn = Table("Chosen by `auto`", ("device", "backend", "faster"), left=("backend", "faster"))
    for device in ["cpu", *accelerators()]:
        kind = torch.device(device).type
        try:
            name = select.serving(None, Plan(torch.float32, torch.float32, Format.of(8)), torch.device(device)).name
        except Exception as error:  # noqa: BLE001 - the doctor reports whatever goes wrong
            drawn.add(device, f"{type(error).__name__}: {error}", "")
            continue
        fast = select.PREFERENCE.get(kind, ())
        slow = name == select.REFERENCE and fast
        drawn.add(device, name, f"{install.command(fast[0])}; above is why it does not serve" if slow else "")
    return drawn


def accelerators() -> list[str]:
    """Return every device beside the CPU that torch can use, CUDA's by number."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    return found


def describe(device: str) -> str:
    """Return name, memory and architecture of a device, as far as known."""
    if not device.startswith("cuda"):
        return "present"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB, sm_{found.major}{found.minor}, {torch_build()}"


def torch_build() -> str:
    """Return the device that this torch was built for: a CPU build explains a missing GPU."""
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "a CPU build of torch"


def package_version(name: str) -> str:
    """Return the version of a distribution; CuPy's name ends in the CUDA version it is for."""
    installed = {d.name.lower(): d.version for d in distributions() if d.name}
    found = [installed[n] for n in (name, f"{name}-cuda12x", f"{name}-cuda13x") if n in installed]
    return found[0] if found else "not installed"


def cpu_name() -> str:
    """Return the model, which ``platform.processor`` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def compiler() -> str:
    """Return the first C++ compiler on the path, $CXX before all."""
    candidates = [os.environ.get("CXX", ""), *COMPILERS]
    return next((path for name in candidates if name and (path := shutil.which(name))), "")


def headers() -> str:
    """Return the path of Python.h; Linux distributions have it in a package of its own."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return str(header) if header.exists() else ""
