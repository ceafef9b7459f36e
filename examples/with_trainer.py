"""8-bit Lion under transformers' Trainer: a small random GPT-2 that reads bytes, or any causal language model."""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

import lionbits


def main() -> None:
    """Train, save, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    parser.add_argument("--model", help="a name on the Hub, or a folder (default: a random GPT-2)")
    parser.add_argument("--optimizer", default="Lion8bit", help="a class of lionbits (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="as for AdamW; it is converted")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="as for AdamW; it is converted")
    for name, size in (("width", 64), ("layers", 2), ("context", 64), ("batch", 16), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--output", type=Path, default=Path("trainer-out"))
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in --output")
    args = parser.parse_args()

    text = b"".join(file.read_bytes() for file in args.text)
    if args.model:
        tokens = AutoTokenizer.from_pretrained(args.model)(text.decode())["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(args.model)
    else:
        tokens = list(text)
        sizes = {"n_embd": args.width, "n_layer": args.layers, "n_head": 4, "n_positions": args.context}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes))
    rows = torch.tensor(tokens[: len(tokens) // args.context * args.context]).view(-1, args.context)
    settings = lionbits.from_adamw(args.lr, args.weight_decay)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(args.output),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            weight_decay=settings["weight_decay"],  # Trainer writes it into its groups, which count more than:
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 10,
            logging_steps=max(args.steps // 6, 1),
            save_steps=max(args.steps // 2, 1),
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        # Not optim="lion_8bit", which is bitsandbytes'. What is not said here is Lion's own, betas (0.9, 0.99) too.
        optimizer_cls_and_kwargs=(getattr(lionbits, args.optimizer), {"lr": settings["lr"]}),
    )
    result = trainer.train(resume_from_checkpoint=args.resume or None)
    print(f"loss {result.training_loss:.3f} on average, {trainer.state.log_history[-2]['loss']} at the end")


if __name__ == "__main__":
    main()
