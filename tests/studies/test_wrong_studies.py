"""A wrong study gets one sentence that names the key, exit status 2, and leaves nothing behind."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire import cli
from tests.support.studies import model_folder, small_study
from tests.support.wire_studies import A

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def latentwire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentwire", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def at(study: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`study` with `value` put at a dotted path."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(study))
    *way, last = path.split(".") if path != "stages.summary.json" else ("stages", "summary.json")
    place: Any = copy
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(last) if isinstance(place, list) else last] = value
    return copy


WRONG = {
    "an unknown key": ("stages.prefix_ft.stepps", 5, r"stages\.prefix_ft\.stepps: .*unknown.*\(nearest: steps\)"),
    "an unknown shared key": ("finetuning.row_toknes", 5, r"finetuning\.row_toknes: .*\(nearest: row_tokens\)"),
    "an unknown key deep inside": (
        "finetuning.stopping",
        {"patienc": 3},
        r"finetuning\.stopping\.patienc: .*\(nearest: patience\)",
    ),
    "an unknown key at the top": ("taskss", [], r"taskss: .*\(nearest: tasks\)"),
    "a wrong type": ("finetuning.steps", "many", r"steps: found 'many', expected a valid integer"),
    "a number out of range": ("limit", 0, r"limit: found 0, expected greater than or equal to 1"),
    "a kind that is none": ("stages.baseline.kind", "evalute", r"stages\.baseline\.kind: .*\(nearest: evaluate\)"),
    "no kind": ("stages.baseline", {"arms": {"text": "text"}}, r"stages\.baseline\.kind: found nothing"),
    "training data of no kind": (
        "finetuning.data",
        {"kind": "fiel"},
        r"data\.kind: found 'fiel', .*nearest: file",
    ),
    "a stage that starts from itself": (
        "stages.prefix_ft.start_from",
        "prefix_ft",
        r"stages\.prefix_ft\.start_from: found the stage itself",
    ),
    "a stage that is not there": (
        "stages.plain_after.start_from",
        "prefixft",
        r"stages\.plain_after\.start_from: found 'prefixft', .*\(nearest: prefix_ft\)",
    ),
    "a checkpoint of nothing": (
        "stages.baseline.checkpoint",
        "final",
        r"stages\.baseline\.?.*: checkpoint: found 'final' without start_from",
    ),
    "a checkpoint that its stage does not keep": (
        "stages.plain_after.checkpoint",
        "best_f1",
        r"stages\.plain_after\.checkpoint: found 'best_f1', expected one that prefix_ft keeps, "
        r"one of best, final \(nearest: best\)",
    ),
    "a checkpoint that is none": ("stages.plain_after.checkpoint", "bets", r"checkpoint: found 'bets'.*best"),
    "weights from an evaluation": ("stages.plain_after.start_from", "ablated", r"'ablated', an evaluation"),
    "an unknown task": ("tasks", ["one_hob"], r"tasks\.0: .*one_hob.*nearest: one_hop"),
    "a task twice": ("tasks", ["one_hop", "one_hop"], r"tasks\.1: found 'one_hop' a second time"),
    "an unknown wire": ("stages.baseline.arms.text", "txt", r"stages\.baseline\.arms: text: found 'txt'.*text"),
    "an unknown wire to train on": ("stages.prefix_ft.wire", "txt", r"stages\.prefix_ft\.wire: found 'txt'"),
    "a reader of a wire to train on": (
        "stages.prefix_ft.wire",
        "text@embedded:wren",
        r"stages\.prefix_ft\.wire: found @embedded:wren, expected a wire without a reader",
    ),
    "a wire twice": ("stages.baseline.arms.again", "text", r"stages\.baseline: arms\.again: .*second time"),
    "adapters on layers that are not there": (
        "stages.prefix_ft.lora",
        {"layers": 9},
        r"stages\.prefix_ft: lora\.layers: found 9, expected at most the 3",
    ),
    "a leaking wire to train on": ("stages.prefix_ft.wire", "leaky", r"stages\.prefix_ft: wire: leaky lets"),
    "a missing file": (
        "tasks",
        [{"name": "mine", "kind": "jsonl", "data": "nowhere.jsonl"}],
        r"nowhere\.jsonl: expected a readable file",
    ),
    "a comparison with a stage that is not there": (
        "comparisons.0.a",
        "ablted/text",
        r"comparisons\.0\.a: found 'ablted', .*\(nearest: ablated\)",
    ),
    "a comparison with an arm that is not there": (
        "comparisons.0.b",
        "baseline/txt",
        r"comparisons\.0\.b: found 'txt', expected an arm of baseline: .*\(nearest: text\)",
    ),
    "a comparison on another task": ("comparisons.0.task", "later", r"comparisons\.0\.task: found 'later'"),
    "a comparison by another metric": (
        "comparisons.0.metric",
        "accc",
        r"comparisons\.0\.metric: .*nearest: acc\b",
    ),
    "two comparisons of one name": (
        "comparisons.1.name",
        "damage",
        r"comparisons\.1\.name: found 'damage' a second",
    ),
    "a gate on nothing": ("gates.0.of", "baseline/text", r"gates\.0\.of: found 'baseline/text'"),
    "a gate without a bound": (
        "gates.0",
        {"name": "g", "effect": "gain", "of": "x/y"},
        r"gates\.0: found neither",
    ),
    "a name that no folder can have": ("name", "a/b", r"name: found 'a/b', expected letters, digits"),
    "a stage named like the summary": (
        "stages.summary.json",
        {"kind": "evaluate", "arms": {"text": "text"}},
        r"stages\.summary\.json: found the name of the study's own file",
    ),
    "true for a number": ("limit", True, r"limit: found true, expected a number"),
    "true for a number deep inside": ("finetuning.stopping", {"patience": True}, r"patience: found true"),
    "a number that nothing can count": ("finetuning.eval_samples", 10**12, r"eval_samples: found 1000000000000,"),
    "rows longer than memory": (
        "finetuning.row_tokens",
        10**7,
        r"row_tokens: found 10000000, expected a number below",
    ),
    "a number beyond 64 bits": ("limit", 2**63, r"limit: found 9223372036854775808, expected a number below"),
    "a number that is not finite": (
        "finetuning.learning_rate",
        float("inf"),
        r"learning_rate: found inf, expected",
    ),
    "a NUL in a path": ("model", "a\0b", r"model: found 'a\\x00b', expected text without NUL"),
    "a model that is not there": ("model", "./nowhere", r"model: found nothing at .*nowhere"),
    "a split that chooses a checkpoint": (
        "split",
        "validation",
        r"split: found 'validation', expected 'test': stages\.prefix_ft .* same examples of one_hop",
    ),
    "an oracle of one reading": (
        "oracles",
        {"all": ["baseline/text"]},
        r"oracles\.all: found \['baseline/text'\], expected at least 2 of them\.",
    ),
    "a relay without a source": (
        "stages.baseline.arms.text",
        "relay,ratio=4",
        r"relay source: found nothing, expected source=VALUE\.",
    ),
    "prompts longer than the model": ("tasks", ["shifted/two_hop"], "expected at most"),
}


WRONG_FITS = {
    "more latents than memory": (
        {"wire": {"encoder": {"kind": "constant", "tokens": 10**12}}},
        r"stages\.w\.wire\.encoder\.tokens: found 1000000000000, expected a number below 1,000,000\.",
    ),
    "a preset that is none": ({"preset": "smok"}, r"stages\.w\.preset: found 'smok', expected 'smoke' or 'hero'"),
    "a gate that is no list": (
        {"accept": "f1 >= 0.1"},
        r"stages\.w\.accept: found 'f1 >= 0\.1', expected a list\.",
    ),
    "a setting of the wire": ({"wire": {"layout": "txt"}}, r"stages\.w\.wire\.layout: found 'txt', expected"),
    "settings of the wire that do not go together": (
        {"wire": {"layout": "only"}},
        r"stages\.w\.wire: layout: found only with",
    ),
    "settings of a translator that do not go together": (
        {"wire": {"encoder": {"kind": "source", "translator": {"kind": "dit", "hidden": 10}}}},
        r"stages\.w\.wire\.encoder\.translator: hidden: found 10",
    ),
    "a ridge beside a start": ({"ridge": {}, "start_wire": "x"}, r"stages\.w: ridge: found it beside start_wire"),
    "a model under no name": (
        {"start_wire": "$mine"},
        r"stages\.w\.start_wire: found '\$mine', expected .*models",
    ),
}


@pytest.mark.parametrize("case", WRONG_FITS)
def test_a_wrong_stage_of_a_wire_is_told_under_its_own_key(case: str, latentwire: Run, tmp_path: Path) -> None:
    changes, message = WRONG_FITS[case]
    study = at(small_study(), "stages.w", {**A, **changes})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    status, _, err = latentwire("run", "study.yaml")
    assert (status, err.count("\n")) == (2, 1), err
    assert re.search(rf"^latentwire: study\.yaml: {message}", err), err


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_is_told_in_one_sentence(case: str, latentwire: Run, tmp_path: Path) -> None:
    path, value, message = WRONG[case]
    study = small_study()
    if case == "prompts longer than the model":
        study = small_study(comparisons=[], gates=[], model=str(model_folder(positions=64)))
    elif path == "tasks":
        study = small_study(comparisons=[], gates=[])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(at(study, path, value), sort_keys=False))
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2, err
    assert err.count("\n") == 1
    assert err.rstrip().endswith(".")
    assert re.search(message, err), err
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


def test_yaml_that_is_none_is_told_with_its_line(latentwire: Run, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: a\nstages: {baseline: [}\n")
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2
    assert re.fullmatch(r"latentwire: study\.yaml, line 2: .*expected valid YAML\.\n", err), err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: {{ x }}\n", r"study\.yaml, line 1: found a key that is not text"),
        ("name: {[a]: 1}\n", r"study\.yaml, line 1: found a key that is not text"),
        ("a: 1\nname: 2024-99-99\n", r"study\.yaml, line 2: found '2024-99-99', which is not a valid timestamp"),
        ("name: !!int ''\n", r"study\.yaml, line 1: found '', which is not a valid int"),
        ("name: !!timestamp x\n", r"study\.yaml, line 1: found 'x', which is not a valid timestamp"),
        ("name: " + "[" * 5000 + "]" * 5000, r"study\.yaml: found values nested too deeply"),
    ],
)
def test_yaml_that_cannot_be_made_is_told_in_one_sentence(
    text: str, message: str, latentwire: Run, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(text)
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2, err
    assert re.fullmatch(rf"latentwire: {message}.*, expected valid YAML\.\n", err), err


def test_aliases_that_stand_for_millions_of_values_are_refused_at_once(latentwire: Run, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 30)]
    (tmp_path / "study.yaml").write_text("\n".join(lines) + "\n")
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2
    assert "found aliases that stand for more than 100,000 values" in err
    (tmp_path / "study.yaml").write_text("a: &a [*a]\n")
    status, _, err = latentwire("run", "study.yaml")
    assert (status, err.count("\n")) == (2, 1), err


def test_a_device_that_never_ends_is_no_study(latentwire: Run, tmp_path: Path) -> None:
    status, _, err = latentwire("run", "/dev/zero")
    assert status == 2
    assert "/dev/zero has more than 16,777,216 characters" in err


def test_a_key_given_twice_is_not_silently_lost(latentwire: Run, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: a\nlimit: 1\nlimit: 2\n")
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2
    assert "line 3: found the key 'limit' twice" in err


def test_stages_in_a_circle_are_told(latentwire: Run, tmp_path: Path) -> None:
    study = at(small_study(), "stages.prefix_ft.start_from", "second_ft")
    study = at(study, "stages.second_ft", {"kind": "finetune", "start_from": "prefix_ft"})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2
    assert "a circle (prefix_ft from second_ft from prefix_ft)" in err


def test_a_folder_that_cannot_be_written_is_told(latentwire: Run, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_study()))
    (tmp_path / "taken").write_text("a file")
    status, _, err = latentwire("run", "study.yaml", "--runs", "taken")
    assert status == 2
    assert re.fullmatch(r"latentwire: runs: the folder taken/small cannot be written \(.*\)\.\n", err), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "quickstrat"), r"found no file 'quickstrat' .*\(nearest: quickstart\)"),
        (("run", "quickstart", "--set", "limit"), r"--set: found 'limit', expected KEY=VALUE"),
        (("run", "quickstart", "--set", "limt=5"), r"limt: found an unknown key, .*\(nearest: limit\)"),
        (("run", "quickstart", "--set", "limit.a=5"), r"--set: limit\.a: found 500 at limit, expected a mapping"),
        (("run", "quickstart", "--set", "comparisons.99.name=x"), r"found '99', expected a position from 0 to"),
        (("run", "quickstart", "--set", "stages.causal_ft.steps=[1"), r"--set stages\.causal_ft\.steps"),
        (("run", "quickstart", "--set", "stages.causal.steps=1"), r"causal\.steps: found 'causal', .*causal_ft"),
        (("run", "bridge", "--set", "finetuning.steps=1"), r"finetuning\.steps: found a study that finetunes"),
        (("run", "bridge", "--set", "stages.every.start_wire=none"), r"stages\.every: wire: found no wire\.json"),
        (
            ("run", "bridge", "--set", "stages.tuned.objectives.2.wire=none"),
            r"stages\.tuned: wire: found no wire\.json in none",
        ),
        (("run", "bridge", "--set", "stages.bridged.arms.x=stage:tuned:zeros"), r"arms: x: .*\(nearest: zero\)"),
        (("run", "bridge", "--stage", "bridge"), r"--stage: found 'bridge', .*\(nearest: bridged\)"),
        (("run", "quickstart", "--preset", "smoke"), r"--preset: found a study that trains no wire"),
        (("run", "bridge", "--preset", "smok"), r"--preset: found 'smok', expected .*nearest: smoke"),
        (("report", "nowhere"), r"report: found no summary\.json to read in nowhere"),
        (
            ("run", "bridge", "--set", "stages.self.data={kind: task, task: jsonl}"),
            r"stages\.self: data: found the task 'jsonl' without data",
        ),
        (("init", "quick"), r"template: found 'quick', .*\(nearest: quickstart\)"),
        (("runs", "show", "nothing"), r"found no run 'nothing'"),
    ],
)
def test_wrong_words_on_the_command_line(
    words: tuple[str, ...], message: str, latentwire: Run, tmp_path: Path
) -> None:
    status, _, err = latentwire(*words)
    assert status == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_not_there_cannot_be_asked_for(latentwire: Run, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_study()))
    status, _, err = latentwire("run", "study.yaml", "--stage", "basline")
    assert status == 2
    assert "(nearest: baseline)" in err


def test_init_writes_a_template_once(latentwire: Run, tmp_path: Path) -> None:
    assert latentwire("init", "quickstart", "-o", "mine.yaml")[0] == 0
    text = (tmp_path / "mine.yaml").read_text()
    assert text.startswith("#")
    status, _, err = latentwire("init", "prefill-mask", "-o", "mine.yaml")
    assert status == 2
    assert "mine.yaml is there already" in err
    assert (tmp_path / "mine.yaml").read_text() == text


def test_a_train_split_without_end_needs_a_limit(latentwire: Run, tmp_path: Path) -> None:
    study = {key: value for key, value in small_study(split="train").items() if key != "limit"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    status, _, err = latentwire("run", "study.yaml")
    assert status == 2
    assert err == "latentwire: limit: found none, expected a number: the train split of one_hop has no end.\n"
