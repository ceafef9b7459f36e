"""Choice of the backend: constructor argument > ``LIONBITS_BACKEND`` > auto. ``x`` means ``lionbits_x``."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import cast

import torch

from lionbits_reference.spec import Backend, Format, Plan, checks

from . import install, self_test

ENVIRONMENT = "LIONBITS_BACKEND"
AUTO = "auto"
PREFIX = "lionbits_"

#: Modules of our own that have the prefix and are no backends.
NOT_BACKENDS = ("conformance", "bench", "cli", "table")

#: The backend that serves everywhere.
REFERENCE = "reference"

#: What ``auto`` tries before the reference, by type of device, best first.
PREFERENCE = {"cuda": ("triton", "cupy"), "cpu": ("cpp",)}

CALLABLES = ("supports", "prepare", "aligned", "absmax", "step", "encode", "decode")


class BackendUnavailable(ImportError):
    """A backend that was asked for by name cannot be imported; the message says why."""


class NotServed(ValueError):
    """No backend, or not the one that was asked for, runs a plan on a device; the message says why."""


def known() -> tuple[str, ...]:
    """Return the names of our own backends, best first, then of installed third-party ones."""
    found = {m.name.removeprefix(PREFIX) for m in pkgutil.iter_modules() if m.name.startswith(PREFIX)}
    ours = (*(name for names in PREFERENCE.values() for name in names), REFERENCE)
    return (*ours, *sorted(found - set(ours) - set(NOT_BACKENDS)))


def load(name: str) -> Backend:
    """Return the module ``lionbits_<name>``.

    Raises:
        BackendUnavailable: it is not installed, or its import fails.
        TypeError: it lacks a name that the protocol asks for.
    """
    module_name = PREFIX + name
    if not name.isidentifier() or importlib.util.find_spec(module_name) is None:
        raise BackendUnavailable(f"backend={name!r}: there is no module {module_name}. {_way_out(name)}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BackendUnavailable(f"backend={name!r}: importing {module_name} failed: {error}") from error
    return _checked(module)


def requested(backend: str | ModuleType | None) -> Backend | None:
    """Return the backend that argument or environment name, or None for ``auto``.

    Raises:
        TypeError: the argument is neither a name nor a module with the protocol's functions.
        BackendUnavailable: the name cannot be imported.
    """
    if backend is None:
        return _from_environment(os.environ.get(ENVIRONMENT) or AUTO)
    if isinstance(backend, ModuleType):
        return _checked(backend)
    if not isinstance(backend, str):
        raise checks.mistyped("backend", backend, "must be a name, a backend module, or None")
    return None if backend == AUTO else load(backend)


def _from_environment(name: str) -> Backend | None:
    try:
        return requested(name)
    except BackendUnavailable as error:
        raise BackendUnavailable(f"{ENVIRONMENT}={str(error).removeprefix('backend=')}") from error


def serving(backend: Backend | None, plan: Plan, device: torch.device) -> Backend:
    """Return the backend that runs this plan on this device: the requested one, or the first able one.

    Args:
        backend: that was asked for, or None.
        plan: what is to be run.
        device: where.

    Raises:
        NotServed: the requested backend cannot, with its reason. There is no silent fallback.
    """
    if backend is not None:
        reason = backend.supports(plan, device) or self_test.refusal(backend, device)
        if reason:
            way_out = _served_otherwise(plan, device)
            raise NotServed(f"backend={backend.name!r} cannot serve {_describe(plan, device)}: {reason}{way_out}")
        return backend
    return _automatic(plan, device)


def tested(backend: Backend | None, plans: Sequence[Plan], device: torch.device) -> Backend:
    """Return the backend that runs these plans on this device, once it has passed its self-test there.

    Args:
        backend: that was asked for, or None.
        plans: what is about to be run, by one backend.
        device: where.

    Raises:
        NotServed: as in :func:`serving`, or the requested backend gives wrong bits.
    """
    chosen = serving(backend, plans[0], device)
    for plan in plans[1:]:
        serving(chosen, plan, device)
    if any(self_test.failure(chosen, plan, device) for plan in plans):
        _automatic.cache_clear()
        return tested(backend, plans, device)  # it is refused from now on
    return chosen


def diagnose(name: str, device: torch.device) -> str:
    """Return why the backend cannot step 8-bit state of float32 parameters on ``device``; an empty string if it can."""
    try:
        return load(name).supports(Plan(torch.float32, torch.float32, Format.of(8)), device)
    except (BackendUnavailable, TypeError) as error:
        return str(error)


def _way_out(name: str) -> str:
    if name in install.EXTRAS:
        return f"To install it: {install.command(name)}"
    near = difflib.get_close_matches(name.strip().lower(), known(), 1)
    guess = f"Did you mean {near[0]!r}? " if near else f"Is lionbits-{name} installed? " if name.isidentifier() else ""
    return f"{guess}Known are {', '.join(known())}."


def _served_otherwise(plan: Plan, device: torch.device) -> str:
    """Return a sentence that names the backend that would be chosen if none had been requested."""
    try:
        return f". Without backend= and {ENVIRONMENT} it is {_automatic(plan, device).name!r} that serves."
    except NotServed:
        return ""


@functools.lru_cache(maxsize=1024)
def _automatic(plan: Plan, device: torch.device) -> Backend:
    refused = []
    for name in (*PREFERENCE.get(device.type, ()), REFERENCE):
        if importlib.util.find_spec(PREFIX + name) is None:
            continue
        backend = load(name)
        reason = backend.supports(plan, device) or self_test.refusal(backend, device)
        if not reason:
            return backend
        refused.append(f"{name}: {reason}")
    raise NotServed(f"no backend serves {_describe(plan, device)} ({'; '.join(refused)})")


def _checked(module: ModuleType) -> Backend:
    missing = [name for name in CALLABLES if not callable(getattr(module, name, None))]
    if not isinstance(getattr(module, "name", None), str):
        missing.insert(0, "name")
    if missing:
        rule = f"lacks {', '.join(missing)} of the protocol lionbits_reference.spec.Backend"
        raise checks.refusal(TypeError, "backend", module.__name__, rule)
    return cast(Backend, module)


def _describe(plan: Plan, device: torch.device) -> str:
    return f"{plan.param_dtype} parameters with {plan.format.name} state on {device}"
