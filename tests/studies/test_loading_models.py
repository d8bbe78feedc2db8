"""How a study's models are loaded: where their modules go, and in how many bits."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.studies import loading, plan, runner
from tests.support.models import tiny_lm
from tests.support.studies import model_folder, small_study, written
from tests.support.wire_studies import HERON, WREN, encoder, fit, own_rows


def test_how_models_are_loaded_is_told_by_study(tmp_path: Path) -> None:
    only = {"only": {"kind": "evaluate", "arms": {"text": "text"}}}
    raw = small_study(stages=only, effects=None, comparisons=[], gates=[])
    model = raw["model"]
    for loading_of, expected in (
        ({"embedded:wren": {"bits": 4}}, "expected a model of this study"),
        ({model: {"bits": 3}}, "expected 4 or 8"),
        ({model: {"max_memory": "forty"}}, "expected a size such as 40GiB"),
        ({model: {"dtype": "half"}}, "expected 'float32', 'bfloat16' or 'float16'"),
    ):
        with pytest.raises(UserError, match=expected):
            loading.load(str(written(tmp_path, raw | {"loading": loading_of})))
    with pytest.raises(UserError, match="found a model that is finetuned"):
        loading.load(str(written(tmp_path, small_study(loading={model: {"device_map": "auto"}}))))
    plain = plan.make(loading.load(str(written(tmp_path, raw)))).stages["only"].identity
    mapped = raw | {"loading": {model: {"device_map": {"": "cpu"}}}}
    assert plan.make(loading.load(str(written(tmp_path, mapped)))).stages["only"].identity == plain
    assert runner.run(loading.load(str(written(tmp_path, mapped))), tmp_path / "runs", Log()).runs
    rounded = loading.load(str(written(tmp_path, raw | {"loading": {model: {"bits": 4}}})))
    assert plan.make(rounded).stages["only"].identity != plain


def test_sources_of_arms_are_loaded_as_the_study_says_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_folder("qwen3")
    arms = {f"relay{count}": f"relay,tokens={count},source={source}" for count in (2, 3)}
    only = {"only": {"kind": "evaluate", "arms": arms}}
    raw = small_study(stages=only, effects=None, comparisons=[], gates=[], limit=2)
    raw |= {"loading": {str(source): {"device_map": {"": "cpu"}}}}
    gc.collect()
    loads, load = list[Any](), LM.load

    def counted(spec: Any, **how: Any) -> LM:
        if str(spec) == str(source):
            loads.append(how["loading"].device_map)
        return load(spec, **how)

    monkeypatch.setattr(LM, "load", counted)
    study = loading.load(str(written(tmp_path, raw)))
    assert runner.run(study, tmp_path / "runs", Log()).runs
    assert loads == [{"": "cpu"}]
    rounded = loading.load(str(written(tmp_path, raw | {"loading": {str(source): {"bits": 4}}})))
    identities = [plan.make(each).stages["only"].identity for each in (study, rounded)]
    assert identities[0] != identities[1]


def bridge(**changes: Any) -> dict[str, Any]:
    """Wren reads for heron, whose own encoder has as many latents."""
    soft = {HERON: {"kind": "deep_prefix", "hidden": 8}}
    return fit(WREN, encoder(ratio=5, align=HERON, gives="both"), soft, **changes)


def imitating(wire: Any) -> list[dict[str, Any]]:
    return [{"kind": "answer_ce"}, {"kind": "imitate", "wire": str(wire)}]


def test_a_wire_that_is_imitated_has_the_source_that_the_study_has_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = list[tuple[str, Any]](), LM.load

    def counted(spec: Any, **how: Any) -> LM:
        loads.append((str(spec), getattr(how.get("loading"), "device_map", None)))
        return load(spec, **how)

    monkeypatch.setattr(LM, "load", counted)
    mapped = {"loading": {WREN: {"device_map": {"": "cpu"}}}}

    def carried(stages: dict[str, Any], **changes: Any) -> runner.Carried:
        gc.collect()
        loads.clear()
        raw = {"name": "sources", "model": HERON, "tasks": ["one_hop"], "stages": stages, **mapped, **changes}
        return runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())

    first = carried({"first": bridge()}).runs["first"].folder
    once = [(WREN, {"": "cpu"}), (HERON, None)]  # for the check, and for the trainings of all stages
    assert loads == once
    # The student's own source serves both wires, and the gates too.
    few = own_rows(tmp_path)
    gated = bridge(objectives=imitating("stage:first"), data=few, accept=["nll <= 1000"])
    carried({"first": bridge(), "second": gated})
    assert loads == once
    # A source that no stage of the study has otherwise, loaded as the study says all the same.
    own = fit(HERON, encoder(ratio=5), {HERON: {"kind": "native"}}, objectives=imitating(first))
    carried({"own": own})
    assert [how for spec, how in loads if spec == WREN] == [{"": "cpu"}]
    raw = {"name": "sources", "model": HERON, "tasks": ["one_hop"], "stages": {"own": own}}
    rounded = [{"loading": {WREN: {"bits": bits}}} for bits in (None, 4)]
    plans = [plan.make(loading.load(str(written(tmp_path, raw | each)))) for each in rounded]
    assert plans[0].stages["own"].identity != plans[1].stages["own"].identity


def test_exchanged_weights_of_a_relays_source_make_another_stage(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_folder("qwen3"), source)
    only = {"only": {"kind": "evaluate", "arms": {"relay": f"relay,tokens=2,source={source}"}}}
    raw = small_study(stages=only, effects=None, comparisons=[], gates=[], limit=2)
    study = loading.load(str(written(tmp_path, raw)))
    before = plan.make(study).stages["only"]
    assert before.inputs[f"relay {source}"].sha256 != before.inputs["model"].sha256
    tiny_lm("qwen3", seed=5, max_position_embeddings=1024).save(tmp_path / "other")
    (source / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert plan.make(study).stages["only"].identity != before.identity


def test_weights_are_not_rounded_without_what_rounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, there = importlib.util.find_spec, False

    def find_spec(name: str, package: str | None = None) -> object:
        return (object() if there else None) if name == "bitsandbytes" else honest(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        LM.load(model_folder(), bits=4)
    there = True
    with pytest.raises(UserError, match="expected a GPU"):
        LM.load(model_folder(), bits=4, device="cpu")
