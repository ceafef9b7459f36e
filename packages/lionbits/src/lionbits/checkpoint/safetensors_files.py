"""State dicts as safetensors files: tensors under readable names, everything else as JSON in the metadata.

The JSON under ``lionbits`` is the state dict itself, with ``{"$tensor": name}`` where a tensor stands,
``{"$tuple": [...]}`` for tuples, ``{"$items": [[key, value], ...]}`` for dicts whose keys are no plain names, and
``{"$float": "nan"}`` for what JSON cannot write.

The safetensors library reads the files; this module writes them. The library would hold all bytes in memory a second
time, although paged state can be larger than memory, and it leaves temporary files when its process is killed.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lionbits import install
from lionbits_reference.spec import checks

from . import saving
from .form import VERSION, VERSION_KEY

ENTRY = "lionbits"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SCALARS = (bool, int, float, str, type(None))


def save_safetensors(state_dict: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dict as a safetensors file, which :func:`load_safetensors` gives back equal in every bit.

    Tensors are ``state.<number>.<key>``, or ``state.<name>.<key>`` where parameters have names; any reader of
    safetensors finds them. As :func:`lionbits.save`, it never leaves half a file. It needs no other package.

    Args:
        state_dict: dicts, lists and tuples of tensors, numbers, strings and None, such as ``optimizer.state_dict()``. A
            view is written as what it shows; a tensor that stands in two places is written once and loaded as one.
        path: of the file, ``*.safetensors`` by custom; what :func:`lionbits.save` says of it holds here.

    Raises:
        TypeError: something in it is of another kind; the message says where. ValueError: it is nested too deeply.
        OSError: it cannot be written.
    """
    if not isinstance(state_dict, Mapping):
        rule = "must be a dict, such as optimizer.state_dict() returns"
        raise checks.refusal(TypeError, "state_dict", state_dict, rule)
    packer = _Packer(_parameter_names(state_dict))
    try:
        entry = json.dumps(packer.pack(dict(state_dict), ()), allow_nan=False)
    except RecursionError:
        rule = "must not hold itself, nor hundreds of containers in each other"
        raise checks.refusal(ValueError, "state_dict", type(state_dict), rule) from None
    metadata = {"format": "pt", VERSION_KEY: str(VERSION), ENTRY: entry}
    with saving.whole(path) as stream:
        _write(stream, packer.tensors, metadata)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state dict that :func:`save_safetensors` wrote, its tensors on the CPU.

    Raises:
        ImportError: safetensors is not installed.
        OSError: there is no such file.
        ValueError: the file is damaged, is not :func:`save_safetensors`' or a newer lionbits'; the message names it.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"load_safetensors needs safetensors: {install.command('safetensors')}") from error
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    if ENTRY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but none that lionbits.save_safetensors wrote.")
    if metadata.get(VERSION_KEY) != str(VERSION):
        raise ValueError(
            f"{path} has {VERSION_KEY}={metadata.get(VERSION_KEY)!r}: this lionbits reads version {VERSION}. "
            f"Load it with the lionbits that wrote it."
        )
    try:
        state_dict = _unpack(json.loads(metadata[ENTRY]), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its metadata does not describe its tensors ({error!r}).") from error
    if not isinstance(state_dict, dict):
        found = type(state_dict).__name__
        raise ValueError(f"{path} is damaged: its metadata describes a {found}, not a dict.")  # noqa: TRY004
    return state_dict


class _Packer:
    """Takes tensors out of nested containers and names them by their places."""

    def __init__(self, parameter_names: Mapping[Any, str]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._parameter_names = parameter_names
        self._name_of: dict[int, str] = {}  # by id; self.tensors keeps them alive

    def pack(self, value: Any, where: tuple[Any, ...]) -> Any:
        """Return a value as JSON can write it, ``where`` being its place.

        Raises:
            TypeError.
        """
        if isinstance(value, Tensor):
            return {"$tensor": self._placed(value, where)}
        if type(value) is float and not math.isfinite(value):
            return {"$float": repr(value)}
        if type(value) in _SCALARS:
            return value
        if isinstance(value, (list, tuple)):
            items = [self.pack(item, (*where, j)) for j, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        if isinstance(value, dict) and all(type(key) in _SCALARS for key in value):
            packed = [(key, self.pack(item, (*where, self._label(key, where)))) for key, item in value.items()]
            plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
            return dict(packed) if plain else {"$items": [list(pair) for pair in packed]}
        rule = "must be made of dicts, lists, tuples, tensors, numbers, strings and None"
        raise checks.refusal(TypeError, f"state_dict at {_shown(where)}", value, rule, "lionbits.save takes anything.")

    def _label(self, key: Any, where: tuple[Any, ...]) -> Any:
        return self._parameter_names.get(key, key) if where == ("state",) else key

    def _placed(self, tensor: Tensor, where: tuple[Any, ...]) -> str:
        if id(tensor) in self._name_of:
            return self._name_of[id(tensor)]
        if not _in_memory(tensor):
            rule = "must be a plain tensor, whose elements are in memory"
            hint = "Save sharded state with torch.distributed.checkpoint."
            raise checks.refusal(TypeError, f"state_dict at {_shown(where)}", type(tensor), rule, hint)
        checks.choice(f"dtype of state_dict at {_shown(where)}", tensor.dtype, tuple(_DTYPES))
        name = ".".join(map(str, where))
        while name in self.tensors or name == "__metadata__":  # {"a.b": ...} and {"a": {"b": ...}}
            name += "'"
        self.tensors[name] = tensor
        self._name_of[id(tensor)] = name
        return name


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match packed:
        case {"$tensor": name}:
            return tensors[name]
        case {"$tuple": items}:
            return tuple(_unpack(items, tensors))
        case {"$items": pairs}:
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in pairs}
        case {"$float": text}:
            return float(text)
    return {key: _unpack(item, tensors) for key, item in packed.items()}


def _parameter_names(state_dict: Mapping[str, Any]) -> dict[Any, str]:
    """Return the names of parameters by their ids in the state dict, if every one has a name of its own."""
    groups = state_dict.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) and "param_names" in group for group in groups):
        return {}
    pairs = [pair for group in groups for pair in zip(group["params"], group["param_names"], strict=True)]
    return dict(pairs) if len({name for _, name in pairs}) == len(pairs) else {}


def _shown(where: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in where)


def _write(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the length of the header, the header, and the tensors, wide dtypes first so that each is aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at := at + tensor.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        _write_bytes(stream, tensor)


def _in_memory(tensor: Tensor) -> bool:
    """True if the bytes of all elements are in memory: not so for meta, fake or wrapper tensors, or a freed storage."""
    wraps = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__  # as DTensor does
    if wraps or tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        return False
    if tensor.device.type != "cpu" or not tensor.numel():
        return True
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    try:
        storage = tensor.untyped_storage()
        there = storage.nbytes() if storage.device == tensor.device else 0
    except RuntimeError:  # a subclass that holds other tensors in the place of bytes
        return False
    return there >= (tensor.storage_offset() + last + 1) * tensor.itemsize


def _write_bytes(stream: BinaryIO, tensor: Tensor) -> None:
    here = tensor.detach().cpu().resolve_neg().contiguous()  # a view may negate what is in memory
    if not _in_memory(here):
        raise TypeError(f"a {type(tensor).__name__} on {tensor.device} has no bytes on the CPU that could be saved")
    if here.nbytes and not here.data_ptr():  # zeros that torch has not written anywhere
        here = torch.zeros(here.shape, dtype=here.dtype)
    if here.nbytes:
        stream.write((ctypes.c_char * here.nbytes).from_address(here.data_ptr()))
