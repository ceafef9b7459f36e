"""LoRA at 32, 8 and 4 bits, side by side: a model of Python's source is adapted to the text of Python's manual."""

import argparse
import copy
import pydoc_data.topics
import statistics
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import lionbits


def batches(text: torch.Tensor, count: int, args: argparse.Namespace, seed: int) -> list[torch.Tensor]:
    """Random windows of a text, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - args.context + 1, (count, args.batch, 1), generator=generator)
    return list(text[starts + torch.arange(args.context)].long())


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: list[torch.Tensor]) -> None:
    """A step for each batch, with a learning rate that falls to zero."""
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(data))
    for x in data:
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def loss(model: torch.nn.Module, data: list[torch.Tensor]) -> float:
    """The mean loss of batches."""
    return statistics.fmean(model(input_ids=x, labels=x).loss.item() for x in data)


def main() -> None:
    """Train the base, adapt copies of it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"rank": 8, "width": 128, "layers": 2, "context": 64, "batch": 16, "steps": 300, "seeds": 3}
    for name, size in {**sizes, "base-steps": 400}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the adapters")
    args = parser.parse_args()

    sources = sorted(Path(argparse.__file__).parent.glob("*.py"))
    source = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
    manual = torch.frombuffer(bytearray("".join(pydoc_data.topics.topics.values()).encode()), dtype=torch.uint8)
    cut = len(manual) * 9 // 10
    held_out = batches(manual[cut:], 20, args, 99)

    torch.manual_seed(0)
    shape = {"n_embd": args.width, "n_layer": args.layers, "n_head": 4, "n_positions": args.context, "vocab_size": 256}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    base = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape, **dropout))
    train(base, lionbits.Lion(base.parameters(), lr=3e-4), batches(source, args.base_steps, args, 0))
    print(f"base, before it is adapted: loss {loss(base, held_out):.4f}")
    targets = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    lora = LoraConfig(r=args.rank, task_type="CAUSAL_LM", **targets)
    print("| optimizer | bytes of state per trained parameter | held-out loss of each seed | mean |\n|---|---|---|---|")
    for optimizer_class in (lionbits.Lion32bit, lionbits.Lion8bit, lionbits.Lion4bit):
        losses = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            model = get_peft_model(copy.deepcopy(base), lora)
            trained = [param for param in model.parameters() if param.requires_grad]
            optimizer = optimizer_class(trained, lr=args.lr, min_8bit_size=256)  # these adapters are small
            train(model, optimizer, batches(manual[:cut], args.steps, args, 1 + seed))
            losses.append(loss(model, held_out))
        held = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
        size = sum(value.nbytes for value in held) / sum(param.numel() for param in trained)
        cells = [f"{size:.3f}", ", ".join(f"{value:.4f}" for value in losses), f"loss {statistics.fmean(losses):.4f}"]
        print(f"| {optimizer_class.__name__} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
