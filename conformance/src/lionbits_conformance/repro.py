"""What a failure says: the property, the plan, and the code that runs it again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lionbits_reference.spec import Backend

from .cases import Case
from .placing import MARGIN

CPU = torch.device("cpu")
Property = Callable[[Backend, Case, torch.device], None]


def repro_message(backend: Backend, name: str, case: Case) -> str:
    """What failed, and the code that runs it again."""
    return (
        f"property {name} is broken for {case.plan}\n"
        f"  to run it again:\n"
        f"    import torch; from math import inf; from lionbits import select\n"
        f"    from lionbits_conformance import properties; from lionbits_conformance.cases import Case, TensorCase\n"
        f"    from lionbits_reference.spec import Format, Plan\n"
        f"    properties.{name}(select.load({backend.name!r}), {case!r})\n"
        f"  tensors lie in larger buffers, their first element at {MARGIN}, or one later where layout='offset'"
    )
