"""Under accelerate: accumulation, clipping, schedules, autocast; load_state continues as if nothing had stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lionbits import Lion

from .tiny import OTHERS_MAY_WARN, SETTINGS, assert_same, gpt2, outcome, texts, tool

accelerate = tool("accelerate")
tool("transformers")
pytestmark = OTHERS_MAY_WARN


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate keeps one state for the whole process; each test has its own."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_a_loaded_state_equals_the_uninterrupted_run(
    tmp_path: Path, optimizer_class: type[Lion], precision: str, safe: bool
) -> None:
    """Everything is prepared; two steps, a checkpoint, two more; and those two again, from the checkpoint."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)

    def prepared() -> tuple[Any, ...]:
        accelerator._models.clear()
        accelerator._optimizers.clear()
        accelerator._schedulers.clear()
        model = gpt2().eval()  # without dropout
        optimizer = optimizer_class(model.parameters(), **SETTINGS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        return accelerator.prepare(model, optimizer, schedule)

    batches = list(accelerator.prepare(DataLoader(texts(32), batch_size=4)))

    def train(parts: tuple[Any, ...], steps: range) -> None:
        model, optimizer, schedule = parts
        for step in steps:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batches[step]).loss)
                if accelerator.sync_gradients:
                    assert accelerator.clip_grad_norm_(model.parameters(), 0.1) > 0.1
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()

    whole = prepared()
    train(whole, range(4))
    accelerator.save_state(str(tmp_path), safe_serialization=safe)
    train(whole, range(4, 8))
    resumed = prepared()
    accelerator.load_state(str(tmp_path))
    train(resumed, range(4, 8))
    expected, found = (outcome(model, optimizer.optimizer) for model, optimizer, _ in (whole, resumed))
    assert_same(found, expected)
    assert expected["state"]["transformer.wte.weight"]["step"] == 4
    assert expected["rates"] != [SETTINGS["lr"]]
