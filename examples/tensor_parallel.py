"""A model cut by tensor and sequence parallelism, without FSDP: ``torchrun --nproc-per-node 2 tensor_parallel.py``."""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from lionbits import Lion8bit

#: Norms see a part of each sequence; the output layer holds a part of the vocabulary on each rank, and so do logits.
PLAN = {
    "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
    "norm": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
}


class Bytes(nn.Module):
    """The next byte from the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(256, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (batch, time) -> (batch, time, 256)."""
        x = self.embed(x)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


def main() -> None:
    """Train, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path(argparse.__file__)])
    for name, size in (("width", 64), ("context", 64), ("batch", 16), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (int(os.environ.get("WORLD_SIZE", "1")),))
    torch.manual_seed(0)
    model = parallelize_module(Bytes(args.width).to(mesh.device_type), mesh, PLAN)
    optimizer = Lion8bit(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in args.text)), dtype=torch.uint8)
    for step in range(1, args.steps + 1):
        at = torch.randint(len(text) - args.context, (args.batch, 1), generator=torch.Generator().manual_seed(step))
        batch = text[at + torch.arange(args.context + 1)].long().to(mesh.device_type)
        with loss_parallel():
            loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
        optimizer.step()  # gradients of the norm are parts of a sum: the step adds them up
        optimizer.zero_grad()
        if step % 20 == 0:
            value = loss.detach().full_tensor().item()  # on every rank, as ranks put it together
            if dist.get_rank() == 0:
                print(f"step {step}: loss {value:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
