"""Workloads: lists of parameter shapes, as data. No model is built, and nothing is downloaded.

A family is one list at falling sizes, the wanted one first; :func:`fitting` takes the first that the memory holds,
and its ``remark`` says what was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Parameters of one model, or a plain list.

    Attributes:
        name: what people call it.
        shapes: one per parameter, in the model's order.
        channels_last: four-dimensional parameters and gradients are laid out channels last.
        remark: how this differs from what the name says, where memory is short.
    """

    name: str
    shapes: tuple[Shape, ...]
    channels_last: bool = False
    remark: str = ""

    @property
    def elements(self) -> int:
        """Number of elements of all parameters."""
        return sum(math.prod(shape) for shape in self.shapes)


Family = tuple[Workload, ...]


def fitting(family: Family, bytes_free: int, bytes_per_element: float) -> Workload:
    """Return the largest list of the family that fits, or the smallest, which then runs out of memory and says so."""
    return next((w for w in family if w.elements * bytes_per_element <= bytes_free), family[-1])


def tensors(workload: Workload, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return parameters with gradients. Both are random: zeros compress, and draw less power than numbers do."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(shape: Shape, size: float) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=dtype, device=device).mul_(size)
        last = workload.channels_last and len(shape) == 4
        return drawn.contiguous(memory_format=torch.channels_last) if last else drawn

    made = []
    for shape in workload.shapes:
        parameter = draw(shape, 0.02).requires_grad_()
        parameter.grad = draw(shape, 1e-3)
        made.append(parameter)
    return made


def one_tensor(log2: int) -> Workload:
    """Return a single matrix of 2^log2 elements: bandwidth and nothing else."""
    rows = log2 // 2
    return Workload(f"one tensor, 2^{log2}", ((1 << rows, 1 << (log2 - rows)),))


def one_tensor_family(log2: int) -> Family:
    """Return the matrix, halved again and again."""
    return (
        one_tensor(log2),
        *(
            replace(one_tensor(k), name=f"one tensor, 2^{log2}", remark=f"2^{k} elements")
            for k in range(log2 - 1, 9, -1)
        ),
    )


def uniform(count: int, shape: Shape) -> Workload:
    """Return many tensors of one shape."""
    return Workload(f"{count:,} tensors of {'x'.join(map(str, shape))}", (shape,) * count)


def llama(
    layers: int = 32, *, of: int = 32, width: int = 4096, hidden: int = 11008, vocabulary: int = 32000
) -> Workload:
    """Llama-2 7B, or its first layers: 291 matrices and norms, nearly everything in matrices."""
    layer = (
        *((width, width),) * 4,  # q, k, v, o
        *((hidden, width),) * 2,  # gate, up
        (width, hidden),  # down
        *((width,),) * 2,  # the norms
    )
    shapes = ((vocabulary, width), *layer * layers, (width,), (vocabulary, width))
    return Workload("Llama-2 7B", shapes, remark="" if layers == of else f"the first {layers} of {of} layers")


def falling(make: Callable[[int], Workload], layers: int) -> Family:
    """Return a model with layer after layer removed."""
    return tuple(make(n) for n in range(layers, 0, -1))


def llama_family() -> Family:
    """Return Llama-2 7B with layers removed; the last one has only a part of the embedding, which exceeds the layer."""
    least = replace(llama(1, vocabulary=4000), remark="the first 1 of 32 layers, 4,000 of 32,000 words")
    return (*falling(llama, 32), least)


def resnet50(
    *,
    stem: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    classes: int = 1000,
    channels_last: bool = False,
) -> Workload:
    """ResNet-50 as torchvision has it: 161 tensors, a third of them batch norms too small to quantise."""
    name = "ResNet-50, channels last" if channels_last else "ResNet-50"
    return Workload(name, tuple(_resnet_shapes(stem, blocks, classes)), channels_last)


def _resnet_shapes(stem: int, blocks: tuple[int, ...], classes: int) -> Iterator[Shape]:
    def convolution(outputs: int, inputs: int, size: int) -> tuple[Shape, ...]:
        return (outputs, inputs, size, size), (outputs,), (outputs,)  # and the batch norm behind it

    yield from convolution(stem, 3, 7)
    inputs = stem
    for stage, count in enumerate(blocks):
        width = stem << stage
        for block in range(count):
            yield from convolution(width, inputs, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, inputs, 1)  # the shortcut changes width too
            inputs = 4 * width
    yield from ((classes, inputs), (classes,))


def gpt2(*, layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Workload:
    """GPT-2 small: 148 tensors; the head is the embedding, and counts once."""
    norm = ((width,), (width,))
    layer = (
        *norm,
        *((width, 3 * width), (3 * width,)),  # q, k and v in one
        *((width, width), (width,)),
        *norm,
        *((width, 4 * width), (4 * width,)),
        *((4 * width, width), (width,)),
    )
    return Workload("GPT-2 small", ((vocabulary, width), (context, width), *layer * layers, *norm))


def vit(*, layers: int = 12, width: int = 768, patch: int = 16, positions: int = 197, classes: int = 1000) -> Workload:
    """ViT-B/16 as torchvision has it: 152 tensors."""
    norm = ((width,), (width,))
    layer = (
        *norm,
        *((3 * width, width), (3 * width,)),  # q, k and v in one
        *((width, width), (width,)),
        *norm,
        *((4 * width, width), (4 * width,)),
        *((width, 4 * width), (width,)),
    )
    patches = ((width, 3, patch, patch), (width,))
    first = ((1, 1, width), *patches, (1, positions, width))  # the class token comes first
    return Workload("ViT-B/16", (*first, *layer * layers, *norm, (classes, width), (classes,)))


#: Names of lists on the command line, in the order in which they are measured.
NAMES = ("tensor", "resnet50", "vit", "gpt2", "llama", "small", "channels-last")

#: Lists that show whether everything works; every further one takes minutes of compiling.
FEW = ("tensor", "small")


def full(log2: int) -> dict[str, Family]:
    """Return all lists by name; the single tensor has 2^log2 elements where they fit."""
    lists = (
        one_tensor_family(log2),
        (resnet50(),),
        (vit(),),
        (gpt2(),),
        llama_family(),
        (uniform(10_000, (100,)),),
        (resnet50(channels_last=True),),
    )
    return dict(zip(NAMES, lists, strict=True))


def tiny() -> dict[str, Family]:
    """Return the same lists, so small that they say nothing about speed, only whether everything works."""

    def small_llama(layers: int) -> Workload:
        return llama(layers, of=2, width=64, hidden=172, vocabulary=96)

    lists = (
        one_tensor_family(12),
        (resnet50(stem=4, blocks=(1, 1), classes=10),),
        (vit(layers=1, width=64, patch=4, positions=17, classes=10),),
        (gpt2(layers=1, width=64, vocabulary=80, context=16),),
        falling(small_llama, 2),
        (uniform(50, (100,)),),
        (resnet50(stem=4, blocks=(1, 1), classes=10, channels_last=True),),
    )
    return dict(zip(NAMES, lists, strict=True))
