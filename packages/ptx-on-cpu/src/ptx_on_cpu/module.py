"""What Python calls: modules of PTX, and their kernels as functions that can be launched."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .batch import WARP, Batch
from .counters import Counters
from .memory import Buffer, Memory
from .operands import number_of
from .parse import Variable, parse
from .program import Program, layout, prepare
from .races import Accesses
from .run import Run
from .types import Array, Type

#: Threads that a block may have, as on a GPU, and those that run together.
MOST_THREADS, TOGETHER = 1024, 8192


class Module:
    """A PTX text. Each of its kernels is made ready to run when it is first asked for.

    Args:
        text: of PTX, for any architecture.

    Attributes:
        version, target: of the text, as ``9.4`` and ``sm_90a``.

    Raises:
        ParseError: the text is not PTX.
        UnknownInstruction: a directive is not known.
    """

    def __init__(self, text: str) -> None:
        parsed = parse(text)
        self.version, self.target = parsed.version, parsed.target
        self._kernels, self._programs = parsed.kernels, dict[str, Program]()
        self._shared = [each for each in parsed.variables if each.space == "shared"]
        others = [each for each in parsed.variables if each.space != "shared"]
        offsets, size = layout(others)
        self._memory = np.zeros(size + 256, dtype=np.uint8)
        start = -(-self._memory.ctypes.data // 256) * 256
        self._addresses = {name: start + offset for name, offset in offsets.items()}
        self.variables = [
            Buffer(self._addresses[each.name], each.count * each.type.bytes, each.name) for each in others
        ]
        for each in others:
            self._initialise(each, self._addresses[each.name] - self._memory.ctypes.data)

    def _initialise(self, variable: Variable, at: int) -> None:
        for i, text in enumerate(variable.initial):
            value = number_of(text, f"variable {variable.name}") % 2**variable.type.bits
            plain = value.to_bytes(variable.type.bytes, "little")
            self._memory[at + i * len(plain) : at + (i + 1) * len(plain)] = np.frombuffer(plain, dtype=np.uint8)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(self._kernels)

    def get_function(self, name: str) -> Function:
        """Return a kernel by its name.

        Raises:
            KeyError: there is none of that name.
            UnknownInstruction: one of its opcodes or modifiers is not known; this is found before anything runs.
        """
        if name not in self._kernels:
            raise KeyError(f"{name!r} is no kernel here; there are {', '.join(self._kernels)}")
        if name not in self._programs:
            self._programs[name] = prepare(self._kernels[name], self._shared, self._addresses)
        return Function(self._programs[name], self.variables)


class Function:
    """A kernel: ``function(grid, block, args, buffers)``."""

    def __init__(self, program: Program, variables: list[Buffer]) -> None:
        self._program, self._variables = program, variables

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self._program.kernel.name

    @property
    def arity(self) -> int:
        """Number of its arguments."""
        return len(self._program.kernel.parameters)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        buffers: Iterable[Buffer],
        *,
        shared: int = 0,
        seed: int = 0,
        races: bool = True,
        racing_loads: bool = False,
        counters: Counters | None = None,
        together: int = TOGETHER,
    ) -> Counters:
        """Run the kernel to its end.

        Args:
            grid, block: one to three sizes each; a block has at most 1024 threads.
            args: addresses and integers as ints, numbers as Python's or numpy's; converted to what the kernel declares.
            buffers: all memory that the kernel may touch.
            shared: bytes of shared memory beside what the kernel declares.
            seed: the order of thread blocks and warps: 0 forward, any other by chance. Results must not depend on it.
            races: search for conflicting accesses.
            racing_loads: allow loads from global memory to race with stores, for kernels that drop what they load.
            counters: of earlier launches, to add to; by default new ones that do not count sectors.
            together: threads that run at a time; more take more memory.

        Returns:
            What was counted.

        Raises:
            TypeError, ValueError: arguments or sizes that do not fit.
            Fault: the kernel breaks a rule. Buffers then keep what was stored until that.
        """
        program = self._program
        sizes, blocks = _dimensions("block", block), _dimensions("grid", grid)
        if math.prod(sizes) > MOST_THREADS:
            raise ValueError(f"block={block}: must be at most {MOST_THREADS} threads")
        if program.kernel.threads and _dimensions("reqntid", program.kernel.threads) != sizes:
            raise ValueError(f"block={block}: {self.name} is compiled for {program.kernel.threads}")
        parameters = self._parameters(args)
        memory = Memory([*buffers, *self._variables])
        random = np.random.default_rng(seed) if seed else None
        counters = Counters(program.kernel.instructions) if counters is None else counters
        accesses = Accesses(races, racing_loads)
        order = np.arange(math.prod(blocks)) if random is None else random.permutation(math.prod(blocks))
        pitch = -(-math.prod(sizes) // WARP) * WARP
        each = max(together // pitch, 1)
        types = list(program.registers.types.values())
        with np.errstate(all="ignore"):
            for begin in range(0, len(order), each):
                batch = Batch(
                    np.sort(order[begin : begin + each]),
                    blocks,
                    sizes,
                    types,
                    program.undefined,
                    program.shared_bytes + shared,
                    memory,
                    parameters,
                    counters,
                    accesses,
                    random,
                )
                Run(program, batch, counters).run()
                accesses.search_shared()
            accesses.search_global()
        return counters

    def counters(self, memory: bool = True) -> Counters:
        """Return counters of this kernel; with ``memory`` they count sectors and bank conflicts too."""
        return Counters(self._program.kernel.instructions, memory)

    def _parameters(self, args: Sequence[Any]) -> bytes:
        """Return the bytes of the parameters, each where the kernel expects it."""
        declared = self._program.kernel.parameters
        if len(args) != len(declared):
            raise TypeError(f"{self.name} takes {len(declared)} arguments, not {len(args)}")
        plain = bytearray(self._program.parameter_bytes)
        for i, (variable, value) in enumerate(zip(declared, args, strict=True)):
            at = self._program.offsets[variable.name]
            plain[at : at + variable.type.bytes] = self._converted(i, value, variable.type).tobytes()
        return bytes(plain)

    def _converted(self, i: int, value: Any, type: Type) -> Array:
        if type.kind == "f":
            if not isinstance(value, numbers.Real):
                raise TypeError(f"argument {i} of {self.name} is {value!r}: it must be a number")
            return np.asarray(float(value), dtype=type.numbers)
        try:
            number = bool(value) if isinstance(value, np.bool_) else operator.index(value)
        except TypeError as error:
            raise TypeError(
                f"argument {i} of {self.name} is {value!r}: it must be an integer; for a pointer, an address"
            ) from error
        if not -(1 << (type.bits - 1)) <= number < 1 << type.bits:
            raise TypeError(f"argument {i} of {self.name} is {value!r}: it must fit {type.name}")
        return np.asarray(number % 2**type.bits, dtype=type.unsigned)


def _dimensions(name: str, sizes: tuple[int, ...]) -> tuple[int, int, int]:
    if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
        raise ValueError(f"{name}={sizes}: must be one to three positive sizes")
    x, y, z = (*sizes, *[1] * (3 - len(sizes)))
    return x, y, z
