"""The conformance suite rejects each C++ library with a fault in it; the self-test finds some of them, too."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import lionbits_cpp
from lionbits_conformance import mutation_testing
from lionbits_conformance.fault_injection import with_fault
from lionbits_conformance.patched_import import Edit
from lionbits_cpp import build, library

LION, TABLE, PASSES, UPDATE, KERNELS = (
    f"cpp/{name}" for name in ("lion.hpp", "table.hpp", "passes.hpp", "update.hpp", "kernels.cpp")
)

FAULTS = {
    "the momentum's sum is fused": Edit(LION, "return m * b + g * one_minus_b; }", "return __builtin_fmaf(m, b, g * one_minus_b); }"),
    "a zero moves as a negative number does": Edit(LION, "__builtin_islessgreater(x, 0.0f) ?", "x == x ?"),
    "signs are compared by a product": Edit(LION, "(x > 0 && y > 0) || (x < 0 && y < 0)", "x * y > 0"),
    "the gradient's sign wins where it agrees": Edit(LION, "agree(c, -g) ?", "agree(c, g) ?"),
    "momentum is scaled for more than it can hold": Edit(LION, "absmax > HUGEST ? HUGEST : absmax", "absmax"),
    "a block of small numbers has a scale": Edit(LION, "if (!(absmax > TINY))", "if (!(absmax > 0))"),
    "a block that is not finite has no NaN": Edit(LION, "if (!finite(absmax)) return {0.0f, 0, float_of(NOT_A_NUMBER)};", "if (!finite(absmax)) return {0.0f, 0, 0.0f};"),
    "codes are not held at the largest": Edit(LION, "rounded < block.limit ? rounded : block.limit", "rounded"),
    "a zero keeps its sign": Edit(LION, "k > 0 && bits_of(m) >= SIGN", "bits_of(m) >= SIGN"),
    "small codes are of another size": Edit(LION, "(normal < subnormal ? normal : subnormal)", "normal"),
    "small momentum is truncated": Edit(LION, "held * 0x1p22f + WHOLE)", "held * 0x1p22f - 0.5f + WHOLE)"),
    "stochastic noise keeps the step out": Edit(LION, "fmix32(salted ^ step * 0x9E3779B9)", "fmix32(salted)"),
    "dithered noise has no phase": Edit(LION, "return {rounding, salted, step * 40503 & 0xFFFF};", "return {rounding, salted, 0};"),
    "a bfloat16 rounds half up": Edit(LION, "(bits + 0x7FFF + (bits >> 16 & 1)) >> 16", "(bits + 0x8000) >> 16"),
    "a float16 rounds half up": Edit(LION, "(bits + 0xFFF + (bits >> 13 & 1)", "(bits + 0x1000"),
    "a small float16 is a normal one": Edit(LION, "unsigned_bits < 0x400u << 13 ? subnormal : normal", "normal"),
    "24 bits are truncated": Edit(LION, "(bits_of(x) + (noise >> 8)) & 0xFFFFFF00", "bits_of(x) & 0xFFFFFF00"),
    "rows are packed without a gap": Edit(TABLE, "(slot.columns * bits + 7) / 8", "slot.columns * bits / 8"),
    "a slice counts from zero": Edit(PASSES, "uint64(slot.start + chunk.row", "uint64(chunk.row"),
    "rows count from their own width": Edit(PASSES, "chunk.row * slot.pitch + chunk.column) >> 1", "chunk.row * slot.columns + chunk.column) >> 1"),
    "no carry into the high half of a position": Edit(PASSES, "low + uint32(i) < low ? carried : spread", "spread"),
    "both of a pair get one half of the hash": Edit(PASSES, "        std::memcpy(noise + 2 * i, &h, sizeof h);  // the", "        noise[2 * i] = noise[2 * i + 1] = uint16(h);  // the"),
    "nibbles are swapped": Edit(PASSES, "(packed[i] & 0x0F) << 4 | (packed[i] & 0xF0) << 8", "(packed[i] & 0xF0) | (packed[i] & 0x0F) << 12"),
    "the last codes of a row are not cleared": Edit(PASSES, "b.codes[j] = 0;", "b.codes[j] = 15;"),
    "scales are those of the first block": Edit(PASSES, "*scale_of(plan, slot, chunk.block + i), plan.format, count);\n    });\n    return b.m;", "*scale_of(plan, slot, chunk.block), plan.format, count);\n    });\n    return b.m;"),
    "a tensor-wise scale is overwritten": Edit(PASSES, "if (!plan.tensor_wise) *scale_of", "*scale_of"),
    "the residual of a chunk is the first chunk's": Edit(PASSES, "const int64 element = state_element(slot, chunk);", "const int64 element = 0;"),
    "infinity passes for a number": Edit(KERNELS, "later && found.largest >= INFINITE", "later && found.largest > INFINITE"),
    "p moves where an element is skipped": Edit(KERNELS, "            std::memcpy(p + first, b.before, std::size_t(count) * sizeof(float));\n", ""),
    "strides of the gradient are the parameter's": Edit(KERNELS, "plan.grad_dtype, slot, chunk, grad, slot.grad_strides);\n    const uint8* codes", "plan.grad_dtype, slot, chunk, grad, slot.param_strides);\n    const uint8* codes"),
    "the decay is left out": Edit(UPDATE, "old_p * n.keep - move", "old_p - move"),
    "skipped elements count as aligned": Edit(UPDATE, "aligned += applied && agree", "aligned += agree"),
    "skipped elements have no momentum": Edit(UPDATE, "magnitude(skip && !finite(next) ? m[j] : next)", "magnitude(skip && !finite(next) ? 0.0f : next)"),
}  # fmt: skip


def test_every_fault_is_one() -> None:
    """What is replaced stands in the sources; a change of them may not leave a fault behind unseen."""
    for edit in FAULTS.values():
        edit.applied(Path(lionbits_cpp.__path__[0], edit.file).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_library_is_rejected(tmp_path: Path, fault: str) -> None:
    """A property of calls finds it, within a few examples of each stratum of plans."""
    best, *_ = library.names()
    with with_fault(lionbits_cpp, [FAULTS[fault]], tmp_path) as wrong:
        builder: Any = importlib.import_module(f"{wrong.__name__}.build")
        builder.X86 = {best: build.X86[best]}
        builder.build()
        tester: Any = importlib.import_module(f"{wrong.__name__}.self_test")
        print(f"{fault}: the self-test says {tester.failure(wrong.prepare, wrong.step) and 'no'}")
        tester.failure = lambda *_: ""
        assert mutation_testing.try_backend(fault, wrong, patience=60).rejected_by is not None
