"""The committed vectors: made by the oracle, shaped as their schema says, and true of the reference."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lionbits
from lionbits_conformance import oracle, vectors
from lionbits_conformance.oracle.differential import patterns
from lionbits_conformance.oracle.records import Settings
from lionbits_conformance.vectors import __main__ as command
from lionbits_conformance.vectors import replays, whole_steps
from lionbits_conformance.vectors.texts import unwords
from lionbits_reference import caution, clipping, decode, formats, rounding, update
from lionbits_reference.spec import FORMATS, Format, Hyper, decay_factor

SCHEMA = json.loads((vectors.HERE / "schema.json").read_text())
KINDS_OF_JSON = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Where ``value`` is not what the schema says: the keywords of draft 2020-12 that our schema uses."""
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    found = []
    named = schema.get("type", [])
    named = [named] if isinstance(named, str) else named
    if named and not any(is_a(value, name) for name in named):
        return [f"{where}: {value!r:.60} is not {named}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r:.60} is not {schema['const']!r}")
    if "enum" in schema and not any(value == v and type(value) is type(v) for v in schema["enum"]):
        found.append(f"{where}: {value!r:.60} is none of {schema['enum']}")
    if "oneOf" in schema:
        fitting = [s for s in schema["oneOf"] if not faults(value, s)]
        if len(fitting) != 1:
            found.append(f"{where}: fits {len(fitting)} of the alternatives")
    if isinstance(value, str) and re.search(schema.get("pattern", ""), value) is None:
        found.append(f"{where}: {value!r:.60} is not {schema['pattern']}")
    if is_a(value, "integer") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value} is out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for j, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{where}[{j}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{where}: lacks {key}" for key in schema.get("required", []) if key not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{where}: has {key}" for key in value if key not in known]
        for key, sub in known.items():
            found += faults(value[key], sub, f"{where}.{key}") if key in value else []
    return found


def is_a(value: Any, name: str) -> bool:
    return isinstance(value, KINDS_OF_JSON[name]) and not (isinstance(value, bool) and name == "integer")


def test_the_oracle_would_write_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check"]) == 0, capsys.readouterr().err


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert command.main(["write", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{kind}.json" for kind in vectors.KINDS)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (vectors.HERE / path.name).read_bytes()


def test_a_changed_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in vectors.HERE.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(vectors, "HERE", tmp_path)
    noise = tmp_path / "noise.json"
    noise.write_text(noise.read_text().replace('"step": 3', '"step": 2', 1))
    (tmp_path / "numbers.json").unlink()
    assert command.main(["check"]) == 1
    said = capsys.readouterr().err
    assert [name for name in (f"{kind}.json" for kind in vectors.KINDS) if name in said] == [
        "numbers.json",
        "noise.json",
    ]


@pytest.mark.parametrize("kind", vectors.KINDS)
def test_files_are_what_the_schema_says(kind: str) -> None:
    document = json.loads((vectors.HERE / f"{kind}.json").read_text())
    assert document["kind"] == kind
    for case in document["cases"]:
        assert not faults({**document, "cases": [case]}, SCHEMA)
    broken = json.loads(json.dumps(document["cases"][0]))
    broken["surplus"] = 1
    assert faults({**document, "cases": [broken]}, SCHEMA)


def test_the_oracle_needs_nothing_but_python() -> None:
    """Neither torch nor numpy, nor any code that it checks."""
    program = "import sys; from lionbits_conformance import oracle, vectors; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    strangers = {"torch", "numpy", "lionbits", "lionbits_reference"}
    assert "lionbits_conformance.oracle.lion" in loaded
    assert not strangers & {name.partition(".")[0] for name in loaded}


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in vectors.HERE.glob("*.json")) < 1_500_000


@pytest.mark.parametrize("case", vectors.cases("steps"), ids=lambda case: case["name"])
def test_the_reference_goes_through_the_same_scenarios(case: dict[str, Any]) -> None:
    if reason := replays.obstacle(case):
        pytest.skip(reason)
    assert replays.replay(case, lionbits.Lion, backend="reference") is None


def test_a_replay_finds_one_wrong_bit() -> None:
    text = json.dumps(vectors.cases("steps")[2])
    case = json.loads(text)
    scale = case["steps"][-1]["after"][1]["state"]["exp_avg_scale"]
    case["steps"][-1]["after"][1]["state"]["exp_avg_scale"] = f"{int(scale[:8], 16) ^ 1:08x}{scale[8:]}"
    found = replays.replay(case, lionbits.Lion, backend="reference")
    assert found is not None
    assert "step 3: parameter 1, exp_avg_scale[0]" in found


def test_scenarios_touch_every_option() -> None:
    """Each setting takes a value beside its default, and each named value of one occurs."""
    seen: dict[str, set[Any]] = {}
    for case in vectors.cases("steps"):
        for given in [p["settings"] for p in case["parameters"]] + [s["settings"] for s in case["steps"]]:
            for name, value in given.items():
                seen.setdefault(name, set()).add(tuple(value) if isinstance(value, list) else value)
    assert seen.keys() == vars(Settings()).keys()
    assert all(len(values) > 1 for values in seen.values()), seen
    for name, schema in SCHEMA["$defs"]["settings"]["properties"].items():
        assert set(schema.get("enum", [])) <= seen[name]
    assert len(whole_steps.WHOLE_STEPS) >= 25


def f32(text: str) -> torch.Tensor:
    return replays.tensor(text, "float32", [len(text.split())])


def same(tensor: torch.Tensor, text: str) -> bool:
    expected = f32(text).reshape(tensor.shape)
    return bool(((tensor.view(torch.int32) == expected.view(torch.int32)) | (tensor.isnan() & expected.isnan())).all())


def test_elements_are_true_of_the_reference() -> None:
    single = [name for name, kind in SCHEMA["$defs"]["element"]["properties"].items() if "$ref" in kind]
    for case in vectors.cases("arithmetic"):
        x = {name: f32(case[name])[0] for name in single}
        betas = [float(x[name]) for name in ("b1", "one_minus_b1", "b2", "one_minus_b2")]
        hyper, mode = Hyper(betas[0], betas[1], betas[2], betas[3]), case["cautious"] or "none"
        g = x["grad"] * x["grad_scale"]
        new = update.update(x["p"], x["m"], g, x["lr"], x["keep"], hyper, mode, case["nonfinite"])
        assert same(g, case["g"])
        assert same(update.blend(x["m"], g, betas[0], betas[1]), case["c"])
        assert same(new.param, case["p_new"]), case
        assert same(new.momentum, case["m_new"]), case
        assert bool(new.applied) != case["skipped"]
        assert update.aligned(x["m"], g, hyper, case["nonfinite"]).sum() == case["aligned"]
        assert case["skipped"] or update.direction(x["m"], g, hyper, mode) == case["u"]


def test_the_oracle_knows_every_format() -> None:
    """It has a list of its own: a format that only one side has would be checked by nobody."""
    assert sorted(oracle.formats.NAMES) == sorted(name for names in FORMATS.values() for name in names)


@pytest.mark.parametrize("case", vectors.cases("formats"), ids=lambda case: case["name"])
def test_codes_are_true_of_the_reference(case: dict[str, Any]) -> None:
    form = Format(case["bits"], case["exponent_bits"], case["mantissa_bits"], 0)
    columns = 1 << case["bits"]
    packed = 0
    for code in range(columns):
        packed |= code << (case["bits"] * code)
    row = torch.tensor([list(packed.to_bytes(columns * case["bits"] // 8, "little"))], dtype=torch.uint8)
    state = {"exp_avg_codes": row, "exp_avg_scale": torch.ones(1, 1)}
    assert same(decode(form, state, (1, columns)), case["values"])


@pytest.mark.parametrize("case", vectors.cases("formats"), ids=lambda case: case["name"])
def test_encodings_are_true_of_the_reference(case: dict[str, Any]) -> None:
    form = Format(case["bits"], case["exponent_bits"], case["mantissa_bits"], 0)
    for given in case["encodings"]:
        absmax, m = f32(given["absmax"])[0], f32(given["m"])
        scale = formats.block_scale(absmax, form)
        assert same(scale, given["scale"]), given
        codes = formats.encode(m[None], absmax, torch.tensor([[given["noise"]]], dtype=torch.int32), form)
        assert codes.item() == given["code"], given
        assert same(formats.decode(codes, scale, 1, form), given["decoded"]), given
    for given in case["packings"]:
        packed = torch.tensor([unwords(given["bytes"])], dtype=torch.uint8)
        state = {"exp_avg_codes": packed, "exp_avg_scale": torch.ones(1, 1)}
        values = unwords(case["values"])
        expected = " ".join(f"{values[code]:08x}" for code in given["codes"])
        assert same(decode(form, state, (1, len(given["codes"]))), expected)


def test_numbers_are_true_of_the_reference() -> None:
    for case in vectors.cases("numbers"):
        if case["of"] == "rates":
            given = replays.settings(case["given"])
            hyper, keep = Hyper.of(given["betas"]), decay_factor(given["lr"], given["weight_decay"])
            for name in ("b1", "one_minus_b1", "b2", "one_minus_b2"):
                assert same(torch.tensor(getattr(hyper, name)), case[name]), case
            assert same(torch.tensor([given["lr"]], dtype=torch.float32), case["lr"])
            assert same(torch.tensor(keep), case["keep"]), case
        elif case["of"] == "caution":
            count, numel = torch.tensor([case["aligned"]]), torch.tensor([case["n"]])
            factor = caution.rate_factor(case["cautious"], count, numel)
            assert same(factor, case["factor"]), case
            assert same(f32(case["lr"]) * factor, case["lr_new"])
        elif case["of"] == "norm":
            grad = replays.tensor(case["grad"], case["dtype"], [len(case["grad"].split())])
            assert same(clipping.gradient_norm(grad, case["nonfinite"]), case["norm"]), case
        else:
            same_history(case)


def same_history(case: dict[str, Any]) -> None:
    history, clip, q = torch.zeros(1, 100), replays.settings(case)["grad_clip"], case["percentile_clipping"]
    norms, factors = f32(case["norms"]), case["factors"].split()
    for step, norm in enumerate(norms, start=1):
        limit = torch.tensor(clip if clip > 0 else torch.inf)
        if q < 100:
            history = clipping.remembered(history, norm.reshape(1), torch.tensor([step]))
            limit = torch.minimum(limit, clipping.percentile_limits(history, torch.tensor([q]))[0])
        assert same(clipping.clip_factor(norm, limit), factors[step - 1]), step
    assert q == 100 or same(history[0], case["grad_norms"])


def test_lanes_are_true_of_the_reference() -> None:
    for case in vectors.cases("noise"):
        i = int(case["i"], 16)
        salt = rounding.salt(int(case["seed"], 16), case["parameter"], case["purpose"])
        noise = rounding.noise(case["mode"], salt, torch.tensor(case["step"]), i - i % 2, 2, (1, 2))
        assert isinstance(noise, torch.Tensor)
        assert noise[0, i % 2] == case["noise"], case


def test_stored_parameters_are_true_of_torch_and_the_reference() -> None:
    for case in vectors.cases("parameters"):
        p, noise, residual = f32(case["p"]), torch.tensor([case["noise"]], dtype=torch.int32), None
        if case["mode"] == "nearest":
            stored = p.to(getattr(torch, case["dtype"]))
        elif case["mode"] == "unbiased":
            stored = rounding.round_unbiased(p, noise)
        else:
            stored, residual = rounding.split_master(
                p, torch.int8 if case["mode"].endswith("24") else torch.int16, noise
            )
        assert patterns(stored) == unwords(case["stored"]) or (stored.isnan().all() and p.isnan().all()), case
        assert case["residual"] == (None if residual is None else residual.item())
