"""Bounds on bandwidth by instructions, predicted on any machine: ``python -m lionbits_bench roofline``.

Counted is the fast path of a step as :mod:`.sass` finds it: the loop over even tiles, over the elements that a thread
has in one. The cost of a work item before that loop (up to 32 tiles share it), branches for elements that are not
finite, and slow paths of divisions are left out. A multiprocessor issues 128 threads' instructions in a clock, and its
pipes take fewer: so a plan's clocks per element are those of the busiest, and the time of a step is the larger of
those and of its bytes at the speed of a copy. Latency and occupancy are not modelled: the bound is optimistic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from lionbits_cli.charts import INK, drawing, style
from lionbits_reference.spec import FLOAT32, Format, Plan

from . import sass, traffic

#: A parameter to count the bytes of: whole blocks in even rows.
SHAPE = (4096, 4096)
DTYPES = (torch.bfloat16, torch.float32)
BITS = (32, 8, 4)

#: Share of the peak in the data sheet that a device-to-device copy reaches, where it was not measured.
COPY_SHARE = 0.9

#: Opcodes of the pipes that a kernel may fill before all issue slots are taken; others take a slot and no more.
#: ALU: logic, shifts, integer sums, comparisons, selects, bytes, bfloat16 packing. FMA: float32, and integer products.
PIPES = {
    "ALU": "LOP3 SHF IADD3 VIADD LEA ISETP FSETP PLOP3 SEL FSEL FMNMX IMNMX VIMNMX VIMNMX3 VIADDMNMX PRMT IABS SGXT "
    "MOV P2R R2P FCHK F2FP",
    "FMA": "FADD FMUL FFMA HFMA2 IMAD",
    "IMAD": "IMAD",
    "XU": "MUFU I2F F2I",
}
_PIPES_OF = {code: [pipe for pipe, codes in PIPES.items() if code in codes.split()]
             for codes in PIPES.values() for code in codes.split()}  # fmt: skip


class Gpu(NamedTuple):
    """A GPU's data sheet, and the bandwidth of a copy."""

    name: str
    architecture: int
    multiprocessors: int
    boost: float  # Hz
    peak: float  # bytes of device memory per second
    copy: float | None = None  # the same of a device-to-device copy, read and written, where measured

    @property
    def copy_bandwidth(self) -> float:
        """Bytes per second of a copy, measured or estimated."""
        return self.copy or COPY_SHARE * self.peak

    @property
    def lanes(self) -> dict[str, int]:
        """Threads whose instructions a multiprocessor takes in a clock: four schedulers of 32, and of each pipe."""
        return {"issue": 128, "ALU": 64, "FMA": 64 if self.architecture == 80 else 128, "IMAD": 64, "XU": 16}


GPUS = (
    Gpu("A100 SXM 80 GB", 80, 108, 1.410e9, 2.039e12),
    Gpu("H100 SXM", 90, 132, 1.980e9, 3.35e12),
    Gpu("H200", 90, 132, 1.980e9, 4.8e12, copy=4.3e12),
    Gpu("RTX 4090", 89, 128, 2.520e9, 1.008e12),
    Gpu("L4", 89, 58, 2.040e9, 0.300e12),
)


class Prediction(NamedTuple):
    """Prediction for one plan on one GPU."""

    percent: float  # of a copy's bandwidth that instructions allow; from 100 on, memory is the limit
    pipe: str  # the busiest


class Row(NamedTuple):
    """A plan on a backend: instructions per element by architecture and pipe, and predictions in order of GPUs."""

    backend: str
    plan: Plan
    bytes: float
    counts: dict[int, dict[str, float]]
    predictions: list[Prediction]


def counts(instructions: Iterable[str], elements: int) -> dict[str, float]:
    """Return instructions per element: all of them (``issue``), and those of each pipe."""
    codes = Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in instructions)
    found = dict.fromkeys(PIPES, 0) | {"issue": sum(codes.values())}
    for code, times in codes.items():
        for pipe in _PIPES_OF.get(code, ()):
            found[pipe] += times
    return {pipe: times / elements for pipe, times in found.items()}


def predict(counted: Mapping[str, float], bytes_per_element: float, gpu: Gpu) -> Prediction:
    """Return the bandwidth at which the busiest pipe takes a plan's elements, in percent of a copy's."""
    clocks = {pipe: times / gpu.lanes[pipe] for pipe, times in counted.items()}
    pipe = max(clocks, key=lambda name: clocks[name])
    elements_per_second = gpu.multiprocessors * gpu.boost / clocks[pipe]
    return Prediction(100 * elements_per_second * bytes_per_element / gpu.copy_bandwidth, pipe)


def plans() -> Iterator[Plan]:
    """Yield common plans: 32, 8 and 4 bits, bfloat16 or float32, neither caution nor unbiased parameters."""
    for bits, dtype in product(BITS, DTYPES):
        yield Plan(dtype, dtype, FLOAT32 if bits == 32 else Format.of(bits), nonfinite="skip")


def row(backend: str, plan: Plan, gpus: Sequence[Gpu]) -> Row:
    """Compile the plan for every architecture among the GPUs, and predict.

    Raises:
        ImportError, RuntimeError, FileNotFoundError: there is no compiler or disassembler here.
    """
    moved = traffic.plan_bytes(plan, SHAPE) / (SHAPE[0] * SHAPE[1])
    counted = {}
    for architecture in sorted({gpu.architecture for gpu in gpus}):
        found = sass.step(backend, plan, architecture)
        counted[architecture] = counts(found.fast_path, found.elements)
    predictions = [predict(counted[gpu.architecture], moved, gpu) for gpu in gpus]
    return Row(backend, plan, moved, counted, predictions)


def run(backends: Sequence[str], gpus: Sequence[Gpu], chart: Path | None = None) -> int:
    """Print the table as markdown, each row as soon as it is known; draw it if asked."""
    heads = [_heading(gpu) for gpu in gpus]
    print("| backend | bits | parameter, gradient | bytes | sm: all, ALU, FMA, IMAD |", " | ".join(heads), "|")
    print("|---" * (5 + len(gpus)) + "|")
    rows = []
    for backend, plan in product(backends, plans()):
        rows.append(row(backend, plan, gpus))
        print(line(rows[-1]), flush=True)
    if chart:
        draw(rows, gpus, chart)
    return 0


def line(found: Row) -> str:
    """Return a row of markdown; bandwidth that instructions limit is bold."""
    listed = "<br>".join(
        f"{architecture}: " + ", ".join(f"{counted[pipe]:.1f}" for pipe in ("issue", "ALU", "FMA", "IMAD"))
        for architecture, counted in found.counts.items()
    )
    cells = [
        f"**{each.percent:.0f}** {each.pipe}" if each.percent < 100 else f"{each.percent:.0f} {each.pipe}"
        for each in found.predictions
    ]
    return f"| {found.backend} | {_named(found.plan)} | {found.bytes:.2f} | {listed} | {' | '.join(cells)} |"


def draw(rows: Sequence[Row], gpus: Sequence[Gpu], path: Path) -> None:
    """Draw a point for each plan and GPU, beside the line of a copy."""
    with drawing(path, 10, 1.8 + 0.36 * len(rows)) as figure:
        axes = figure.add_subplot()
        for i, gpu in enumerate(gpus):
            colour, marker = style(i)
            percents = [each.predictions[i].percent for each in rows]
            axes.plot(percents, range(len(rows)), marker, color=colour, markersize=8, label=gpu.name)
        labels = [f"{each.backend} {_named(each.plan).replace(' |', ' bits,')}" for each in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.axvline(100, color=INK, linestyle="--", linewidth=1.2)
        axes.set_xscale("log")
        axes.set_xticks(ticks := [50 * 2**i for i in range(8)], [f"{tick}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("bandwidth that instructions allow, % of a copy's; right of the line, memory is the limit")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        figure.suptitle("Instructions beside memory, predicted from SASS", fontsize=14)


def _named(plan: Plan) -> str:
    return f"{plan.format.bits} | {str(plan.param_dtype).removeprefix('torch.')}"


def _heading(gpu: Gpu) -> str:
    copy = f"{gpu.copy_bandwidth / 1e12:.2f} TB/s"
    return f"{gpu.name}, {copy}" + ("" if gpu.copy else " (estimate)")
