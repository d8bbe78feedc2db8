"""Editors complete and check a study's keys: the JSON Schema takes what is right and refuses what is wrong."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from latentwire.cli import app
from latentwire.studies import templates
from latentwire.studies.field_docs import descriptions
from latentwire.studies.study_schema import study_schema
from latentwire.training.loop_config import Stopping
from latentwire.wires.latent.encoders import SelfConfig

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = study_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
QUICKSTART = yaml.safe_load(templates()["quickstart"])
PARTS = [("the study", SCHEMA), *sorted(SCHEMA["$defs"].items())]


def changed(path, value):
    """The study of the demo with one value changed."""
    study = copy.deepcopy(QUICKSTART)
    at = study
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return study


def test_the_schema_is_one_and_the_command_prints_it(capsys):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    app(["schema"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("name", templates())
def test_every_template_fits(name):
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(templates()[name]))] == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part[0])
def test_every_key_says_what_it_means(part):
    assert [key for key, field in part[1].get("properties", {}).items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("limits",), 10),
        (("limit",), "many"),
        (("limit",), 0),
        (("split",), "validate"),
        (("stages", "baseline", "kind"), "evaluation"),
        (("stages", "baseline", "arm"), {"text": "text"}),
        (("stages", "causal_ft", "steps"), -1),
        (("stages", "causal_ft", "optimiser"), "adamw"),
        (("stages", "causal_ft", "objectives"), [{"kind": "cross_entropy"}]),
        (("finetuning", "step"), 100),
        (("tasks",), [{"name": "mine", "kind": "jsonlines", "data": "x.jsonl"}]),
        (("comparisons", 0, "primary"), "perhaps"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else repr(value)[:30],
)
def test_a_mistake_is_refused(path, value):
    assert not VALIDATOR.is_valid(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stages", "causal_ft", "sweep"), {"learning_rate": [1e-4, 3e-4]}),
        (("stages", "causal_ft", "objectives"), [{"kind": "mymodule:MyTerm", "anything": 1}]),
        (("stages", "causal_ft", "best"), "exact_match"),
        (
            ("tasks",),
            [{"name": "mine", "kind": "$kind", "data": "$test"}, {"name": "s", "kind": "hub", "dataset": "squad"}],
        ),
        (("models",), {"small": "embedded:heron"}),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else repr(value)[:30],
)
def test_what_a_study_may_also_say_is_accepted(path, value):
    assert VALIDATOR.is_valid(changed(path, value))


def test_meanings_are_read_from_the_docstring_of_the_class_or_its_parents():
    assert descriptions(Stopping)["collapse_steps"] == "The steps in which `collapse_ratio` applies."
    found = descriptions(SelfConfig)
    assert found["alpha"] == "Their scale."  # on the same line as `rank`
    assert not found["rank"].endswith("alpha: their scale.")
    assert found["draft"] == found["draft_tokens"]
    assert found["kind"].startswith("Picks this kind: the source model reads the context")
