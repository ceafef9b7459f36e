"""8-bit Lion in a loop of one's own under accelerate: accumulation, clipping, save_state and load_state."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import lionbits


class Reader(nn.Module):
    """Predicts the next byte."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.layers = nn.GRU(width, width, layers, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of a batch (batch, time + 1)."""
        logits = self.head(self.layers(self.embed(x[:, :-1]))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())


def main() -> None:
    """Train, save, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    parser.add_argument("--optimizer", default="Lion8bit", help="a class of lionbits (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="as for AdamW; it is converted")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="as for AdamW; it is converted")
    sizes = {"width": 64, "layers": 1, "context": 64, "batch": 32, "epochs": 1, "accumulate": 2}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--mixed-precision", default="bf16", choices=("no", "fp16", "bf16"))
    parser.add_argument("--state", type=Path, help="a folder: resumed where it exists, written at the end")
    args = parser.parse_args()

    # The optimizer is made after the Accelerator, so that it can warn where DeepSpeed is going to replace it.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.accumulate)
    torch.manual_seed(0)
    text = torch.tensor(list(b"".join(file.read_bytes() for file in args.text)))
    data = DataLoader(text.unfold(0, args.context + 1, args.context), args.batch, shuffle=True)
    model = Reader(args.width, args.layers)
    settings = lionbits.from_adamw(args.lr, args.weight_decay)
    optimizer = getattr(lionbits, args.optimizer)(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=10)
    model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
    if args.state and args.state.exists():
        accelerator.load_state(str(args.state))
    for epoch in range(args.epochs):
        for x in data:
            with accelerator.accumulate(model):
                loss = model(x)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    if args.state:
        accelerator.save_state(str(args.state))


if __name__ == "__main__":
    main()
