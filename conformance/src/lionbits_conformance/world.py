"""What a call leaves as it was beside its tensors: settings of torch, generators, memory of others, other threads."""

from __future__ import annotations

import array
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Backend

from . import bits, cases
from .cases import Call, Case
from .repro import CPU, repro_message

#: Steps that each of two threads takes, and how often they take turns, in seconds.
THREAD_STEPS, SWITCH = 4, 1e-5


def leaves_the_world_alone(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A call changes no setting of torch and no generator, and needs no default of theirs: its bits are the same."""
    message = repro_message(backend, "leaves_the_world_alone", case)
    want = _everything(reference, cases.build(case))
    for elsewhere in (torch.float32, (torch.float64, torch.bfloat16)[case.tensors[0].seed % 2]):
        call = cases.build(case, device)
        with _other_defaults(elsewhere):
            before = _world(device)
            got = _everything(backend, call)
            after = _world(device)
        changed = [name for name in before if not _same(before[name], after[name])]
        for name in changed:
            _RESTORE.get(name, lambda value: None)(before[name])
        if changed:
            raise bits.Disagreement(f"{message}\n  a call has changed: {', '.join(changed)}")
        bits.require_equal(got, want, f"{message}\n  with {elsewhere} as default dtype")


def keeps_no_gradient(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """After a call neither its gradients nor their memory are kept: they are freed when the caller lets them go."""
    call = cases.build(case, device)
    prepared = backend.prepare(case.plan, call.slots, call.grads)
    message = repro_message(backend, "keeps_no_gradient", case)
    for use in (backend.aligned, backend.absmax, backend.step):
        grads, owners = zip(*(_owned(grad) for grad in call.grads), strict=True)
        absmax = torch.zeros_like(call.scalars.lr) if case.plan.format.tensor_wise else None
        use(prepared, list(grads), case.hyper, replace(call.scalars, absmax=absmax))
        kept = [weakref.ref(grad) for grad in grads]
        del grads
        if any(ref() is not None for ref in kept):
            raise bits.Disagreement(f"{message}\n  {use.__name__} keeps a gradient")
        if any(owner() is not None for owner in owners):
            raise bits.Disagreement(f"{message}\n  {use.__name__} keeps the memory of a gradient")


def codec_shares_no_memory(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """What ``encode`` and ``decode`` return is the caller's: not the argument's memory, nor that of the next result."""
    format = case.plan.format
    message = repro_message(backend, "codec_shares_no_memory", case)
    for j, tensor in enumerate(case.tensors):
        state = cases.build(case, device).slots[j].state
        momentum = reference.decode(format, {key: value.cpu() for key, value in state.items()}, tensor.shape).to(device)
        encoded = [backend.encode(format, momentum) for _ in range(2)]
        decoded = [backend.decode(format, state, tensor.shape) for _ in range(2)]
        groups = {
            "the momentum to encode": [momentum],
            "the state to decode": list(state.values()),
            "the first result of encode": list(encoded[0].values()),
            "the second": list(encoded[1].values()),
            "the first result of decode": [decoded[0]],
            "the second result of decode": [decoded[1]],
        }
        for (name, some), (other, others) in combinations(groups.items(), 2):
            if {_memory(t) for t in some if t.numel()} & {_memory(t) for t in others if t.numel()}:
                raise bits.Disagreement(f"{message}\n  {other} shares memory with {name}")


def threads_do_not_meet(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """Two threads that step two preparations at once get what each gets by itself."""
    first = replace(case, updates=THREAD_STEPS)
    other = replace(first, seed=case.seed ^ 1, betas=(0.5, 0.9), lr=0.25, step=case.step + 7, index=case.index ^ 2)
    want = [cases.run(reference, each).results() for each in (first, other)]
    calls = [cases.build(each, device) for each in (first, other)]
    together = threading.Barrier(2)

    def work(call: Call) -> None:
        together.wait()
        with torch.no_grad():
            cases.update(backend, call, [slice(0, len(call.slots))])

    with _often_switched(), ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, call) for call in calls]:
            done.result()
    message = repro_message(backend, "threads_do_not_meet", case)
    for call, wanted in zip(calls, want, strict=True):
        bits.require_equal(call.results(), wanted, message)


def _everything(backend: Backend, call: Call) -> dict[str, Tensor]:
    """What every function of the backend makes of a call."""
    case, format = call.case, call.case.plan.format
    prepared = backend.prepare(case.plan, call.slots, call.grads)
    found = {
        name: count(prepared, call.grads, case.hyper, call.scalars)
        for name, count in (("aligned", backend.aligned), ("absmax", backend.absmax))
    }
    numbers = replace(call.scalars, absmax=found["absmax"]) if format.tensor_wise else call.scalars
    backend.step(prepared, call.grads, case.hyper, numbers)
    for j, slot in enumerate(call.slots):
        momentum = backend.decode(format, slot.state, slot.param.shape)
        found[f"decoded[{j}]"] = momentum
        found |= {f"encoded {key}[{j}]": value for key, value in backend.encode(format, momentum).items()}
    return {**found, **call.results()}


def _world(device: torch.device) -> dict[str, Any]:
    """What all code in a process shares, by name."""
    tiny = torch.full((16,), 2.0**-140, dtype=torch.float32, device="cpu")
    world = {
        "torch's default generator": torch.get_rng_state(),
        "Python's random": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "subnormal numbers": bool((tiny * 0.5 != 0).all()),
        "the number of threads": torch.get_num_threads(),
        "the number of threads between operators": torch.get_num_interop_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of products": torch.get_float32_matmul_precision(),
    }
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        world["numpy's generator"] = repr(numpy.random.get_state())
        world["numpy's errors"] = numpy.geterr()
    if device.type == "cuda":
        world["the device's generator"] = torch.cuda.get_rng_state(device)
        world["the current device"] = torch.cuda.current_device()
        world["the current stream"] = torch.cuda.current_stream(device).cuda_stream
    return world


#: How what a call has changed is put right, so that the next failure is of the next call.
_RESTORE: dict[str, Callable[[Any], object]] = {
    "torch's default generator": torch.set_rng_state,
    "Python's random": random.setstate,
    "grad mode": torch.set_grad_enabled,
    "subnormal numbers": lambda kept: torch.set_flush_denormal(not kept),
    "the number of threads": torch.set_num_threads,
    "deterministic algorithms": torch.use_deterministic_algorithms,
    "the precision of products": torch.set_float32_matmul_precision,
}


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@contextmanager
def _other_defaults(dtype: torch.dtype) -> Iterator[None]:
    """Run under this default dtype; where that is not float32, new tensors are on no device either, unless told so."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if dtype == torch.float32:
            yield
        else:
            with torch.device("meta"):
                yield
    finally:
        torch.set_default_dtype(usual)


@contextmanager
def _often_switched() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _owned(grad: Tensor) -> tuple[Tensor, Callable[[], Any]]:
    """A copy of a gradient with its strides, and what tells whether its memory is still there (None: it is not)."""
    if grad.device.type != "cpu" or not grad.numel():
        return grad.clone(), lambda: None
    span = 1 + sum((size - 1) * stride for size, stride in zip(grad.shape, grad.stride(), strict=True))
    memory = array.array("B", bytes(span * grad.element_size()))
    flat = torch.frombuffer(memory, dtype=grad.dtype)
    flat.copy_(grad.as_strided((span,), (1,)))
    return flat.as_strided(grad.shape, grad.stride()), weakref.ref(memory)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
