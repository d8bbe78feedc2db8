"""Through lm-eval's own loop our model says what `evaluate` says, and over plain text what lm-eval's says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from latentwire import UserError, wires
from latentwire.evaluation.evaluate import evaluate
from latentwire.harness import register
from latentwire.harness.harness_model import HarnessModel
from latentwire.harness.requests import decoding
from latentwire.lm.model import LM
from latentwire.runs.store import Record, Run
from latentwire.tasks import resolve
from tests.harness.conftest import FOLDERS, KINDS

register()
SPECS = (
    "text",
    "text,mask=prefix",
    "text,mask=segments",
    "text,mask=prefix,layers=0-1",
    "repeat",
    "none",
    "budget,tokens=3",
    "leaky",
)


def run(model: Any, folder: Path, *tasks: str, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )


def answers(results: dict[str, Any], task: str) -> list[Any]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


@pytest.fixture(params=FOLDERS)
def model(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


@pytest.mark.slow
def test_over_plain_text_every_request_is_answered_as_by_lm_evals_hf_model(model, folder):
    hf = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1, logits_cache=False)
    theirs = run(hf, folder, "lw_choose", "lw_roll", "lw_write")
    ours = run("latentwire", folder, "lw_choose", "lw_roll", "lw_write", model_args={"model": str(model)})
    for one, two in zip(answers(ours, "lw_choose"), answers(theirs, "lw_choose"), strict=True):
        assert [x[0][0] for x in one] == pytest.approx([x[0][0] for x in two], abs=1e-4)
        assert [x[0][1] for x in one] == [x[0][1] for x in two]
    for one, two in zip(answers(ours, "lw_roll"), answers(theirs, "lw_roll"), strict=True):
        assert one[0][0] == pytest.approx(two[0][0], abs=1e-3)
    assert answers(ours, "lw_write") == answers(theirs, "lw_write")
    assert ours["results"]["lw_choose"]["acc,none"] == theirs["results"]["lw_choose"]["acc,none"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_choices_are_those_of_evaluate_under_every_wire(model, folder, spec):
    lm = LM.load(model)
    results = run(HarnessModel(lm, spec), folder, "lw_choose")
    found = evaluate(lm, resolve(["lw_choose"], None, folder), [wires.parse(spec)]).outcomes
    samples = sorted(results["samples"]["lw_choose"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(found) == 4
    for sample, outcome in zip(samples, found, strict=True):
        assert (sample["acc"], sample["acc_norm"]) == (outcome.metrics["acc"], outcome.metrics["acc_norm"])


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_every_text_wire_answers_all_three_kinds(models, folder, spec):
    model = HarnessModel(str(models["llama"]), spec)
    results = run(model, folder, "lw_choose", "lw_roll", "lw_write")
    assert set(results["results"]) == {"lw_choose", "lw_roll", "lw_write"}
    plain = run(HarnessModel(model.loaded.lm), folder, "lw_choose", "lw_roll", "lw_write")
    changed = [answers(results, task) != answers(plain, task) for task in ("lw_choose", "lw_write")]
    assert all(changed) == (spec != "text")
    # A rolling text has no context of its own; only a mask changes what its later windows repeat.
    assert len(answers(results, "lw_roll")) == 5


@pytest.mark.slow
def test_results_carry_model_and_wire_and_mark_a_leak(models, folder, caplog):
    arguments = f"model={models['llama']},wire=text,mask=prefix,layers=0-1"
    config = run("latentwire", folder, "lw_choose", model_args=arguments)["config"]
    assert config["model"] == "latentwire"
    found = config["latentwire"]
    assert (found["model"], found["wire"], found["leaks"]) == (
        str(models["llama"]),
        "text,mask=prefix,layers=0-1",
        False,
    )
    assert found["fewest_tokens"] <= found["tokens_run"]
    assert run(HarnessModel(str(models["llama"]), "leaky"), folder, "lw_choose")["config"]["latentwire"]["leaks"]
    assert "LEAKS" in caplog.text


def test_no_answer_comes_from_a_cache_that_knows_neither_model_nor_wire(models, folder, tmp_path):
    cache = str(tmp_path / "answers")
    hf = HFLM(pretrained=str(models["other"]), device="cpu", dtype="float32", batch_size=1)
    run(hf, folder, "lw_choose", use_cache=cache)
    for spec in ("text", "text,mask=prefix"):
        with pytest.raises(UserError, match="use_cache: lm-eval's cache stores neither"):
            run("latentwire", folder, "lw_choose", use_cache=cache, model_args={"model": str(models["llama"])})
        ours = HarnessModel(str(models["llama"]), spec)
        with pytest.raises(UserError, match="expected no cache"):
            run(ours, folder, "lw_choose", use_cache=cache)
        assert ours.work.run == 0


def request(context: str, continuation: str, doc: int) -> Instance:
    return Instance(
        request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0, metadata=("t", doc, 1)
    )


@pytest.mark.parametrize("spec", ["text", "text,mask=prefix"])
def test_equal_tokens_split_elsewhere_are_scored_apart(models, spec):
    """In lm-eval's one-token cache the second of these would be given log-probabilities of the first."""
    model = HarnessModel(str(models["llama"]), spec)
    asked = [request("Ada has 12", " apples now", 0), request("Ada has 12 apples", " now", 1)]
    together = model.loglikelihood(asked, disable_tqdm=True)
    apart = [model.loglikelihood([each], disable_tqdm=True)[0] for each in asked]
    assert [p for p, _ in together] == pytest.approx([p for p, _ in apart], abs=1e-5)
    assert together[0][0] != pytest.approx(together[1][0], abs=1e-2)


@pytest.mark.slow
def test_a_runs_checkpoint_is_read_over_the_wire_it_was_trained_with(models, folder, tmp_path, caplog):
    record = Record(
        run="",
        study="s",
        stage="ft",
        kind="finetune",
        identity="0",
        configuration={"wire": "text,mask=prefix"},
        seeds={},
        inputs={},
        parents={},
        versions={},
        git=None,
        machine={},
    )
    made = Run.create(tmp_path, record)
    with pytest.raises(UserError, match="has no best checkpoint"):
        HarnessModel(run=str(made.folder))
    place = made.folder / "checkpoints" / "best"
    place.parent.mkdir()
    os.symlink(models["other"], place)
    made.record = record.model_copy(
        update={"artifacts": {f"checkpoints/best/{p.name}": _sha(p) for p in models["other"].iterdir()}}
    )
    (made.folder / "run.json").write_text(made.record.model_dump_json())
    model = HarnessModel(run=str(made.folder))
    assert model.wire.label == "text,mask=prefix"
    assert (
        "is read with another prompt format than it was trained with: template 'raw' and not 'question'"
        in caplog.text
    )
    assert HarnessModel(run=str(made.folder), wire="text").wire.label == "text"
    plain = HarnessModel(str(models["other"]), "text,mask=prefix")
    assert answers(run(model, folder, "lw_choose"), "lw_choose") == answers(
        run(plain, folder, "lw_choose"), "lw_choose"
    )


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lw_choose` and `lw_write` over documents of which two are longer than the models' 128 tokens."""
    made = tmp_path_factory.mktemp("long")
    data = made / "documents.jsonl"
    words = "Ada has 12 apples and gives 5 of them to Bob. "
    contexts = [words * 12 + "Where?", words, words * 20 + "Who has 12?"]
    lines = [
        {"context": c, "choices": ["in the old town by the river", "12", "Bob"], "label": 0} for c in contexts
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("choose", "write"):
        (made / f"{name}.yaml").write_text(
            f"task: lw_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
            "test_split: test\n"
            f'doc_to_text: "{{{{context}}}}"\n{KINDS[name]}'
        )
    return made


@pytest.mark.slow
def test_prompts_longer_than_the_model_lose_their_beginning_as_with_lm_evals_hf_model(model, long_folder, caplog):
    hf = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1, logits_cache=False)
    theirs = run(hf, long_folder, "lw_choose", "lw_write")
    ours = run("latentwire", long_folder, "lw_choose", "lw_write", model_args={"model": str(model)})
    for one, two in zip(answers(ours, "lw_choose"), answers(theirs, "lw_choose"), strict=True):
        assert [x[0][0] for x in one] == pytest.approx([x[0][0] for x in two], abs=1e-4)
        assert [x[0][1] for x in one] == [x[0][1] for x in two]
    assert answers(ours, "lw_write") == answers(theirs, "lw_write")
    assert ours["config"]["latentwire"]["prompts_cut"] == 8, (
        "two prompts with three choices each, and two to continue"
    )
    assert sum("its beginning is cut off" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("spec", ["text,mask=prefix", "leaky", "budget,tokens=3"])
def test_under_every_wire_a_prompt_longer_than_the_model_is_answered(models, long_folder, spec):
    results = run(HarnessModel(str(models["llama"]), spec), long_folder, "lw_choose", "lw_write")
    assert len(answers(results, "lw_choose")) == len(answers(results, "lw_write")) == 3
    cut = results["config"]["latentwire"]["prompts_cut"]
    assert cut == (0 if spec.startswith("budget") else 8)


def test_an_answer_as_long_as_the_model_is_refused_in_one_sentence(models, folder):
    with pytest.raises(UserError, match="gen_kwargs: found max_gen_toks=128, expected less than 128"):
        run(HarnessModel(str(models["llama"])), folder, "lw_write", gen_kwargs={"max_gen_toks": 128})


CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def chatty(models: dict[str, Path]) -> LM:
    lm = LM.load(models["llama"])
    lm.tokenizer.chat_template = CHAT
    return lm


@pytest.mark.slow
def test_in_a_chat_lm_evals_words_are_the_users_turn(chatty, folder):
    model = HarnessModel(chatty, chat=True, instruction="Be brief.", system="S")
    shown = model.reader.format.tokens("Ada has", "", model.reader).ids
    assert chatty.tokenizer.decode(shown) == "[system]S</s>[user]Be brief.\nAda has</s>[assistant]"
    raw = HarnessModel(chatty)
    for task in ("lw_choose", "lw_write"):
        assert answers(run(model, folder, task), task) != answers(run(raw, folder, task), task)
    assert answers(run(model, folder, "lw_roll"), "lw_roll") == answers(run(raw, folder, "lw_roll"), "lw_roll")


@pytest.mark.slow
def test_a_chat_is_what_lm_evals_own_chat_template_gives(chatty, folder):
    ours = HarnessModel(chatty, "text,mask=prefix", chat=True)
    theirs = HarnessModel(chatty, "text,mask=prefix")
    results = run(theirs, folder, "lw_write", apply_chat_template=True)
    assert answers(run(ours, folder, "lw_write"), "lw_write") == answers(results, "lw_write")


def test_prompt_settings_that_have_no_place_are_refused(chatty, models, folder):
    with pytest.raises(UserError, match="found instruction without a chat, expected chat=true too"):
        HarnessModel(chatty, instruction="Be brief.")
    with pytest.raises(UserError, match="no chat template"):
        HarnessModel(str(models["llama"]), chat=True)
    with pytest.raises(UserError, match="apply_chat_template: found it beside chat=true"):
        run(HarnessModel(chatty, chat=True), folder, "lw_write", apply_chat_template=True)


def _sha(path: Path) -> str:
    from latentwire.runs.identity import file_sha256

    return file_sha256(path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "found neither of model and run"),
        ({"model": "a", "run": "b"}, "found both of model and run"),
        ({"model": "a", "dtype": "int4"}, "dtype: found 'int4', expected one of float32"),
        ({"model": "a", "wires": "text"}, "found 'wires=text'"),
        ({"model": "a", "wire": "txt"}, "nearest: text"),
        ({"run": "nowhere"}, "found no run.json in nowhere"),
        ({"run": "nowhere", "checkpoint": "first"}, "found checkpoint=first"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(arguments, problem):
    with pytest.raises(UserError, match=problem):
        HarnessModel(**arguments)


@pytest.mark.parametrize(
    "how",
    [
        {"top_k": 5, "do_sample": True, "temperature": 0.7},
        {"min_p": 0.1, "temperature": 0.7},
        {"num_beams": 4},
        {"repetition_penalty": 1.2, "do_sample": False},
        {"max_length": 64},
    ],
)
def test_an_argument_that_would_change_a_generation_unheard_is_refused(how):
    name = next(iter(how))
    with pytest.raises(UserError, match=f"gen_kwargs: found {name}={how[name]}, expected one of until, .*top_p"):
        decoding(how)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.0, "do_sample": False, "top_p": 0.9},
        {"do_sample": False, "top_k": 50, "min_p": 0.1},
        {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True, "top_k": None},
    ],
)
def test_an_argument_that_changes_nothing_is_accepted(how):
    found = decoding({"until": ["x"], "max_new_tokens": 9, **how})
    assert (found.temperature, found.max_new_tokens, found.stop) == (0.0, 9, ("x",))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lm_eval", "latentwire.harness"])
def test_the_command_line_of_lm_eval_knows_the_model(models, folder, tmp_path, way):
    installed = tmp_path / "site" / "latentwire_here-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: latentwire-here\nVersion: 0\n")
    if way == "lm_eval":  # what an installation from pyproject.toml writes
        (installed / "entry_points.txt").write_text("[torch.backends]\nhere = latentwire.harness:autoload\n")
    source = Path(__file__).parents[2] / "src"
    command = [
        *(sys.executable, "-m", way, "--model", "latentwire", "--tasks", "lw_choose"),
        *("--model_args", f"model={models['llama']},wire=text,mask=prefix"),
        *("--include_path", str(folder), "--output_path", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{installed.parent}:{source}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lw_choose" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["latentwire"]["wire"] == "text,mask=prefix"
