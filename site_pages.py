"""Files of the repository that are pages of the site beside those in docs/, and where links lead there.

mkdocs calls the functions whose names begin with ``on_``. In the repository a link is a path from the file that has it;
so it is on the site, if what it names is a page. What is not (a folder of code, the licence) keeps the link's text. A
link to nothing stays, and mkdocs refuses it.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent

#: Markdown and sources that are pages. Each has the repository's path for its address; a source's ends in ``.py.md``.
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "backends/*/README.md",
    "conformance/README.md",
    "conformance/src/lionbits_conformance/vectors/README.md",
    "examples/README.md",
    "examples/*.py",
    "packages/cuda-on-cpu/README.md",
    "packages/ptx-on-cpu/README.md",
    "packages/lionbits-bench/README.md",
    "packages/lionbits-cli/README.md",
    *(
        f"reference/src/lionbits_reference/{check}.py"
        for check in ("update", "formats", "rounding", "caution", "clipping")
    ),
)

#: What stands on the site for something that is no page of it.
INSTEAD = {
    "README.md": "index.md",
    "packages/lionbits/README.md": "index.md",
    "docs/design": "design/0001-meaning-and-rounding.md",
}

#: Pages that record what was measured, decided or changed: the search ranks them behind those that explain.
RECORDS = (
    "results/",
    "design/",
    "CHANGELOG",
    "CONTRIBUTING",
    "conformance/",
    "backends/",
    "packages/cuda",
    "packages/ptx",
)

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
_FENCED = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod):<code>~?([\w.]+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    for path in found():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = f"---\nhide: [toc]\n---\n# {path.name}\n\n`{name}`, as it stands.\n\n````python\n{text}````\n"
        files.append(File.generated(config, address(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the site's pages; code keeps what looks like one. Rank records and sources behind in the search."""
    uri = page.file.src_uri
    if uri.endswith(".py.md"):
        page.meta["search"] = {"exclude": True}
    elif uri.startswith(RECORDS):
        page.meta["search"] = {"boost": 0.2}
    if uri.endswith(".py.md"):
        return markdown
    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: led(link, uri), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Make links of the roles in docstrings, as Sphinx would, where the API pages have what they name."""
    html = _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)
    return html.replace("::</p>", ":</p>")


def found() -> list[Path]:
    """Return the files that are pages beside those in docs/."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def address(name: str) -> str:
    """Return the address on the site of a file of the repository."""
    if name in INSTEAD:
        return INSTEAD[name]
    inside = name.removeprefix("docs/")
    return inside + ".md" if inside.endswith(".py") else inside


def led(link: re.Match[str], uri: str) -> str:
    """Return the link of a page as the site has it."""
    text, target, anchor = link[1], link[2], link[3] or ""
    here = ROOT / uri if ROOT / uri in found() else ROOT / "docs" / uri
    path = Path(os.path.normpath(here.parent / target))
    if not path.exists():
        return link[0]  # of which mkdocs warns
    if (path / "README.md").exists():
        path /= "README.md"
    name = path.relative_to(ROOT).as_posix()
    if not (name in INSTEAD or name.startswith("docs/") or path in found()):
        return text
    return f"[{text}]({os.path.relpath(address(name), Path(uri).parent)}{anchor})"
