"""The self-test of GPU kernels: on first use, steps with odd numbers are compared with the reference's on the CPU.

It launches the kernels of the plan that is about to step, so nothing is compiled that the step would not need.
What passed is kept on disk, by all that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference import formats
from lionbits_reference.spec import PARAM_DTYPES, Backend, Format, Hyper, Plan, Scalars, Slot, cache_folder

#: ``0`` switches the self-test off.
ENVIRONMENT = "LIONBITS_SELF_TEST"

#: Backends whose kernels are tested at their first step on a CUDA device.
TESTED = ("triton", "cupy")

#: Shapes of the parameters: rows that end in a short block, and whole blocks of any size up to 2,048.
SHAPES = ((5, 420), (2048,))

STEPS = 3

#: The content of a file that says that a self-test passed.
PASSED = "passed\n"

#: What each backend was found to do wrong in this process, by name and device.
_refused: dict[tuple[str, torch.device], str] = {}
_passed: set[tuple[str, Plan, torch.device]] = set()


def plans() -> list[Plan]:
    """Return the plans that are tested on demand: each dtype with 32, 8 and 4 bits, and what has more code."""
    float32, bfloat16, float16 = PARAM_DTYPES
    plain = [Plan(dtype, dtype, Format.of(bits)) for dtype in (float32, bfloat16, float16) for bits in (32, 8, 4)]
    return [
        *plain,
        Plan(float32, float32, Format.of(8), "mask"),
        Plan(float32, float32, Format.of(8, block_wise=False), "gradient"),
        Plan(float32, bfloat16, Format.of(8), nonfinite="propagate"),
        Plan(bfloat16, bfloat16, Format.of(8), param_rounding="dithered"),
        Plan(bfloat16, bfloat16, Format.of(4), param_rounding="compensated", master_bits=24),
    ]


def refusal(backend: Backend, device: torch.device) -> str:
    """Return what a self-test of this process found wrong with a backend on a device, or an empty string."""
    return _refused.get((backend.name, device), "")


def failure(backend: Backend, plan: Plan, device: torch.device) -> str:
    """Return what is wrong with the kernels of a plan, or an empty string; tested on first use on a GPU alone."""
    key = (backend.name, plan, device)
    if key in _passed or not _wanted(backend, device):
        return refusal(backend, device)
    record = _record(backend, plan, device)
    if record is None or not _says_passed(record):
        if wrong := run(backend, plan, device):
            _refused[backend.name, device] = f"{wrong}. {ENVIRONMENT}=0 switches the self-test off"
            return refusal(backend, device)
        _write(record)
    _passed.add(key)
    return ""


def run(backend: Backend, plan: Plan, device: torch.device) -> str:
    """Compare some steps of a plan with the reference's; return the first difference, or an empty string.

    Without memory for a few thousand elements, or on a CPU that was set to flush subnormal numbers, nothing is found.
    """
    if not torch.full((), 2.0**-140, dtype=torch.float32, device="cpu").mul(1.0).count_nonzero():
        return ""
    try:
        with torch.inference_mode(False), torch.no_grad():  # the first would enable gradients
            pairs = zip(_results(backend, plan, device), _results(reference, plan, torch.device("cpu")), strict=True)
            wrong = next((text for found, right in pairs if (text := _difference(found, right))), "")
    except torch.OutOfMemoryError:
        return ""
    except Exception as error:  # noqa: BLE001 - whatever it is, a step would raise it
        return f"the self-test of {plan} ended with {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return wrong and (
        f"the self-test found bits that are wrong on {where}: {wrong}, for {plan}. Please report this sentence with "
        "what `lionbits doctor` prints"
    )


def _wanted(backend: Backend, device: torch.device) -> bool:
    return (
        backend.name in TESTED
        and device.type == "cuda"
        and os.environ.get(ENVIRONMENT) != "0"
        and not refusal(backend, device)
    )


def _results(backend: Any, plan: Plan, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield, after each step, all that a backend wrote, on the CPU."""
    params = [_numbers(shape, j).nan_to_num(0.5, 0.25, 0.125) for j, shape in enumerate(SHAPES)]
    slots = [
        Slot(
            param.to(device, plan.param_dtype),
            {
                key: torch.zeros(s.shape, dtype=s.dtype, device=device)
                for key, s in plan.state_spec(param.shape).items()
            },
            index=7 + j,
        )
        for j, param in enumerate(params)
    ]
    vectors = {"lr": [1e-3, 3e-3], "keep": [0.9999, 1.0], "grad_scale": [0.75, -1.0]}
    numbers = {key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in vectors.items()}
    counts = {key: torch.zeros(n, dtype=torch.int64, device=device) for key, n in (("step", 2), ("skipped", 1))}
    scalars, hyper = Scalars(**numbers, **counts), Hyper.of((0.9, 0.99), seed=3)
    prepared = None
    for number in range(STEPS):
        grads = [_numbers(s, 10 + 10 * number + j).to(device, plan.grad_dtype) for j, s in enumerate(SHAPES)]
        prepared = prepared or backend.prepare(plan, slots, grads)
        scalars.step.add_(1)
        found: dict[str, Tensor] = {}
        if plan.caution == "mask":
            found["counts of aligned elements"] = backend.aligned(prepared, grads, hyper, scalars)
        if plan.format.tensor_wise:
            found["absmax"] = backend.absmax(prepared, grads, hyper, scalars)
        backend.step(prepared, grads, hyper, replace(scalars, absmax=found.get("absmax")))
        if plan.format.tensor_wise:
            for slot, scale in zip(slots, formats.block_scale(found["absmax"].cpu(), plan.format), strict=True):
                slot.state["exp_avg_scale"].copy_(scale)
        found["the count of skipped elements"] = scalars.skipped
        for j, slot in enumerate(slots):
            found |= {
                f"{key} of tensor {j}": value for key, value in {"the parameter": slot.param, **slot.state}.items()
            }
        yield {f"{key}, step {number + 1}": value.to("cpu", copy=True) for key, value in found.items()}


def _difference(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """Return the first element that differs, as text."""
    for key, tensor in found.items():
        ours, theirs = _bits(tensor).flatten(), _bits(right[key]).flatten()
        at = (ours != theirs).nonzero()
        if len(at):
            i = int(at[0])
            values = [each.flatten()[i].item() for each in (tensor, right[key])]
            place = tuple(int(k) for k in torch.unravel_index(torch.tensor(i), tensor.shape))
            return f"element {place} of {key}, is {values[0]!r} and must be {values[1]!r} ({len(at)} elements differ)"
    return ""


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits as integers; NaNs of all patterns are one."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.masked_fill(tensor.isnan(), torch.nan).view(torch.int32 if tensor.itemsize == 4 else torch.int16)


def _numbers(shape: Sequence[int], seed: int) -> Tensor:
    """Return float32 of all sizes: ordinary ones, subnormal ones, zeros, infinities and NaNs, by integers alone."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64, device="cpu")
    words = ((i + 1000 * seed) * 2654435761 + (i + seed).square() * 40503) & 0xFFFFFFFF
    exponent = 118 + words % 11
    for every, value in ((29, 0), (31, 40), (43, 1)):
        exponent = torch.where((i + seed) % every == 0, value, exponent)
    bits = (words & 0x807FFFFF) | (exponent << 23)
    for every, value in ((97, 0x7F800000), (101, 0x7FC00000), (53, 0)):
        bits = torch.where((i + seed) % every == 0, value, bits)
    return bits.sub((bits >= 1 << 31) * (1 << 32)).to(torch.int32).view(torch.float32).reshape(tuple(shape))


def _record(backend: Any, plan: Plan, device: torch.device) -> Path | None:
    """Return the file that says whether a test passed; None for an account without a home."""
    known = (_machine(torch.cuda.current_device() if device.index is None else device.index), _source(backend), plan)
    with suppress(RuntimeError):
        return cache_folder("self-test") / f"{hashlib.sha256(repr(known).encode()).hexdigest()}.self-test"
    return None


def _says_passed(record: Path) -> bool:
    with suppress(OSError):
        return record.read_text(encoding="utf-8") == PASSED
    return False


def _write(record: Path | None) -> None:
    """Keep that a test passed, where that is possible; else each process tests anew."""
    if record is not None:
        with suppress(OSError):
            record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            record.write_text(PASSED, encoding="utf-8")


@functools.cache
def _machine(index: int) -> tuple[Any, ...]:
    """Return what results may depend on beside the backend: the GPU, its driver, and versions."""
    names = ("torch", "triton", "pytorch-triton", "cupy", "nvidia-cuda-nvrtc")
    versions = {(d.name, d.version) for d in distributions() if d.name and d.name.lower().startswith(names)}
    drivers = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))
    driver = [path.read_text(encoding="utf-8") for path in drivers if path.is_file()]
    gpu = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    return (*gpu, driver, torch.__version__, sorted(versions))


def _source(backend: Any) -> str:
    """Return a digest of the sources of a backend, of the table that its kernels read, and of the reference."""
    return _digest(str(Path(backend.__file__).parent))


@functools.cache
def _digest(folder: str) -> str:
    others = [importlib.util.find_spec(name) for name in ("lionbits_table", "lionbits_reference")]
    folders = [Path(folder), *(Path(spec.origin).parent for spec in others if spec and spec.origin)]
    files = [path for each in folders for path in sorted(each.rglob("*")) if path.suffix in (".py", ".cu", ".cuh")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*files, Path(__file__)))).hexdigest()
