"""``nox -s lint``: no file of code is longer than 350 lines, but for those that say here why."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 350
CODE = ("*.py", "*.cu", "*.cuh", "*.h", "*.hpp")

#: Longer files, each with its reason.
LONGER: dict[str, str] = {}


def main() -> None:
    """Name every file that is too long, and every exception that is none any more."""
    listed = subprocess.run(["git", "ls-files", *CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in listed.stdout.splitlines()}
    too_long = {name for name, length in lengths.items() if length > LIMIT}
    for name in sorted(too_long - set(LONGER)):
        print(f"{name} has {lengths[name]} lines, and {LIMIT} are the limit: divide it, or say in {__file__} why not")
    for name in sorted(set(LONGER) - too_long):
        print(f"{name} is no longer too long: take it out of LONGER in {__file__}")
    if too_long != set(LONGER):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
