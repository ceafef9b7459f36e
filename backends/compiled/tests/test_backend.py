"""Bits, sizes that change, and machines that cannot compile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import lionbits
import lionbits_compiled as backend
from lionbits_compiled import functions, packing, steps
from lionbits_compiled.functions import WORD
from lionbits_conformance import serving
from lionbits_reference.spec import Format, Plan

#: Rows of whole blocks and of none, one that needs no copy, and batches of small ones of one shape.
SHAPES = [
    *((100,), (24, 40), (64, 64)) * 16,
    (64, 512),
    (300, 256),
    (33, 37),
    (5,),
    (),
    (0, 4),
    (1000, 64),
    (128, 130),
    (3, 3, 3, 40),
    (1 << 17,),
    (40_003,),
]


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Two of them with strides of their own."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made.append(torch.randn(512, 300, generator=generator).t())
    made.append(torch.randn(16, 8, 12, 12, generator=generator).contiguous(memory_format=torch.channels_last))
    return [torch.nn.Parameter(tensor.to(dtype)) for tensor in made]


def trained(name: str, updates: int = 3, dtype: torch.dtype = torch.float32, **settings: object) -> list[torch.Tensor]:
    """Parameters and state after some steps."""
    params = parameters(SHAPES, dtype)
    optimizer = lionbits.Lion(params, lr=1e-2, weight_decay=0.1, backend=name, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        for param in params:
            param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator) * 1e-3)
        optimizer.step()
    states = [value for param in params for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
    return [*params, *states]


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_the_reference(bits: int, dtype: torch.dtype) -> None:
    """Large tensors where they lie, small ones in same_shape_batches, ragged and strided ones in scratch."""
    compiled, reference = (trained(name, 3, dtype, optim_bits=bits) for name in ("compiled", "reference"))
    for got, want in zip(compiled, reference, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_bits_of_the_reference_on_other_machines(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes as words where this machine takes bytes, and the other way round."""
    reference = trained("reference", optim_bits=bits)
    monkeypatch.setattr(packing, "CODES", WORD if packing.CODES is torch.uint8 else torch.uint8)
    for got, want in zip(trained("compiled", optim_bits=bits), reference, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("settings", [{}, {"block_wise": False}, {"cautious": "mask"}], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_bits_of_the_reference_in_many_runs(
    bits: int, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs end within tensors, and the last ones are no longer than others; what rows have as a whole goes along."""
    reference = trained("reference", optim_bits=bits, **settings)
    monkeypatch.setattr(steps, "RUN", 3 << 12)
    lengths = [len(run) for (run,) in steps.split([torch.zeros(300, 256)], steps.runs(300, 256))]
    assert sum(lengths) == 300
    assert len(lengths) == 7
    assert max(lengths) - min(lengths) <= 1
    for got, want in zip(trained("compiled", optim_bits=bits, **settings), reference, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("width", [4096, 512])
def test_a_reset_of_the_compiler_does_no_harm(width: int) -> None:
    """Anyone may call it; what is compiled here stays compiled, for all sizes."""
    made = {}
    for name in ("compiled", "reference"):
        made[name] = []
        for rows in (40, 70, 33):
            param = torch.nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)))
            optimizer = lionbits.Lion([param], optim_bits=8, cautious="gradient", backend=name)
            param.grad = param.detach() * 1e-3
            optimizer.step()
            made[name] += [param.detach(), optimizer.state[param]["exp_avg_codes"]]
            torch.compiler.reset()
    for got, want in zip(made["compiled"], made["reference"], strict=True):
        assert torch.equal(got, want)


def steps_of_all_sizes(log2: int) -> None:
    """A step over tensors of many widths, with numbers of their own."""
    param = torch.nn.Parameter(torch.randn(1 << log2))
    optimizer = lionbits.Lion([param], lr=log2 * 1e-3, betas=(0.9, 1 - 1 / log2), optim_bits=8, backend="compiled")
    for block, name in ((32, "e3m4"), (256, "e4m3"), (1024, "e0m7"), (4096, "e1m6")):
        other = torch.nn.Parameter(torch.randn(7 * log2, block + log2))
        group = {"block_size": block, "state_format": name, "weight_decay": 0.1, "lr": 1e-4}
        optimizer.add_param_group({"params": [other], **group})
        other.grad = torch.randn_like(other)
    param.grad = torch.randn_like(param)
    optimizer.step()


def test_no_shape_and_no_number_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is another number is another number of the same function, but for widths that have their own."""
    for log2 in (10, 20):
        steps_of_all_sizes(log2)
    monkeypatch.setattr(torch._inductor, "compile", None)
    for log2 in (9, 15, 18, 21):
        steps_of_all_sizes(log2)


def test_a_run_is_an_eighth_of_the_cache_but_neither_short_nor_long(tmp_path: Path) -> None:
    """Its momentum, in float32; where nothing says how large the cache is, the shortest run."""
    size = tmp_path / "size"
    for text, momentum in (("8192K\n", 4), ("65536K\n", 8), ("491520K\n", 16), ("unknown\n", 4)):
        size.write_text(text)
        assert steps._run(size) == momentum << 18
    assert steps._run(tmp_path / "none") == 4 << 18


@pytest.mark.parametrize("bits", [32, 8])
def test_a_beta_of_zero_has_a_sign(bits: int) -> None:
    """In momentum where the gradient is -0.0, whichever zero came first."""
    for beta in (0.0, -0.0, 0.0):
        made = []
        for name in ("compiled", "reference"):
            param = torch.nn.Parameter(torch.ones(1 << 16))
            optimizer = lionbits.Lion([param], lr=1e-3, betas=(0.9, beta), optim_bits=bits, backend=name)
            for grad in (1.0, -0.0):
                param.grad = torch.full_like(param, grad)
                optimizer.step()
            made.append(optimizer.momentum(param))
        assert torch.equal(*(momentum.view(torch.int32) for momentum in made)), beta


@pytest.mark.parametrize("bits", [32, 8])
def test_the_rates_are_those_of_each_step_and_tensor(bits: int) -> None:
    """Rows of one tensor, and of the same one a step later, keep numbers only as long as these are the same."""
    made = {}
    for name in ("compiled", "reference"):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((1 << 16,), (1 << 17,)) * 2]
        groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1, "lr": 0.5}]
        optimizer = lionbits.Lion(groups, lr=1e-3, optim_bits=bits, backend=name)
        for turn, rate in enumerate((1e-3, 1e-3, 2e-3, 0.0, 1e-3)):
            optimizer.param_groups[0].update(lr=rate, maximize=turn == 4)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        made[name] = params
    assert all(torch.equal(got, want) for got, want in zip(made["compiled"], made["reference"], strict=True))


def test_subnormal_numbers_are_not_flushed() -> None:
    """Neither by the compiled code nor, because it was loaded, by anything else in the process."""
    ends = []
    for name in ("reference", "compiled"):
        param = torch.nn.Parameter(torch.full((1 << 16,), 3e-39))
        param.grad = torch.full_like(param, 1e-40)
        optimizer = lionbits.Lion32bit([param], lr=1e-41, weight_decay=0.5, backend=name)
        optimizer.step()
        ends.append((param, optimizer.momentum(param)))
        assert (torch.full((4,), 2e-40) * 0.5 > 0).all()
    (param, momentum), (twin, other) = ends
    assert torch.equal(param, twin)
    assert torch.equal(momentum, other)
    assert momentum[0] > 0


@pytest.mark.parametrize("settings", [{}, {"cautious": "mask"}, {"block_wise": False}])
def test_torchs_defaults_do_not_matter(settings: dict[str, object]) -> None:
    """Neither the dtype nor the device that torch makes tensors with where nobody says."""
    want = trained("compiled", 2, optim_bits=8, **settings)
    params = parameters(SHAPES)
    optimizer = lionbits.Lion(params, lr=1e-2, weight_decay=0.1, optim_bits=8, backend="compiled", **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for param in params:
            param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator) * 1e-3)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        try:
            optimizer.step()
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(got, param) for got, param in zip(params, want, strict=False))


def test_every_skipped_element_is_counted() -> None:
    """Of more than a float32 can count, in rows that are no round numbers."""
    param = torch.nn.Parameter(torch.zeros(1 << 25))
    param.grad = torch.where(torch.rand(1 << 25, generator=torch.Generator().manual_seed(0)) < 0.9, torch.inf, 1.0)
    optimizer = lionbits.Lion32bit([param], backend="compiled")
    optimizer.step()
    assert optimizer.skipped_elements() == int(param.grad.isinf().sum())


def test_every_plan_is_served() -> None:
    """The conformance suite skips what is refused, so nothing may be."""
    assert [plan for plan in serving.every_plan() if backend.supports(plan, torch.device("cpu"))] == []


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And names the way out; nothing has been changed by then."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in backend.supports(Plan(torch.float32, torch.float32, Format.of(8)), torch.device("cpu"))
    param = torch.nn.Parameter(torch.ones(64, 64))
    with pytest.raises(ValueError, match=r"no-such-compiler.*backend='reference'"):
        lionbits.Lion8bit([param], backend="compiled")


def test_other_devices_are_refused() -> None:
    reason = backend.supports(Plan(torch.float32, torch.float32, Format.of(8)), torch.device("cuda"))
    assert "CPU" in reason


def test_functions_are_made_once() -> None:
    assert functions.encode(torch.uint8, True, 256) is functions.encode(torch.uint8, True, 256)
    assert functions.encode(torch.uint8, True, 0) is not functions.encode(torch.uint8, False, 0)
