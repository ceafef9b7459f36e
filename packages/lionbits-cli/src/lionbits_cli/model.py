"""A small byte-level transformer: enough of a language model for optimizers to differ on.

Pre-norm blocks, learned positions, causal attention. Bytes need no tokenizer, and the parameters are where a
large model has them: in the matrices of the blocks. The output layer has weights of its own: with only 256 symbols
sharing the embedding's saves little, and cost 0.2 nats after 300 steps (every row gets a gradient at every step
from the output, and to Lion a small one is as good as a large one).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SYMBOLS = 256  # bytes
INITIAL_DEVIATION = 0.02


class Block(nn.Module):
    """Attention, then a perceptron of four times the width, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        hidden: Tensor = self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + hidden


class ByteTransformer(nn.Module):
    """Logits for the next byte at every position."""

    def __init__(self, layers: int, width: int, heads: int, context: int, seed: int = 0) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS, bias=False)
        self.reset(seed)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw the weights of a seed, independent of earlier draws: all runs of a comparison start equal.

        Matrices that write into the residual stream start smaller, so that it does not grow with depth.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = INITIAL_DEVIATION / (2 * max(len(self.blocks), 1)) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = residual if name.endswith(("mix.weight", "down.weight")) else INITIAL_DEVIATION
                parameter.normal_(0.0, deviation, generator=generator)

    def forward(self, symbols: Tensor) -> Tensor:
        places = torch.arange(symbols.shape[1], device=symbols.device)
        x = self.embedding(symbols) + self.position(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def loss(self, symbols: Tensor, targets: Tensor) -> Tensor:
        """Return mean cross entropy in nats per byte, in float32 whatever the parameters are."""
        logits = self(symbols).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, prompt: bytes, length: int, temperature: float, seed: int) -> bytes:
        """Continue the prompt byte by byte, drawing from an own generator: a seed means one text."""
        generator = torch.Generator().manual_seed(seed)
        text = bytearray(prompt)
        device = self.embedding.weight.device
        for _ in range(length):
            recent = torch.tensor([list(text[-self.context :])], device=device)
            logits = self(recent)[0, -1].float().cpu()
            if not logits.isfinite().all():  # training diverged: there is nothing to draw from
                break
            chances = torch.softmax(logits / temperature, dim=0)
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
        return bytes(text)
