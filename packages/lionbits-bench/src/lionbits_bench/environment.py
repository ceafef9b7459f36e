"""The machine and the versions of a measurement."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lionbits
from lionbits import select


def describe(device: torch.device) -> dict[str, str]:
    """Return versions, processor, device and date."""
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "lionbits": lionbits.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "CUDA of torch": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "busy before, processes": _busy(),
        "CPU threads of torch": str(torch.get_num_threads()),
    }
    if device.type != "cuda":
        return found | {"device": str(device)}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 1e9:.1f} GB",
        "L2 cache": f"{properties.L2_cache_size / 1e6:.1f} MB",
        "driver": _asked("driver_version", device),
        "power limit": _asked("power.limit", device),
        "highest clocks": f"{_asked('clocks.max.sm', device)}, memory {_asked('clocks.max.mem', device)}",
    }


def diagnoses(device: torch.device) -> dict[str, str]:
    """Return the reason why each backend cannot serve here; empty if it can."""
    return {name: _diagnosis(name, device) for name in select.known()}


def _diagnosis(name: str, device: torch.device) -> str:
    try:
        return select.diagnose(name, device)
    except Exception as error:  # noqa: BLE001 - one that breaks must not hide the others
        return f"{type(error).__name__}: {error}"


def _processor() -> str:
    """Return the processor's name, or its architecture on other systems than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def _busy() -> str:
    """Return the load of the last minute: other processes may distort times."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _asked(field: str, device: torch.device) -> str:
    """Return a field of nvidia-smi, which torch does not give."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, f"--query-gpu={field}", "--format=csv,noheader", f"--id={device.index or 0}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
