"""LoRA adapters with PEFT, trained by 8-bit Lion: only the adapters have optimizer state."""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import lionbits


def main() -> None:
    """Train the adapters, save them, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    parser.add_argument("--model", help="a name on the Hub, or a folder (default: a random GPT-2)")
    parser.add_argument("--targets", nargs="+", default=["c_attn", "c_fc"], help="modules that get adapters")
    parser.add_argument("--optimizer", default="Lion8bit", help="a class of lionbits (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-2, help="as for AdamW; it is converted")
    for name, size in (("rank", 32), ("width", 64), ("layers", 2), ("context", 64), ("batch", 16), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--output", type=Path, help="where the adapters go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    text = b"".join(file.read_bytes() for file in args.text)
    if args.model:
        tokens = torch.tensor(AutoTokenizer.from_pretrained(args.model)(text.decode())["input_ids"])
        base = AutoModelForCausalLM.from_pretrained(args.model)
    else:
        tokens = torch.tensor(list(text))
        sizes = {"n_embd": args.width, "n_layer": args.layers, "n_head": 4, "n_positions": args.context}
        base = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes))
    fan_in_fan_out = base.config.model_type == "gpt2"  # its linear layers are stored transposed
    lora = LoraConfig(r=args.rank, target_modules=args.targets, fan_in_fan_out=fan_in_fan_out, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).to(args.device)
    model.print_trainable_parameters()

    # Frozen parameters may be handed over too: they have no gradient, are left alone and get no state.
    optimizer = getattr(lionbits, args.optimizer)(model.named_parameters(), **lionbits.from_adamw(args.lr, 0.0))
    for step in range(args.steps):
        at = torch.randint(len(tokens) - args.context + 1, (args.batch, 1)) + torch.arange(args.context)
        x = tokens[at].to(args.device)
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    held = [value for state in optimizer.state.values() for value in state.values()]
    state = sum(value.nbytes for value in held if isinstance(value, torch.Tensor))
    print(f"{state:,} bytes of optimizer state")
    if args.output:
        model.save_pretrained(args.output)
        torch.save(optimizer.state_dict(), args.output / "optimizer.pt")


if __name__ == "__main__":
    main()
