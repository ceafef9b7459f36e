"""What the pages on the specification and on choosing bits state beside code is what reference and results have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lionbits_reference.spec import Format

from .pages import ROOT, text

WIDTHS = (32, 8, 4, 2)


def rows(page: str) -> list[list[str]]:
    """The cells of its tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text(page).splitlines() if line[:1] == "|"
    ]


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_tables_of_formats_are_those_of_the_code(bits: int) -> None:
    f = Format.of(bits)
    block, top = (str(f.block_size), f"{f.top:.0f}") if f.quantised else ("", "")
    assert [str(bits), f.name, block, top, f"{f.bytes_per_element:.8g}"] in rows("docs/specification.md")
    memory = [f.name, block, f"{f.bytes_per_element:.3f}", f"{7 * f.bytes_per_element:.2f} GB"]
    assert memory in [cells[1:] for cells in rows("docs/choosing-bits.md")]


@pytest.mark.parametrize("page", ["docs/choosing-bits.md", "docs/faq.md"])
def test_losses_are_those_that_were_measured(page: str) -> None:
    quoted = re.findall(r"[+-]\d+\.\d+ ± \d+\.\d+ %", text(page))
    measured = text("docs/results/quality.md")
    assert quoted
    assert all(loss in measured for loss in quoted)


def test_the_specification_reads_what_is_there() -> None:
    """Each line with `:::` names a module of the reference, or something that its source defines."""
    named = re.findall(r"^::: ([\w.]+)$", text("docs/specification.md"), re.MULTILINE)
    assert len(named) > 8
    for name in named:
        module, _, last = name.rpartition(".")
        whole, within = (ROOT / "reference/src" / Path(*part.split(".")) for part in (name, module))
        assert whole.with_suffix(".py").exists() or any(
            f"def {last}(" in path.read_text() or f"class {last}:" in path.read_text()
            for path in (within.with_suffix(".py"), *within.glob("*.py"))
            if path.exists()
        )
