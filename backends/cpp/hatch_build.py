"""Builds the C++ library while the wheel is built. Without a compiler the wheel has none, and the backend says so."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Library(BuildHookInterface[Any]):
    """Calls ``lionbits_cpp.build``, which is a module without imports of the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and mark the wheel as one for this platform and any Python."""
        del version
        path = Path(self.root, "src", "lionbits_cpp", "build.py")
        spec = importlib.util.spec_from_file_location("build", path)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            made = build.build()
        except (FileNotFoundError, RuntimeError) as error:
            self.app.display_warning(f"lionbits-cpp is built without its library, so it will not serve: {error}")
            return
        if made:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
