"""The embedded models are what their cards say."""

import json
import math
from functools import cache

import pytest

from latentwire import LM, models, wires
from latentwire.errors import UserError
from latentwire.evaluation import arms
from latentwire.evaluation.audit import audit
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.statistics import estimate
from latentwire.tasks import resolve
from latentwire.tasks.floors import type_floor
from latentwire.training.growing import card as cards

SAMPLE = 30
REMEASURED = ("one_hop", "two_hop", "sums", "choices/person")


@pytest.fixture(scope="module", params=models.NAMES)
def lm(request):
    return LM.load(f"embedded:{request.param}", device="cpu")


def card_of(lm):
    return json.loads((models.folder(lm.name.removeprefix("embedded:")) / "card.json").read_text())


@pytest.mark.slow
def test_a_sample_of_the_card_is_remeasured(lm):
    card = card_of(lm)
    result = evaluate(lm, resolve(list(REMEASURED), None), [wires.parse("text")], limit=SAMPLE)
    for task in REMEASURED:
        found = estimate([outcome for outcome in result.outcomes if outcome.task == task])
        claimed = next(iter(card["metrics"]["text"][task].values()))["value"]
        # Four standard errors of the sample at the claimed value, and one example's worth.
        tolerance = 4 * math.sqrt(claimed * (1 - claimed) / SAMPLE) + 1 / SAMPLE
        assert abs(found.value - claimed) <= tolerance, task


def test_a_card_names_its_recipe_seed_and_tokens(lm):
    card = card_of(lm)
    recipe = json.loads((models.folder(lm.name.removeprefix("embedded:")) / "recipe.json").read_text())
    assert card["seed"] == 0
    assert card["grown"]["tokens_seen"] > 1e7
    assert {name: card["recipe"][name] for name in ("architecture", "steps")} == {
        name: recipe[name] for name in ("architecture", "steps")
    }
    for arm in ("text", "text,mask=prefix", "none"):
        assert set(card["metrics"][arm]["macro"]["primary"]) == {"value", "low", "high", "n"}


@pytest.mark.parametrize("name", models.NAMES)
def test_a_card_in_words_is_its_card_in_numbers_and_names_the_licence(name):
    folder = models.folder(name)
    written = (folder / "card.md").read_text(encoding="utf-8")
    assert written == cards._markdown(json.loads((folder / "card.json").read_text()))
    assert "Licence: Apache-2.0" in written


def test_the_weights_are_small(lm):
    size = (models.folder(lm.name.removeprefix("embedded:")) / "model.safetensors").stat().st_size
    assert size <= 12 * 2**20


def test_the_models_differ_in_family_size_and_tokenizer():
    heron, wren = (LM.load(f"embedded:{name}", device="cpu") for name in ("heron", "wren"))
    assert heron.model.config.model_type != wren.model.config.model_type
    assert heron.model.config.hidden_size != wren.model.config.hidden_size
    text = "Listen: Ada was born in 1957."
    assert heron.tokenizer(text)["input_ids"] != wren.tokenizer(text)["input_ids"]


@pytest.mark.slow
def test_nothing_leaks(lm):
    for spec in ("text", "text,mask=prefix"):
        assert audit(lm, wires.parse(spec), kernels=["sdpa"]).problems == []


def test_ignoring_whom_the_question_is_about_earns_little():
    for task in resolve(["tiers"], None):
        assert type_floor(task.examples("test")) <= 0.30


@cache
def reader_and_text(name):
    """A reader, and its score on 60 questions with the text."""
    lm = LM.load(f"embedded:{name}", device="cpu")
    return lm, score(lm, "text", 60)


def score(lm, arm, limit):
    return estimate(evaluate(lm, resolve(["one_hop"], None), [arms.parse(arm)], limit=limit).outcomes).value


SHIPPED = [
    pytest.param("heron-4x", "heron", 0.80, id="heron-4x"),
    pytest.param("heron-8x", "heron", 0.85, id="heron-8x", marks=pytest.mark.slow),
    pytest.param("heron-16x", "heron", 0.70, id="heron-16x", marks=pytest.mark.slow),
    pytest.param("heron-to-wren", "wren", 0.75, id="heron-to-wren", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reader", "least"), SHIPPED)
def test_a_wire_that_ships_is_read_as_its_results_say(name, reader, least):
    lm, text = reader_and_text(reader)
    latent = score(lm, f"embedded:{name}", 60)
    assert latent >= least
    assert text - latent <= 0.95 - least
    assert score(lm, f"embedded:{name}:deranged", 20) <= 0.05


@pytest.mark.parametrize("name", models.WIRES)
def test_a_wire_that_ships_is_small(name):
    assert sum(file.stat().st_size for file in models.wire_folder(name).iterdir()) <= 6 * 2**20


def test_a_wire_is_refused_before_a_model_that_it_was_not_trained_for():
    with pytest.raises(UserError, match=r"is read by embedded:heron, found embedded:wren"):
        arms.parse("embedded:heron-4x").bind(LM.load("embedded:wren", device="cpu"))
