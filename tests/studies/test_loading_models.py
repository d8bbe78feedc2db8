"""How a study's models are loaded: where their modules go, and in how many bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.studies import loading, plan, runner
from tests.studies.study import model_folder, small_study, written


def test_how_models_are_loaded_is_told_by_study(tmp_path: Path) -> None:
    only = {"only": {"kind": "evaluate", "arms": {"text": "text"}}}
    raw = small_study(stages=only, effects=None, comparisons=[], gates=[])
    model = raw["model"]
    for loading_of, expected in (
        ({"embedded:wren": {"bits": 4}}, "expected a model of this study"),
        ({model: {"bits": 8}}, "expected 4"),
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
