"""Functions in child processes: what a mutant breaks there, hangs or kills, its parent hears of and outlives."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


class Ended(RuntimeError):
    """The child gave no result: the message says whether its time was up or what ended it."""


def in_child(function: Callable[[], Result], limit: float) -> Result:
    """What ``function`` returns in a copy of this process.

    Args:
        function: its result is pickled.
        limit: seconds that it may take.

    Raises:
        Ended: it took longer, or the process ended by itself.
    """
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(function, far))
    child.start()
    far.close()
    try:
        if not near.poll(limit):
            raise Ended(f"it took more than {limit:.0f} seconds")
        result: Result = near.recv()
    except EOFError:
        child.join()
        raise Ended(f"its process ended with {child.exitcode}") from None
    else:
        return result
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        near.close()


def _send(function: Callable[[], Any], far: Connection) -> None:
    far.send(function())
