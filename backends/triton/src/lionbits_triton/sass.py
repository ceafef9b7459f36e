"""What the compiler makes of the kernels, on any machine: ``python -m lionbits_triton.sass [--arch 90] [--bits 8]``.

Kernels are compiled as in a launch, but for a GPU that need not be there, with the tools that Triton ships. What
counts: registers (programs that a multiprocessor holds), no stack frame (nothing spilled), 16-byte accesses on the fast
path, and instructions per element there; a GPU has time for about 55 while memory delivers the 8 bytes of an 8-bit step
in bfloat16.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lionbits_reference.spec import CAUTIONS, FLOAT32, Format, Plan

from . import kernels, launch
from .lion import INTERPRETED

ARCHITECTURES = (80, 90, 100)
_WORDS, _NUMBERS, _BITS = (torch.empty(1, dtype=dtype) for dtype in (torch.int64, torch.float32, torch.int32))
_TABLE = (_WORDS, _WORDS, _WORDS)
_BETAS = (0.9, 0.1, 0.99, 0.01)


class Listing(NamedTuple):
    """A compiled kernel."""

    ptx: str
    instructions: list[str]  # SASS
    fast_path: list[str]  # of these, the loop over EVEN tiles, without what serves elements that are not finite
    registers: int
    stack: int  # bytes; more than 0 means spills
    per_element: float  # instructions of the fast path


def step(plan: Plan, architecture: int) -> Listing:
    """The step of a plan, as :func:`lionbits_triton.step` would launch it."""
    cut = launch.cut(plan, [])
    arguments = (*_TABLE, _NUMBERS, _NUMBERS, _NUMBERS, _WORDS, _NUMBERS, _WORDS, *_BETAS, 1, 1, 0, 0)
    compiled = _compiled(kernels.step_kernel, arguments, cut, architecture, EVEN=cut.even, UNEVEN=cut.uneven)
    return _listing(compiled, cut.even.rows * cut.even.block // (32 * cut.warps))


def others(plan: Plan, architecture: int) -> dict[str, Listing]:
    """The other kernels of a plan, by name."""
    found = {}
    cut = launch.cut(plan, [])
    for name, to in (("aligned", _WORDS), ("absmax", _BITS)):
        arguments = (*_TABLE, _NUMBERS, to, *_BETAS)
        constants = {"EVEN": cut.even, "UNEVEN": cut.uneven, "ALIGNED": name == "aligned"}
        found[name] = _listing(_compiled(kernels.count_kernel, arguments, cut, architecture, **constants))
    if plan.format.quantised:
        cut = launch.cut(Plan(torch.float32, torch.float32, plan.format), [])
        for name, kernel, more in (
            ("encode", kernels.encode_kernel, (_NUMBERS,)),
            ("decode", kernels.decode_kernel, ()),
        ):
            found[name] = _listing(_compiled(kernel, (*_TABLE, *more), cut, architecture, UNEVEN=cut.uneven))
    return found


def plans(bits: int) -> Iterator[Plan]:
    """Every combination of dtype, caution and rounding that optimizers make with this many bits."""
    format = FLOAT32 if bits == 32 else Format.of(bits)
    bfloat16 = (torch.bfloat16, torch.bfloat16)
    roundings = [("nearest", 32), ("dithered", 32), ("stochastic", 32), ("compensated", 32), ("compensated", 24)]
    stored = [(*bfloat16, *rounding) for rounding in roundings]
    stored += [(dtype, dtype, "nearest", 32) for dtype in (torch.float32, torch.float16)]
    stored += [(torch.float32, torch.bfloat16, "nearest", 32)]
    for (param, grad, rounding, master_bits), caution in product(stored, CAUTIONS):
        yield Plan(param, grad, format, caution, rounding, master_bits)


def _compiled(kernel: Any, arguments: tuple[Any, ...], cut: launch.Cut, architecture: int, **constants: Any) -> Any:
    """Compile as a launch on that GPU would, through a driver that only says which GPU it is."""
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: architecture,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", architecture, 32),
        )
    )
    return kernel.warmup(*arguments, grid=(1,), **constants, num_warps=cut.warps, **launch.EXACT)


def _listing(compiled: Any, elements_per_thread: int = 1) -> Listing:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        sass = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
        usage = re.search(r"REG:(\d+) STACK:(\d+)", _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name))
    assert usage is not None
    instructions, labels = _parsed(sass)
    fast_path = _fast_path(instructions, labels)
    per_element = len(fast_path) / elements_per_thread
    return Listing(compiled.asm["ptx"], instructions, fast_path, int(usage[1]), int(usage[2]), per_element)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _parsed(sass: str) -> tuple[list[str], dict[str, int]]:
    """Instructions, and which of them each label stands before."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels


def _fast_path(instructions: Sequence[str], labels: dict[str, int]) -> list[str]:
    """The loop that stores 16 bytes at a time, less the branch that reads again what an infinity was met in."""
    jumps = [(i, labels[m[1]]) for i, text in enumerate(instructions) if (m := re.search(r"BRA.*?(\.L_x_\d+)", text))]
    wide = [i for i, text in enumerate(instructions) if "STG.E.128" in text]
    loops = [(to, i) for i, to in jumps if any(to <= store <= i for store in wide)]
    if not loops:
        return []
    begin, end = min(loops)
    rare: set[int] = set()
    for i, to in jumps:
        if begin <= i < to <= end and any("LDG.E.128" in text for text in instructions[i + 1 : to]):
            rare |= set(range(i + 1, to))
    return [instructions[i] for i in range(begin, end + 1) if i not in rare]


def wide(listing: Listing) -> tuple[int, int]:
    """16-byte loads and stores on the fast path."""
    texts = " ".join(listing.fast_path)
    return texts.count("LDG.E.128"), texts.count("STG.E.128")


def _row(plan: Plan, architecture: int, found: Listing) -> str:
    loads, stores = wide(found)
    dtypes = " / ".join(str(dtype).removeprefix("torch.") for dtype in (plan.param_dtype, plan.grad_dtype))
    rounding = plan.param_rounding + (f" {plan.master_bits}" if plan.param_rounding == "compensated" else "")
    return (
        f"| {plan.format.bits} | {dtypes} | {plan.caution} | {rounding} | {architecture} | {found.registers} "
        f"| {found.stack} | {loads}, {stores} | {found.per_element:.1f} |"
    )


def faults(found: Listing, fast: bool = True) -> list[str]:
    """What breaks the law or wastes bandwidth in a compiled kernel; ``fast`` says that it has a fast path."""
    forbidden = {
        r"\bfma\.": "contracts a*b + c",
        r"\.ftz\b": "flushes subnormal numbers",
        r"\.approx\b": "approximates",
        r"\bdiv\.full\b": "divides approximately",
    }
    told = [f"PTX {meaning}" for pattern, meaning in forbidden.items() if re.search(pattern, found.ptx)]
    if found.stack or any(re.search(r"\b(LDL|STL)\b", text) for text in found.instructions):
        told.append(f"SASS spills to local memory, {found.stack} bytes")
    if fast and 0 in wide(found):
        told.append(f"SASS has {wide(found)} 16-byte loads and stores on the fast path")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row of markdown for every plan; the exit code counts kernels with faults, which are told."""
    parser = argparse.ArgumentParser(prog="lionbits_triton.sass", description=main.__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, as 90")
    parser.add_argument("--bits", type=int, nargs="+", default=(32, 8, 4, 2), help="of the momentum")
    parser.add_argument("--caution", nargs="+", choices=CAUTIONS, default=CAUTIONS)
    asked = parser.parse_args(argv)
    if INTERPRETED.value:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    print(f"triton {triton.__version__}\n")
    print(
        "| bits | parameter / gradient | caution | rounding | sm | registers | stack | 16-byte loads, stores | SASS |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    faulty = 0
    for bits, architecture in product(asked.bits, asked.arch):
        for plan in plans(bits):
            if plan.caution in asked.caution:
                found = step(plan, architecture)
                print(_row(plan, architecture, found), flush=True)
                faulty += _tell(f"step, {plan}, sm_{architecture}", faults(found))
        for name, other in others(next(plans(bits)), architecture).items():
            faulty += _tell(f"{name}, {bits} bits, sm_{architecture}", faults(other, fast=False))
    return faulty


def _tell(kernel: str, told: list[str]) -> int:
    for fault in told:
        print(f"{kernel}: {fault}", flush=True)
    return bool(told)


if __name__ == "__main__":
    sys.exit(main())
