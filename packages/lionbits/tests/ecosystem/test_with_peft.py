"""With PEFT: LoRA adapters on a frozen model, saved and loaded as PEFT does; resumed as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits import Lion, Lion4bit, Lion8bit

from .tiny import OTHERS_MAY_WARN, SETTINGS, assert_same, batch, gpt2, outcome, tool

peft = tool("peft")
transformers = tool("transformers")
pytestmark = OTHERS_MAY_WARN


def adapted() -> Any:
    """The tiny GPT-2, frozen, with adapters of rank 32 on its attention."""
    settings = peft.LoraConfig(r=32, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    torch.manual_seed(2)
    return peft.get_peft_model(gpt2(), settings)


def train(model: Any, optimizer: Lion, steps: range) -> None:
    model.eval()  # without dropout
    for step in steps:
        model(**batch(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("everything", [False, True], ids=["trainable parameters", "all parameters"])
def test_resumed_adapters_equal_the_uninterrupted_ones(
    tmp_path: Path, optimizer_class: type[Lion], everything: bool
) -> None:
    """Adapters go to safetensors, optimizer state to a file that ``weights_only=True`` reads; frozen weights stay."""

    def build(model: Any) -> Lion:
        return optimizer_class([p for p in model.parameters() if everything or p.requires_grad], **SETTINGS)

    whole = adapted()
    optimizer = build(whole)
    train(whole, optimizer, range(3))
    whole.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(whole, optimizer, range(3, 6))

    resumed = peft.PeftModel.from_pretrained(gpt2(), tmp_path, is_trainable=True)
    second = build(resumed)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(resumed, second, range(3, 6))
    assert_same(outcome(resumed, second), outcome(whole, optimizer))
    trained = {param for param in whole.parameters() if param.requires_grad}
    assert set(optimizer.state) == trained  # frozen weights have no state
    frozen = {name: param for name, param in whole.get_base_model().named_parameters() if "lora" not in name}
    untouched = gpt2().state_dict()
    assert_same(
        {name.replace(".base_layer", ""): param.detach() for name, param in frozen.items()},
        {name: untouched[name] for name in untouched if name != "lm_head.weight"},
    )


@pytest.mark.parametrize("rank", [8, 16, 64])
def test_adapters_of_any_rank_have_codes(rank: int) -> None:
    """Of GPT-2's own sizes: 1.10 bytes of state for each trained parameter at 8 bits, 0.60 at 4, at most."""
    targets = ["c_attn", "c_proj", "c_fc"]
    sizes = {"n_embd": 768, "n_layer": 1, "n_head": 12, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    lora = peft.LoraConfig(r=rank, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora)
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    for optimizer_class, most in ((Lion8bit, 1.10), (Lion4bit, 0.60)):
        optimizer = optimizer_class([param for param in model.parameters() if param.requires_grad])
        optimizer.init_state()
        held = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
        assert sum(value.nbytes for value in held) / trained <= most
