"""`prompts:` of a study: one prompt format a model, in training, checkpoints, evaluation, relays and controls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.arms import parse
from latentwire.evaluation.prompts_shown import departures
from latentwire.lm.loading.saving import FORMAT_FILE
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.runs.log import Log
from latentwire.runs.store import LOG
from latentwire.studies import loading, plan, runner
from latentwire.tasks.base import Task
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate
from tests.support.models import tiny_lm
from tests.support.studies import model_folder, small_study, written
from tests.support.wire_studies import encoder, fit

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}[assistant]"
PROMPTS = {"template": "chat", "instruction": "Be brief.", "system": "S"}
FORM = PromptFormat(template="chat", instruction="Be brief.", system="S")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a chat template, and no prompt format beside it."""
    folder = tmp_path_factory.mktemp("chat") / "chatty"
    shutil.copytree(model_folder("llama", 2048), folder)
    (folder / FORMAT_FILE).unlink()
    (folder / "chat_template.jinja").write_text(CHAT)
    return str(folder)


def study_of(model: str, stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    raw = small_study(model=model, stages=stages, effects=None, comparisons=[], gates=[], limit=8)
    return raw | {"tasks": ["one_hop"]} | changes


def carried(tmp_path: Path, raw: dict[str, Any]) -> runner.Carried:
    return runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())


@pytest.fixture(scope="module")
def trained(chatty: str, tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    place = tmp_path_factory.mktemp("study")
    arms = {
        "wire": "stage:fit",
        "mean": "stage:fit:mean",
        "text": "text",
        "relay": f"relay,tokens=3,source={chatty}",
    }
    finetuning = {"kind": "finetune", "wire": "text", "steps": 1, "eval_steps": 1}
    stages = {
        "fit": fit(chatty, encoder(), {chatty: {"kind": "native"}}),
        "tune": finetuning,
        "after": {"kind": "evaluate", "start_from": "tune", "arms": {"text": "text"}},
        "read": {"kind": "evaluate", "arms": arms},
    }
    return carried(place, study_of(chatty, stages, prompts={chatty: PROMPTS}))


@pytest.mark.slow
def test_checkpoints_hold_the_prompts_that_they_were_trained_with(trained, chatty):
    config = read_config(locate(str(trained.runs["fit"].folder)))
    assert config.formats == {chatty: FORM}
    saved = json.loads((trained.runs["tune"].folder / "checkpoints" / "best" / FORMAT_FILE).read_text())
    assert PromptFormat(**saved) == FORM
    assert trained.runs["read"].record.configuration["prompts"] == {chatty: PROMPTS}


def test_where_training_and_evaluation_agree_nothing_is_said(trained):
    for stage in ("after", "read"):
        assert "another prompt format" not in (trained.runs[stage].folder / LOG).read_text()


def test_a_saved_model_that_was_never_trained_is_read_with_any_prompt_format_without_a_word(tmp_path):
    tiny_lm().save(tmp_path / "plain")
    chatty = LM.load(tmp_path / "plain", prompts=PromptSettings(instruction="Be brief."))
    assert chatty.saved_format is None
    assert departures({None: chatty}, [parse("text")]) == []
    chatty.saved_format = PromptFormat()
    chatty.save(tmp_path / "trained")
    again = LM.load(tmp_path / "trained", prompts=PromptSettings(instruction="Be long."))
    assert len(departures({None: again}, [parse("text")])) == 1


def test_a_wire_read_with_other_prompts_says_so_in_one_line(trained, chatty, tmp_path):
    wire = str(trained.runs["fit"].folder)
    again = carried(
        tmp_path, study_of(chatty, {"read": {"kind": "evaluate", "arms": {"wire": wire, "text": "text"}}})
    )
    log = (again.runs["read"].folder / LOG).read_text()
    lines = [line for line in log.splitlines() if "another prompt format" in line]
    assert len(lines) == 1
    assert f"the wire {wire} is read with another prompt format" in lines[0]
    assert "template 'question' and not 'chat'" in lines[0]


def test_a_finetuned_model_read_with_other_prompts_says_so_in_one_line(trained, tmp_path):
    model = str(trained.runs["tune"].folder / "checkpoints" / "best")
    stages = {"read": {"kind": "evaluate", "arms": {"text": "text"}}}
    again = carried(tmp_path, study_of(model, stages, prompts={model: {"instruction": "Be long."}}))
    lines = [line for line in (again.runs["read"].folder / LOG).read_text().splitlines() if "another" in line]
    assert len(lines) == 1
    assert "instruction 'Be long.' and not 'Be brief.'" in lines[0]


def test_other_prompts_make_another_stage(chatty, tmp_path):
    stages = {
        "read": {"kind": "evaluate", "arms": {"text": "text"}},
        "fit": fit(chatty, encoder(), {chatty: {"kind": "native"}}),
    }
    made = [
        plan.make(loading.load(str(written(tmp_path, study_of(chatty, stages, prompts=prompts)))))
        for prompts in ({}, {chatty: PROMPTS}, {chatty: {**PROMPTS, "system": "T"}})
    ]
    for stage in stages:
        assert len({each.stages[stage].identity for each in made}) == 3


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ({"nobody": PROMPTS}, "prompts.nobody: found 'nobody', expected a model of this study"),
        ({"{model}": {"templat": "chat"}}, "templat"),
        ({"{model}": {"template": "chat"}}, "tokenizer has no chat template"),
        ({"{model}": {"system": "S"}}, "expected template chat"),
    ],
)
def test_prompts_that_cannot_be_are_refused_before_anything_is_written(tmp_path, prompts, problem):
    model = str(model_folder())
    filled = {name.format(model=model): how for name, how in prompts.items()}
    raw = study_of(model, {"read": {"kind": "evaluate", "arms": {"text": "text"}}}, prompts=filled)
    with pytest.raises(UserError, match=problem):
        carried(tmp_path, raw)
    assert not (tmp_path / "runs").exists()


def test_a_task_of_a_study_has_a_limit_and_an_instruction_of_its_own(chatty: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"context": f"Ada is in Tarn {n}.", "question": "Where?", "answers": ["Tarn"]} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"kind": "jsonl", "data": str(file)}
    tasks = [
        {"name": "as_the_model", **entry},
        {"name": "bare", **entry, "instruction": "", "limit": 2},
        {"name": "other", **entry, "instruction": "Say where.", "limit": 20},
    ]
    stages = {"read": {"kind": "evaluate", "arms": {"text": "text"}}}
    done = carried(tmp_path, study_of(chatty, stages, tasks=tasks, prompts={chatty: PROMPTS}, limit=4))
    texts = {}
    for line in (done.runs["read"].folder / "prompts.jsonl").read_text().splitlines():
        kept = json.loads(line)
        texts.setdefault(kept["task"], []).append(json.dumps(kept))
    counts = {
        name: metrics["f1"]["n"]
        for name, metrics in done.summary["stages"]["read"]["metrics"]["text"].items()
        if name != "macro"
    }
    assert counts == {"as_the_model": 4, "bare": 2, "other": 4}
    assert {name: "Be brief." in each[0] for name, each in texts.items()} == {
        "as_the_model": True,
        "bare": False,
        "other": False,
    }
    assert "Say where." in texts["other"][0]
    assert done.runs["read"].record.configuration["task_instructions"] == {"bare": "", "other": "Say where."}


def test_an_instruction_for_a_benchmark_that_is_asked_word_for_word_is_refused() -> None:
    task = Task(
        name="mine",
        answer="span",
        source=lambda split: [],
        format=PromptFormat(template="raw", anchor=""),
        instruction="Say where.",
    )
    assert task.asked_in(FORM).instruction == "Say where."
    with pytest.raises(
        UserError, match="instruction: found one for mine, which this model is asked word for word"
    ):
        task.asked_in(PromptFormat())
