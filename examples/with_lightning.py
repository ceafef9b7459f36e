"""8-bit Lion in a LightningModule: a recurrent network that reads bytes, with schedule and gradient clipping."""

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lionbits


class Reader(lightning.LightningModule):
    """Predicts the next byte."""

    def __init__(self, width: int, layers: int, steps: int, optimizer: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.GRU(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, 256)

    def training_step(self, x: Tensor, _: int) -> Tensor:
        """The loss of a batch (batch, time + 1)."""
        logits = self.head(self.layers(self.embed(x[:, :-1]))[0])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Lion, and a cosine that steps with it."""
        optimizer = getattr(lionbits, self.hparams.optimizer)(self.named_parameters(), **self.hparams.settings)
        # Lightning clips nothing under autocast for optimizers that can undo a loss scaler, unless:
        optimizer._step_supports_amp_scaling = False
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Train, save, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    parser.add_argument("--optimizer", default="Lion8bit", help="a class of lionbits (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="as for AdamW; it is converted")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="as for AdamW; it is converted")
    for name, size in (("width", 64), ("layers", 1), ("context", 64), ("batch", 16), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--output", type=Path, default=Path("lightning-out"))
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    args = parser.parse_args()

    lightning.seed_everything(0)
    text = torch.tensor(list(b"".join(file.read_bytes() for file in args.text)))
    rows = text.unfold(0, args.context + 1, args.context)
    settings = {**lionbits.from_adamw(args.lr, args.weight_decay)}
    trainer = lightning.Trainer(
        max_steps=args.steps,
        precision=args.precision,
        gradient_clip_val=1.0,
        default_root_dir=args.output,
        logger=False,
        enable_progress_bar=False,
    )
    model = Reader(args.width, args.layers, args.steps, args.optimizer, settings)
    trainer.fit(model, DataLoader(rows, args.batch, shuffle=True), ckpt_path=args.resume)
    print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
