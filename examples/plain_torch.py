"""A small transformer in plain PyTorch: AdamW's settings converted, a schedule, clipping, a checkpoint to resume."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import lionbits


class Transformer(nn.Module):
    """A byte-level language model."""

    def __init__(self, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next byte: (batch, time) -> (batch, time, 256)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.layers(self.embed(x) + self.place[: x.shape[1]], mask, is_causal=True))


def main() -> None:
    """Train, save, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    parser.add_argument("--optimizer", default="Lion8bit", help="a class of lionbits (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="as for AdamW; it is converted")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="as for AdamW; it is converted")
    for name, size in (("width", 64), ("layers", 2), ("context", 64), ("batch", 16), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--checkpoint", type=Path, help="resumed where it exists, written at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    text = torch.tensor(list(b"".join(file.read_bytes() for file in args.text)))
    model = Transformer(args.width, args.layers, args.context).to(args.device)
    settings = lionbits.from_adamw(args.lr, args.weight_decay)
    optimizer = getattr(lionbits, args.optimizer)(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    if args.checkpoint and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    for step in range(schedule.last_epoch, args.steps):
        at = torch.randint(len(text) - args.context, (args.batch, 1)) + torch.arange(args.context + 1)
        x = text[at].to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    state = sum(t.nbytes for held in optimizer.state.values() for t in held.values() if isinstance(t, Tensor))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {state:,} bytes of optimizer state")
    if args.checkpoint:
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        torch.save({name: part.state_dict() for name, part in parts.items()}, args.checkpoint)


if __name__ == "__main__":
    main()
