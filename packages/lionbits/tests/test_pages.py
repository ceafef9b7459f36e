"""All Python in Markdown that no other test runs; that none is left over; and what else pages have to hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lionbits import select

from .pages import ELSEWHERE, ROOT, TESTS, blocks, pages, rest, run, text

#: Which backend a page is about, where that is not everywhere.
NEEDS = {f"backends/{name}/README.md": name for name in ("cpp", "triton", "cupy")} | {"docs/backends.md": "cpp"}


@pytest.mark.parametrize("piece", rest())
def test_its_code_runs_as_it_stands(piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, beside the names `torch` and `model`."""
    reason = select.diagnose(NEEDS[piece], torch.device("cpu")) if piece in NEEDS else ""
    if piece == "packages/ptx-on-cpu/README.md":
        pytest.importorskip("ptx_on_cpu", reason="its README is run")
    if piece == "packages/cuda-on-cpu/README.md":
        reason = pytest.importorskip("cuda_on_cpu", reason="its README is run").obstacle()
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    Path("scratch").mkdir()  # which docs/paging.md pages to
    monkeypatch.delenv("LIONBITS_BACKEND", raising=False)
    run(piece)


def test_no_page_has_a_block_that_no_test_runs() -> None:
    """Every fence of Python, found by its first characters alone, is in a piece that a file of tests asks for."""
    fences = sum(len(re.findall(r"^\W*(?:```|~~~) *\{? *\.?(?:py|Py)", text(page), re.MULTILINE)) for page in pages())
    assert sum(len(blocks(piece)) for piece in (*ELSEWHERE, *rest())) == fences > 30
    for piece, test in ELSEWHERE.items():
        assert blocks(piece), piece
        assert "due(__file__)" in (TESTS / test).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_something(page: str) -> None:
    """Within the repository, from the page's own folder; the site checks anchors."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text(page), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", pages())
def test_every_picture_has_words(page: str) -> None:
    assert all(len(words) > 10 for words in re.findall(r"!\[(.*?)\]\(", text(page)))
