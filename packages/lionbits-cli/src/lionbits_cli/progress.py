"""The progress bar of a run, or one line per evaluation where there is no terminal to draw on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .training import Run

SMOOTHING = 0.95  # of the loss beside the bar: single batches jump too much to be read


@contextmanager
def progress(label: str, run: Run, *, quiet: bool) -> Iterator[Callable[[Run], None]]:
    """Yield a function for the training loop to call after every step."""
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=run.config.steps, completed=run.step, loss="-", validation="-", speed="")
        loss = run.history.train[-1] if run.history.train else None
        start, seconds = run.step, run.history.seconds

        def after_step(run: Run) -> None:
            nonlocal loss
            latest = run.history.train[-1]
            loss = latest if loss is None else SMOOTHING * loss + (1 - SMOOTHING) * latest
            rate = per_second(run, start, seconds)
            shown = validation(run)
            bar.update(task, completed=run.step, loss=f"{loss:.3f}", validation=shown, speed=rate)
            if not console.is_terminal and evaluated(run):
                total = run.config.steps
                console.print(f"{label}: step {run.step}/{total}, validation loss {shown}, {rate}")

        yield after_step


def evaluated(run: Run) -> bool:
    """True if an evaluation followed the last step."""
    return bool(run.history.validation) and run.history.validation[-1][0] == run.step


def validation(run: Run) -> str:
    """Return the latest validation loss as text."""
    return f"{run.history.validation[-1][1]:.4f}" if run.history.validation else "-"


def per_second(run: Run, start: int, seconds: float) -> str:
    """Return the speed since this process began: a byte is a token here."""
    tokens = (run.step - start) * run.config.batch * run.config.context
    return f"{tokens / max(run.history.seconds - seconds, 1e-9):,.0f} tokens/s"
