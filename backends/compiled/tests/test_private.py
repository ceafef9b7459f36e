"""Versions of torch that lack a private name: equal bits without it, or one sentence before anything is written."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import lionbits
import lionbits_compiled as backend
from lionbits_compiled import private
from lionbits_reference.spec import Format, Plan

EIGHT = Plan(torch.float32, torch.float32, Format.of(8))


@pytest.fixture(autouse=True)
def looked_up_anew() -> Iterator[None]:
    """What was found out about this torch does not outlive a test."""
    private.obstacle.cache_clear()
    yield
    private.obstacle.cache_clear()


def take_away(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    """Have this name found in torch no more. Inductor itself still needs some of them."""

    def resolve_name(name: str) -> Any:
        if name == taken:
            raise AttributeError(name)
        return pkgutil.resolve_name(name)

    monkeypatch.setattr(private, "resolve_name", resolve_name)


def require_refused(missing: str) -> None:
    """By the optimizer and by the backend, in a sentence that names it; the parameter is as it was."""
    sentence = f"torch {torch.__version__} has no {missing}, which backend 'compiled' needs. Choose backend='reference'"
    assert backend.supports(EIGHT, torch.device("cpu")).startswith(sentence)
    param = torch.nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones(64, 64)
    with pytest.raises(ValueError, match=r"backend='reference', or another version of torch") as refused:
        lionbits.Lion8bit([param], backend="compiled").step()
    assert sentence in str(refused.value)
    assert (param == 1).all()


@pytest.mark.parametrize(
    "name",
    [
        "torch._inductor:compile",
        "torch._inductor.config:cpp.simdlen",
        "torch._inductor.cpu_vec_isa:pick_vec_isa",
        "torch._inductor.cpu_vec_isa:VecISA.bit_width",
        "torch.fx.experimental.proxy_tensor:make_fx",
        "torch.fx.experimental.symbolic_shapes:ShapeEnv",
        "torch.fx.experimental.symbolic_shapes:ShapeGuard.expr",
    ],
)
def test_without_what_is_needed_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, name)
    require_refused(name.replace(":", "."))


@pytest.mark.parametrize("name", ["compile", "make_fx"])
def test_without_the_name_itself_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken from torch, where Inductor does not miss it."""
    module = torch._inductor if name == "compile" else torch.fx.experimental.proxy_tensor
    monkeypatch.delattr(module, name)
    require_refused(f"{module.__name__}.{name}")


@pytest.mark.parametrize("name", ["guards", "replacements"])
def test_where_what_torch_took_for_granted_cannot_be_read_it_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sizes(ShapeEnv):
        def create_unbacked_symint(self, *_: Any) -> Any:
            size = super().create_unbacked_symint()
            delattr(self, name)
            return size

    monkeypatch.setattr("torch.fx.experimental.symbolic_shapes.ShapeEnv", Sizes)
    require_refused(f"Sizes.{name}")


@pytest.mark.parametrize("name", ["node", "expr", "shape_env"])
def test_where_a_size_has_no_expression_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"expr": 1, "shape_env": ShapeEnv()}
    node.pop(name, None)
    size = SimpleNamespace() if name == "node" else SimpleNamespace(node=SimpleNamespace(**node))
    monkeypatch.setattr(ShapeEnv, "create_unbacked_symint", lambda _: size)
    require_refused(f"SimpleNamespace.{name}")


def test_a_torch_without_inductor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is gone is an ImportError."""

    def resolve_name(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(private, "resolve_name", resolve_name)
    require_refused("torch._inductor.compile")


def trained(name: str) -> list[torch.Tensor]:
    """Small parameters and their momentum, after three steps."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((100,), (24, 40), (7, 33))]
    optimizer = lionbits.Lion32bit(params, lr=1e-2, weight_decay=0.1, backend=name)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [tensor for param in params for tensor in (param.detach(), optimizer.momentum(param))]


def require_equal() -> None:
    """Bit for bit."""
    assert all(torch.equal(got, want) for got, want in zip(trained("compiled"), trained("reference"), strict=True))


@pytest.mark.parametrize("name", ["torch._inductor.cpp_builder:is_gcc", "cpp.min_chunk_size", "size_asserts"])
@pytest.mark.usefixtures("compiled_anew")
def test_without_what_saves_time_the_bits_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers get fewer flags, and Inductor gets no settings that it does not know, which it would not take."""
    take_away(monkeypatch, name if ":" in name else f"torch._inductor.config:{name}")
    given: list[dict[str, Any]] = []
    compile_ = torch._inductor.compile

    def spying(*arguments: Any, options: dict[str, Any]) -> Any:
        given.append(options)
        return compile_(*arguments, options=options)

    monkeypatch.setattr(torch._inductor, "compile", spying)
    require_equal()
    assert given
    assert all(name not in options and "cpp.simdlen" in options for options in given)


@pytest.mark.usefixtures("compiled_anew")
def test_without_flags_of_vectors_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = private.vector_bits()
    monkeypatch.setattr(private, "resolve_name", Flagless(bits))
    assert private.vector_flags() == ""
    require_equal()


class Flagless:
    """Finds vectors that do not have their flags of the C++ compiler."""

    def __init__(self, bits: int) -> None:
        self._vectors = SimpleNamespace(bit_width=lambda: bits)

    def __call__(self, name: str) -> Any:
        return (lambda: self._vectors) if name == private.VECTORS else pkgutil.resolve_name(name)


def test_without_copies_of_many_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    want = trained("reference")
    monkeypatch.delattr(torch, "_foreach_copy_")
    assert all(torch.equal(*pair) for pair in zip(trained("compiled"), want, strict=True))


def test_nothing_is_looked_up_at_import() -> None:
    """Inductor takes as long to import as torch, which puts that off until any optimizer is made."""
    script = "import sys, torch, lionbits, lionbits_compiled.optim; print('torch._inductor' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert ran.stdout.strip() == "False"


def private_names(source: str) -> list[str]:
    """Of torch, in a module: imported, or asked of anything but oneself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [module + alias.name for alias in node.names]
            found += [name for name in names if "._" in name or "torch.fx.experimental" in name]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            hidden = node.attr.startswith("_") and not node.attr.endswith("__")
            if hidden or node.attr in ("fake_mode", "node", "shape_env"):
                found.append(ast.unparse(node))
    return found


def test_private_names_are_in_one_module() -> None:
    """So that each has a way out, which is tested here."""
    assert private_names("import torch._inductor\nfrom torch._inductor import config\nisa._arch_flags\nself._x") == [
        *("torch._inductor", "torch._inductor.config", "isa._arch_flags"),
    ]
    folder = Path(private.__file__).parent
    found = {path.name: private_names(path.read_text()) for path in folder.glob("*.py") if path.name != "private.py"}
    assert {name: names for name, names in found.items() if names} == {}
