"""The compiler's output for a backend's kernels, on any machine: ``python -m lionbits_bench sass --backend cupy``.

A backend that compiles for CUDA has a module ``lionbits_<name>.compiled``, with ``kernels(plan, architecture)``:
PTX and cubin of each kernel, by name, as in a launch but for a GPU that need not be there. Checked are registers, no
stack frame (nothing spilled), 16-byte accesses on the fast path of a step, and instructions per element there; a GPU
has time for about 55 while memory delivers the 8 bytes of an 8-bit step in bfloat16.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from lionbits_reference.spec import CAUTIONS, FLOAT32, Format, Plan

HEADER = "| bits | parameter / gradient | caution | rounding | sm | registers | stack | 16-byte loads, stores | SASS |"
STEP = "step_kernel"

#: Patterns that may not be in PTX, and their meaning.
FORBIDDEN = {
    r"\bfma\.": "contracts a*b + c",
    r"\.ftz\b": "flushes subnormal numbers",
    r"\.approx\b": "approximates",
    r"\bdiv\.full\b": "divides approximately",
}


class Listing(NamedTuple):
    """A compiled kernel."""

    ptx: str
    instructions: list[str]  # SASS
    fast_path: list[str]  # of these, the loop over even tiles, without what it rarely takes
    registers: int
    stack: int  # bytes; more than 0 means spills
    elements: int  # of a thread in one turn of the loop

    @property
    def per_element(self) -> float:
        """Instructions per element of the fast path."""
        return len(self.fast_path) / self.elements


def listings(backend: str, plan: Plan, architecture: int) -> dict[str, Listing]:
    """Return every kernel of a plan, by name; the step is :data:`STEP`."""
    compiled = importlib.import_module(f"lionbits_{backend}.compiled")
    found = compiled.kernels(plan, architecture)
    elements = compiled.elements_per_thread(plan)
    return {name: listing(name, ptx, cubin, elements) for name, (ptx, cubin) in found.items()}


def step(backend: str, plan: Plan, architecture: int) -> Listing:
    """Return the step alone: disassembling all kernels takes longer than compiling."""
    compiled = importlib.import_module(f"lionbits_{backend}.compiled")
    ptx, cubin = compiled.kernels(plan, architecture)[STEP]
    return listing(STEP, ptx, cubin, compiled.elements_per_thread(plan))


def listing(name: str, ptx: str, cubin: bytes, elements_per_thread: int = 1) -> Listing:
    """Disassemble the kernel of this name, or else the first of the cubin (that of "aligned" has count_kernel, say)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        sass = _output("nvdisasm", "-c", file.name)
        used = _output("cuobjdump", "-res-usage", file.name)
    usage = {m[1]: (int(m[2]), int(m[3])) for m in re.finditer(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", used)}
    function = name if name in usage else next(iter(usage))
    instructions, labels = _parsed(_section(sass, function))
    fast_path = _fast_path(instructions, labels)
    return Listing(ptx, instructions, fast_path, *usage[function], elements_per_thread)


def faults(found: Listing, fast: bool = True) -> list[str]:
    """Return the faults of a compiled kernel: broken rules of arithmetic, wasted bandwidth.

    ``fast`` is True if it has a fast path.
    """
    problems = [f"PTX {meaning}" for pattern, meaning in FORBIDDEN.items() if re.search(pattern, found.ptx)]
    if found.stack or any(re.search(r"\b(LDL|STL)\b", text) for text in found.instructions):
        problems.append(f"SASS spills to local memory, {found.stack} bytes")
    if fast and 0 in wide(found):
        problems.append(f"SASS has {wide(found)} 16-byte loads and stores on the fast path")
    return problems


def wide(found: Listing) -> tuple[int, int]:
    """Return the numbers of 16-byte loads and stores on the fast path."""
    texts = " ".join(found.fast_path)
    return texts.count("LDG.E.128"), texts.count("STG.E.128")


def plans(bits: int, cautions: Sequence[str] = CAUTIONS) -> Iterator[Plan]:
    """Yield every combination of dtype, caution and rounding that optimizers make with this many bits."""
    format = FLOAT32 if bits == 32 else Format.of(bits)
    roundings = [("nearest", 32), ("dithered", 32), ("stochastic", 32), ("compensated", 32), ("compensated", 24)]
    stored = [(torch.bfloat16, torch.bfloat16, *rounding) for rounding in roundings]
    stored += [(dtype, dtype, "nearest", 32) for dtype in (torch.float32, torch.float16)]
    stored += [(torch.float32, torch.bfloat16, "nearest", 32)]
    for (param, grad, rounding, master_bits), caution in product(stored, cautions):
        yield Plan(param, grad, format, caution, rounding, master_bits)


def run(backend: str, architectures: Sequence[int], bits: Sequence[int], cautions: Sequence[str]) -> int:
    """Print a row of markdown for every plan, with its faults; return the number of kernels with faults."""
    faulty, header = 0, f"{HEADER}\n{'|---' * 9}|\n"
    for wanted, architecture in product(bits, architectures):
        for plan in plans(wanted, cautions):
            found = listings(backend, plan, architecture)
            print(header + _row(plan, architecture, found[STEP]), flush=True)
            header = ""
            for name, each in found.items():
                problems = faults(each, fast=name == STEP)
                faulty += bool(problems)
                for fault in problems:
                    print(f"{name}, {plan}, sm_{architecture}: {fault}", flush=True)
    return faulty


def _row(plan: Plan, architecture: int, found: Listing) -> str:
    loads, stores = wide(found)
    dtypes = " / ".join(str(dtype).removeprefix("torch.") for dtype in (plan.param_dtype, plan.grad_dtype))
    rounding = plan.param_rounding + (f" {plan.master_bits}" if plan.param_rounding == "compensated" else "")
    return (
        f"| {plan.format.bits} | {dtypes} | {plan.caution} | {rounding} | {architecture} | {found.registers} "
        f"| {found.stack} | {loads}, {stores} | {found.per_element:.1f} |"
    )


def _section(sass: str, function: str) -> str:
    """Return the listing of one function."""
    sections = re.split(r"^//-+ \.text\.(\w+)\s+-+$", sass, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))[function]


def _parsed(sass: str) -> tuple[list[str], dict[str, int]]:
    """Return instructions, and the index of the instruction behind each label."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels


def _fast_path(instructions: Sequence[str], labels: dict[str, int]) -> list[str]:
    """Return the innermost loop that stores 16 bytes at a time, less what it skips on most tiles (:func:`_rare`)."""
    jumps = [
        (i, labels[m[1]])
        for i, text in enumerate(instructions)
        if (m := re.search(r"BRA.*?(\.L_x_\d+)", text)) and m[1] in labels
    ]
    wide = [i for i, text in enumerate(instructions) if "STG.E.128" in text]
    loops = [(to, i) for i, to in jumps if any(to <= store <= i for store in wide)]
    if not loops:
        return []
    begin, end = min(loops, key=lambda loop: loop[1] - loop[0])
    skipped = [range(i + 1, to) for i, to in jumps if begin <= i < to <= end]
    rare = _rare(instructions, skipped)
    return [instructions[i] for i in range(begin, end + 1) if i not in rare]


def _rare(instructions: Sequence[str], skipped: Sequence[range]) -> set[int]:
    """Return rare instructions among the skipped ones: for elements that are not finite, and slow paths of divisions.

    The branch for such elements loads again what was loaded, or compares with the bits of infinity. A float is divided
    by a call if the quotient is near the end of the range; integers only in tiles of tensors with many rows, by
    way of a float. These two are the shortest branch around the call and the conversion.
    """
    found: set[int] = set()
    for inside in skipped:
        texts = [instructions[i] for i in inside]
        compares = sum("0x7f800000" in text or "0x7f7fffff" in text for text in texts)
        if any("LDG.E.128" in text for text in texts) or compares > 4:
            found |= set(inside)
    for i, text in enumerate(instructions):
        around = [inside for inside in skipped if i in inside]
        if around and re.search(r"\b(CALL|I2F)\b", text):
            shortest = min(around, key=len)
            found |= set(shortest)
    return found


def _output(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_tool(tool)), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _tool(name: str) -> Path:
    """Return the path of a tool of the CUDA toolkit: from NVIDIA's own packages, or as Triton ships it."""
    for folder in sys.path:
        for place in ("nvidia/cu13/bin", "nvidia/cuda_nvcc/bin", "triton/backends/nvidia/bin"):
            if (found := Path(folder) / place / name).is_file():
                return found
    raise FileNotFoundError(f"{name} is not there: pip install nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump, or triton")
