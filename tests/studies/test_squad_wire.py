"""The template `squad-wire`: two readers of different families, one wire, from files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from latentwire.lm.prompt_format import PromptFormat
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.wires.latent.latent_config import read_config
from tests.support.models import tiny_lm

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PEOPLE = ("Ada", "Bob", "Cem", "Dora", "Eve", "Finn")
PLACES = ("the old town", "a red house", "the river", "a small shop", "the north gate")


def passages(path: Path, count: int, start: int = 0) -> Path:
    """A SQuAD v1.1 file with two questions on each passage."""
    articles = []
    for n in range(start, start + count):
        one, two = PEOPLE[n % 6], PEOPLE[(n + 1) % 6]
        here, there = PLACES[n % 5], PLACES[(n + 2) % 5]
        context = f"In year {1900 + n} {one} lived in {here}. At that time {two} worked at {there}."
        asked = ((f"Where did {one} live?", here), (f"Where did {two} work?", there))
        qas = [
            {
                "id": f"{n}-{at}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for at, (question, answer) in enumerate(asked)
        ]
        articles.append({"title": f"year {n}", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


def cached_model(cache: Path, name: str, family: str) -> str:
    """An instruct model in a hub cache, as a download leaves it."""
    repo = cache / f"models--tiny--{name}"
    # Every eighth token ends a text: what a random model says would go on to the limit.
    lm = tiny_lm(family, max_position_embeddings=2048, eos_token_id=list(range(2, 320, 8)))
    lm.tokenizer.chat_template = CHAT
    lm.save(repo / "snapshots" / "0123abcd")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")
    return f"tiny/{name}"


TRAININGS = ("A", "B", "alone", "C", "constant", "style")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runner.Carried]:
    folder = tmp_path_factory.mktemp("squad")
    a, b = cached_model(folder / "hub", "a", "llama"), cached_model(folder / "hub", "b", "qwen3")
    train, test = passages(folder / "train.json", 60), passages(folder / "test.json", 8, start=100)
    changes = [f"models.a={a}", f"models.b={b}", f"files.train={train}", f"files.test={test}", "limit=12"]
    # Most processors have no arithmetic in 16 bits: one stage keeps it.
    changes += ["loading.$a.dtype=float32", "loading.$b.dtype=float32"]
    changes += [f"stages.{name}.precision=fp32" for name in ("A", "B", "alone", "C", "constant")]
    few = ("passages=2", "questions=2", "log_steps=10", "eval_samples=4", "samples=0")
    changes += [f"stages.{name}.{change}" for name in TRAININGS for change in few]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        yield runner.run(loading.load("squad-wire", changes, "smoke"), folder / "runs", Log())


@pytest.mark.slow
def test_the_smoke_preset_runs_from_files_to_its_tables(done: runner.Carried) -> None:
    study, summary = done.plan.study, done.summary
    assert {stage["status"] for stage in summary["stages"].values()} == {"done"}
    for name in TRAININGS:
        results = done.runs[name].record.results
        assert results is not None
        assert results["steps"] == 20  # the preset's
    assert {form.system is not None for form in _formats(done)} == {True}  # asked as the template says
    arms = summary["stages"]["wires"]["metrics"]
    assert {"A_a", "A_b", "B_b", "C_b", "joint(A_a + A_b)", "union(A_a + A_b)", "joint(C_a + C_b)"} <= set(arms)
    assert list(arms["A_b"]["squad"])[:2] == ["exact_match", "f1"]
    assert {each["name"] for each in summary["comparisons"]} == {each.name for each in study.comparisons}
    assert "wires/A_a + wires/A_b" in summary["derived"]["agreement"]
    tables = (done.folder / "summary.md").read_text()
    for words in ("## Agreement", "joint(A_a + A_b)", "joint answer against a"):
        assert words in tables


def _formats(done: runner.Carried) -> list[PromptFormat]:
    formats = read_config(done.runs["A"].folder / "checkpoints" / "best").formats
    assert formats is not None
    return list(formats.values())


@pytest.mark.slow
def test_a_second_reader_leaves_the_first_ones_wire_as_it_was(done: runner.Carried) -> None:
    """Stage C trains the new adapter alone, so the first reader answers as it did."""

    def said(arm: str) -> list[Any]:
        lines = (done.runs["wires"].folder / "outcomes.jsonl").read_text().splitlines()
        return [each["prediction"] for each in map(json.loads, lines) if each["arm"] == arm]

    assert said("C_a") == said("alone_a")


def test_models_files_and_their_kind_are_each_changed_in_one_place() -> None:
    changes = ["models.a=x", "models.b=y", "files.kind=jsonl", "files.train=t.jsonl", "files.test=v.jsonl"]
    study = loading.load("squad-wire", changes)
    assert study.models() == ["x", "y"]
    (task,) = study.tasks
    assert not isinstance(task, str)
    assert (task.kind, str(task.data)) == ("jsonl", "v.jsonl")
    data = [stage.data for stage in study.stages.values() if stage.kind == "wire"]
    assert {(each.task, str(each.data)) for each in data} == {("jsonl", "t.jsonl")}
    assert set(study.stages["A"].wire.adapters) == {"x", "y"}


def test_a_hero_trains_for_longer_than_the_template() -> None:
    plain, hero = (loading.load("squad-wire", (), preset).stages["A"] for preset in (None, "hero"))
    assert hero.steps > plain.steps
