"""Optimizers in threads of one process, each its own: the first steps at once, and the bits of a single one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from lionbits import select

#: Run in a process of its own, in which nothing has been imported, traced or compiled yet.
SCRIPT = """
import sys, threading, torch
from lionbits import Lion

FORMS = [
    {"optim_bits": 8, "param_rounding": "compensated", "cautious": "mask", "grad_clip": 0.5},
    {"optim_bits": 4, "block_wise": False, "param_rounding": "stochastic"},
]

def run(settings):
    params = []
    for position, shape in enumerate(((64, 64), (70, 61), (33,))):
        generator = torch.Generator().manual_seed(position)
        params.append(torch.nn.Parameter(torch.randn(shape, generator=generator).bfloat16()))
    optimizer = Lion(params, lr=0.01, min_8bit_size=256, backend=sys.argv[1], **settings)
    start.wait(timeout=60)
    for step in range(3):
        for position, param in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + position)
            param.grad = torch.randn(param.shape, generator=generator).bfloat16()
        optimizer.step()
    state = [value for param in params for value in optimizer.state[param].values()]
    return [param.detach() for param in params] + state

def thread(place):
    found[place] = run(FORMS[place % 2])

found, start = {}, threading.Barrier(4)
threads = [threading.Thread(target=thread, args=(place,)) for place in range(4)]
for one in threads:
    one.start()
for one in threads:
    one.join()
start = threading.Barrier(1)
for place in range(4):
    alone = run(FORMS[place % 2])
    assert len(found[place]) == len(alone)
    assert all(map(torch.equal, found[place], alone)), place
print("the same bits")
"""


# Not triton: its interpreter changes modules while it runs, which threads share.
@pytest.mark.parametrize("backend", ["reference", "cpp", "cupy"])
def test_first_steps_at_once(backend: str) -> None:
    """Four threads, two forms of state, each form in two threads."""
    if importlib.util.find_spec(f"lionbits_{backend}") is None:
        pytest.skip(f"{backend} is not installed")
    reason = select.diagnose(backend, torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    script = [sys.executable, "-c", SCRIPT, backend]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "the same bits\n", done.stderr[-3000:]
