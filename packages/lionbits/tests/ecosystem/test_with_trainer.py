"""Under transformers' Trainer: accumulation, clipping, schedules and bfloat16 autocast; resumed as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lionbits import Lion, Lion8bit

from .tiny import OTHERS_MAY_WARN, SETTINGS, assert_same, gpt2, outcome, texts, tool

transformers = tool("transformers")
tool("accelerate")
pytestmark = OTHERS_MAY_WARN


def arguments(folder: Path, **more: Any) -> Any:
    """Six steps, saved after the third, clipped, with warm-up and a cosine."""
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **more,
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
def test_a_resumed_trainer_equals_the_uninterrupted_one(
    tmp_path: Path, optimizer_class: type[Lion], autocast: bool
) -> None:
    """``optimizer_cls_and_kwargs`` builds it, ``resume_from_checkpoint`` continues it, bit for bit."""

    def trainer() -> Any:
        chosen = (optimizer_class, {**SETTINGS, "weight_decay": 0.5})
        settings = arguments(tmp_path, bf16=autocast, weight_decay=0.1)
        return transformers.Trainer(gpt2(), settings, train_dataset=texts(64), optimizer_cls_and_kwargs=chosen)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert type(whole.optimizer.optimizer) is optimizer_class
    assert [group["weight_decay"] for group in whole.optimizer.param_groups] == [0.1, 0.0]  # not the class's argument
    assert_same(outcome(resumed.model, resumed.optimizer.optimizer), outcome(whole.model, whole.optimizer.optimizer))
    logged = [entry for entry in whole.state.log_history if "grad_norm" in entry]
    assert len(logged) == 6
    assert min(float(entry["grad_norm"]) for entry in logged) > 0.1  # clipping acted
    assert len({entry["learning_rate"] for entry in logged}) > 3  # and so did the schedule
    assert float(logged[-1]["loss"]) < float(logged[0]["loss"])


def test_overrides_by_name_come_with_an_optimizer_that_is_made_already(tmp_path: Path) -> None:
    """Trainer's own groups have no names, so embeddings get settings of their own through ``optimizers=``."""
    model = gpt2()
    optimizer = Lion8bit(model.named_parameters(), **SETTINGS, overrides={"*wte*": {"optim_bits": 32}})
    trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=texts(64), optimizers=(optimizer, None))
    trainer.train()
    assert optimizer.state[model.transformer.wte.weight]["step"] == 6
    assert "exp_avg" in optimizer.state[model.transformer.wte.weight]
    assert "exp_avg_codes" in optimizer.state[model.transformer.wpe.weight]


def test_betas_of_training_arguments_warn_until_they_are_lions(tmp_path: Path) -> None:
    """TrainingArguments' own betas are Adam's; ``adam_beta2=0.99`` is what the warning says to set."""
    params = list(gpt2().parameters())
    settings = arguments(tmp_path)
    with pytest.warns(UserWarning, match=r"adam_beta2=0\.99"):
        Lion8bit(params, betas=(settings.adam_beta1, settings.adam_beta2))
    settings = arguments(tmp_path, adam_beta2=0.99)
    optimizer = Lion8bit(params, betas=(settings.adam_beta1, settings.adam_beta2))
    assert optimizer.defaults["betas"] == (0.9, 0.99)
