"""Deferral of signals to the end of a step: a handler that raises, or saves, finds every tensor whole.

Python runs signal handlers between two of its instructions, in the main thread. Within a step that may be
between the codes of a tensor and their scales, or between two parameters. No order of writes would keep all of them
consistent. So while state is written, the handlers are replaced by one that notes the signal, and they run right
after. Blocking the signals (``pthread_sigmask``) would not do: another thread of the process would receive them.
"""

from __future__ import annotations

import functools
import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Ctrl-C, and what schedulers of clusters send before they kill.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

Handler = Callable[[int, FrameType | None], object]


def uninterrupted(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap the function so that no handler of these signals runs during it; deferred handlers run when it ends.

    Handlers that are no Python functions stay: they run no Python. In a thread other than the main one nothing is
    replaced, as Python runs no handlers there.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
        if not handlers or any(isinstance(handler, _Waiting) and handler.waits for handler in handlers.values()):
            return function(*args, **kwargs)
        waiting = _Waiting(handlers)
        try:
            for number in handlers:
                signal.signal(number, waiting)
            return function(*args, **kwargs)
        finally:
            waiting.end()

    return call


class _Waiting:
    """The handler of several signals: it notes them until its end, and then calls the handlers that it replaced.

    A second Ctrl-C is not deferred, as the step may hang in a collective call.
    """

    def __init__(self, handlers: dict[int, Handler]) -> None:
        self._handlers = handlers
        self._noted: dict[int, None] = {}
        self.waits = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.waits and not (number == signal.SIGINT and number in self._noted):
            self._noted[number] = None
            return
        self._noted.pop(number, None)
        self._handlers[number](number, frame)

    def end(self) -> None:
        """Put the handlers back, and call those whose signals came."""
        try:
            for number, handler in reversed(self._handlers.items()):  # Ctrl-C, the likeliest to come now, is the last
                signal.signal(number, handler)
        finally:
            self.waits = False  # if a handler raised before all were back, this one hands on what comes
        for number in self._noted:
            self._handlers[number](number, inspect.currentframe())
