"""One training run: the loop, its evaluation, its checkpoint, and a Ctrl-C that loses nothing.

A run that was interrupted and resumed gives the same losses and parameters, bit for bit, as one that was not.
All inputs of a step are in the checkpoint (parameters, optimizer state) or a function of the step's
number (the batch, the learning rate); no random generator is kept from one step to the next.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from lionbits.checkpoint import saving

from . import corpus as corpora
from . import targets, variants
from .config import DTYPES, TrainConfig
from .console import CommandError
from .corpus import Corpus
from .model import ByteTransformer

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_VERSION = 1
CHECKPOINT_KEYS = frozenset({"config", "corpus", "environment", "step", "history", "model", "optimizer"})
VALIDATION_WINDOWS = 128
VALIDATION_BATCH = 32


@dataclass
class History:
    """Data of the charts. ``train[i]`` is the loss of step i + 1; validation points carry their step."""

    train: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0  # of training steps; evaluations and checkpoints do not count
    step_seconds: float = 0.0  # of these, inside optimizer.step


class Interrupted(Exception):
    """Ctrl-C arrived; the run stopped after a whole step and its checkpoint is on disk.

    ``resume`` is the path for ``--resume``: the checkpoint, unless the caller sets another.
    """

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.checkpoint = self.resume = checkpoint
        self.step = step


class Run:
    """A model, its optimizer and their progress."""

    def __init__(self, config: TrainConfig, corpus: Corpus) -> None:
        longest = min(len(corpus.train), len(corpus.held_out)) - 1
        if config.context >= longest:
            raise CommandError(f"--context {config.context} is longer than the text ({longest} bytes)")
        config.check_memory()
        self.config, self.corpus = config, corpus
        model = ByteTransformer(config.layers, config.width, config.heads, config.context, config.seed)
        self.model = model.to(device=config.device, dtype=DTYPES[config.dtype])
        self.optimizer = variants.build(config, self.model.parameters())
        self.step = 0
        self.history = History()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def advance(self) -> None:
        """Take one training step and record its loss and its time."""
        begin = self._now()
        self.step += 1
        config = self.config
        inputs, targets = corpora.training_batch(
            self.corpus.train, config.seed, self.step, config.batch, config.context
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step)
        loss = self.model.loss(inputs.to(config.device), targets.to(config.device))
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        before_step = self._now()
        self.optimizer.step()
        end = self._now()
        self.history.train.append(loss.item())
        self.history.step_seconds += end - before_step
        self.history.seconds += end - begin

    def _now(self) -> float:
        """Return wall time after the device has finished, so that only the optimizer's own work is counted."""
        if self.config.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss on the validation windows, recorded in the history."""
        config = self.config
        inputs, targets = corpora.validation_windows(self.corpus.held_out, VALIDATION_WINDOWS, config.context)
        batches = zip(inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH), strict=True)
        losses = [self.model.loss(x.to(config.device), y.to(config.device)).item() for x, y in batches]
        mean = sum(losses) / len(losses)
        self.history.validation.append((self.step, mean))
        return mean

    @property
    def evaluation_due(self) -> bool:
        return self.step % self.config.eval_every == 0 or self.step == self.config.steps

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all: a crash leaves the previous one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        saving.save(self.as_checkpoint(), path)

    def as_checkpoint(self) -> dict[str, Any]:
        """Return plain containers and tensors only, so that ``torch.load(weights_only=True)`` reads them."""
        return {
            "version": CHECKPOINT_VERSION,
            "config": self.config.as_dict(),
            "corpus": self.corpus.digest,
            "environment": environment(),
            "step": self.step,
            "history": {
                **vars(self.history),
                "validation": [list(point) for point in self.history.validation],
            },
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        if checkpoint["corpus"] != self.corpus.digest:
            raise CommandError("the checkpoint was trained on another text: resume with the Python that started it")
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]
        saved = checkpoint["history"]
        self.history = History(**{**saved, "validation": [(step, loss) for step, loss in saved["validation"]]})


def load_checkpoint(path: Path) -> dict[str, Any]:
    targets.check_source(path)
    try:
        _check_sums(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a missing file, a truncated one, or something else entirely
        raise CommandError(f"cannot read the checkpoint {path}: {error}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("version") != CHECKPOINT_VERSION:
        raise CommandError(f"{path} is not a checkpoint of lionbits train (version {CHECKPOINT_VERSION})")
    missing = CHECKPOINT_KEYS - checkpoint.keys()
    if missing:
        raise CommandError(f"the checkpoint {path} lacks {', '.join(sorted(missing))}")
    for key, fits in CLAIMS.items():
        if not fits(checkpoint[key]):
            raise CommandError(f"the checkpoint {path} is damaged: its {key} is not what lionbits train writes")
    if len(checkpoint["history"]["train"]) != checkpoint["step"]:
        raise CommandError(f"the checkpoint {path} is damaged: its history has not one loss for each step")
    return checkpoint


def _is_history(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {field.name for field in fields(History)}:
        return False
    curve, points = value["train"], value["validation"]
    lists = isinstance(curve, list) and isinstance(points, list)
    return (
        lists
        and all(isinstance(loss, float) for loss in (*curve, value["seconds"], value["step_seconds"]))
        and all(isinstance(point, list) and list(map(type, point)) == [int, float] for point in points)
    )


#: Checks of a checkpoint's entries, beside its configuration, model and optimizer.
CLAIMS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "corpus": lambda value: isinstance(value, str),
    "environment": lambda value: isinstance(value, dict),
    "step": lambda value: type(value) is int and value >= 0,
    "history": _is_history,
    "model": lambda value: isinstance(value, dict),
    "optimizer": lambda value: isinstance(value, dict),
}


def _check_sums(path: Path) -> None:
    """Refuse a file with a changed bit: torch writes check sums, but does not check them."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the check sum of {damaged} is wrong")


def environment() -> dict[str, str]:
    """Return versions and settings outside the configuration that can change the last bit of a matrix product."""
    return {
        "torch": str(torch.__version__),  # its own class would not load with weights_only
        "threads": str(torch.get_num_threads()),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


@contextmanager
def postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that is true after Ctrl-C, for the loop to call after each step. A second Ctrl-C interrupts.

    Stopping in the middle of ``optimizer.step`` would save a model of which half the tensors have moved.
    """
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread receives signals
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def train(run: Run, folder: Path, after_step: Callable[[Run], None] = lambda run: None) -> None:
    """Train to the end, evaluating and saving on the way; raises ``Interrupted`` after a Ctrl-C."""
    checkpoint = folder / CHECKPOINT
    saving.remove_leftovers(checkpoint)
    with postponed_interrupt() as stop_asked:
        while run.step < run.config.steps:
            run.advance()
            if run.evaluation_due:
                run.evaluate()
                run.save(checkpoint)
            after_step(run)
            if stop_asked():
                run.save(checkpoint)
                raise Interrupted(checkpoint, run.step)
