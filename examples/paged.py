"""Paged state: in host memory or in files, with a budget of bytes that may be on the device at a time."""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from lionbits import PagedLion


def main() -> None:
    """Train an autoencoder; say where its state was and what moved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=8, choices=(32, 8, 4))
    parser.add_argument("--budget", type=float, default=None, help="MiB of state on the device (default: what fits)")
    parser.add_argument("--page", type=float, default=16, help="MiB that move at a time (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="a folder for files, for state that is larger than memory")
    for name, size in (("width", 256), ("layers", 8), ("batch", 64), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    layers = [layer for _ in range(args.layers) for layer in (nn.Linear(args.width, args.width), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(args.width, args.width)).to(args.device)
    optimizer = PagedLion(
        model.parameters(),
        lr=1e-4,
        optim_bits=args.bits,
        page_budget=None if args.budget is None else int(args.budget * 2**20),
        page_size=int(args.page * 2**20),
        page_dir=None if args.dir is None else str(args.dir),
    )
    for step in range(args.steps):
        x = torch.randn(args.batch, args.width, device=args.device)
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        began = time.perf_counter()
        optimizer.step()
        took = time.perf_counter() - began
        if step % 5 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss.item():.3f}, updated in {1000 * took:.1f} ms")
    held = [value for state in optimizer.state.values() for value in state.values()]
    for device in sorted({str(value.device) for value in held if isinstance(value, torch.Tensor)}):
        total = sum(v.nbytes for v in held if isinstance(v, torch.Tensor) and str(v.device) == device)
        print(f"{total:,} bytes of state are on {device}")
    print(optimizer.paging_stats())  # on the CPU nothing has to move: state is reached where it is


if __name__ == "__main__":
    main()
