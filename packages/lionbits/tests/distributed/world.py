"""Four processes that stay, over gloo on the CPU, and check one case after the other: starting them is what costs.

A check is a function of a test module that all ranks call. It asserts; what it asks for beyond ranks it takes from
``meshes``. Smaller worlds are the first ranks of this one.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

SIZE = 4

#: Seconds within which every check has to come to an end.
PATIENCE = 100


class World:
    """The processes, seen from the test.

    Args:
        root: the folder from which test modules are imported.
        rendezvous: a file that is not there yet.
    """

    def __init__(self, root: Path, rendezvous: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(SIZE)]
        self._ends = [here for here, _ in pipes]
        before = list(sys.path)
        sys.path.insert(0, str(root))  # which they inherit
        try:
            for rank, (_, there) in enumerate(pipes):
                context.Process(target=_serve, args=(rank, str(rendezvous), there), daemon=True).start()
                there.close()
        finally:
            sys.path[:] = before
        self._processes = multiprocessing.active_children()

    def __call__(self, check: Callable[..., Any], *args: Any, **settings: Any) -> list[Any]:
        """What the check returns on each rank.

        Raises:
            AssertionError: it raised on one; with the traceback.
        """
        for end in self._ends:
            end.send((check, args, settings))
        found: dict[int, Any] = {}
        while len(found) < SIZE:
            ready = wait([end for rank, end in enumerate(self._ends) if rank not in found], timeout=PATIENCE)
            if not ready:
                raise self._fallen(f"ranks {sorted(set(range(SIZE)) - found.keys())} do not come to an end")
            for end in ready:
                rank = self._ends.index(end)  # type: ignore[arg-type]
                try:
                    good, found[rank] = end.recv()  # type: ignore[union-attr]
                except EOFError:
                    raise self._fallen(f"rank {rank} died") from None
                if not good:
                    raise self._fallen(f"on rank {rank}:\n{found[rank]}")
        return [found[rank] for rank in range(SIZE)]

    @property
    def stands(self) -> bool:
        """True if it has not failed: ranks that wait for one that raised would never end."""
        return bool(self._processes)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _fallen(self, why: str) -> AssertionError:
        self.close()
        return AssertionError(why)


@cache
def meshes() -> dict[int | str, DeviceMesh]:
    """Of the first 1, 2, 3 and 4 ranks, and two by two. Every rank has to ask, as groups are made by all."""
    made: dict[int | str, DeviceMesh] = {n: DeviceMesh("cpu", torch.arange(n)) for n in range(1, SIZE + 1)}
    made["2x2"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    return made


def takes_part(ranks: int | str) -> bool:
    """Whether this rank is in the mesh."""
    return meshes()[ranks].get_coordinate() is not None


def _serve(rank: int, rendezvous: str, end: Connection) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*sharded parameter")  # checks expect it where it belongs
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=SIZE)
    meshes()
    while True:
        try:
            check, args, settings = end.recv()
        except EOFError:
            return
        try:
            answer = True, check(*args, **settings)
        except BaseException:  # noqa: BLE001 -- CheckpointException is one
            answer = False, traceback.format_exc()
        end.send(answer)
