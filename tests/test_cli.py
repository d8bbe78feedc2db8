"""The commands as a user meets them, wrong input above all."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.evaluation.audit_file import read_audits
from latentwire.lm.loading import weights
from latentwire.lm.prompt_format import PromptFormat
from tests.support.checkpoints import write_lora, write_prefix
from tests.support.models import tiny_model, tiny_tokenizer

LINES = [
    {"context": "Ada lives in the old town.", "question": "Where does Ada live?", "answers": ["the old town"]},
    {"context": "Bob has 5 apples.", "question": "How many?", "choices": ["5", "12"], "gold": 0},
]


def run(capsys, monkeypatch, *words):
    """Exit status, standard output and standard error of a command."""
    from latentwire import cli

    monkeypatch.setattr(sys, "argv", ["latentwire", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny"
    weights.save(tiny_model(max_position_embeddings=256), tiny_tokenizer(), PromptFormat(), place)
    return place


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES[:1] * 1))
    return path


def damaged(folder, tmp_path, change):
    place = tmp_path / "damaged"
    shutil.copytree(folder, place)
    change(place)
    return place


def change_weights(edit):
    def change(place):
        state = load_file(place / "model.safetensors")
        edit(state)
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})

    return change


def poison(state):
    state["model.norm.weight"][0] = torch.nan


def test_eval_prints_a_table_and_writes_the_same_numbers(capsys, monkeypatch, folder, data, tmp_path):
    out_file = tmp_path / "numbers.json"
    words = ["--model", folder, "--task", "jsonl", "--data", data, "--wire", "text", "--wire", "leaky"]
    status, out, err = run(capsys, monkeypatch, "eval", *words, "--json", out_file)
    assert status == 0, err
    assert "exact_match" in out
    assert "LEAKS" in out
    found = json.loads(out_file.read_text())
    assert found["model"] == str(folder)
    assert found["wire"] == "text"
    assert set(found["metrics"]) == {"text", "leaky"}
    assert set(found["metrics"]["text"]["jsonl"]["exact_match"]) == {"value", "low", "high", "n"}


def test_eval_shows_prompts_as_they_are_asked(capsys, monkeypatch, folder, data):
    words = ["--model", folder, "--task", "jsonl", "--data", data, "--wire", "text", "--wire", "text,mask=prefix"]
    status, out, err = run(capsys, monkeypatch, "eval", *words, "--show", 1, "--instruction", "Be brief.")
    assert status == 0, err
    line = LINES[0]
    assert f"{line['context']}\nBe brief.\nQuestion: {line['question']}\nAnswer:" in out
    assert "see each other in both directions" in out
    assert out.count(">>> answer ") == 2
    assert "instruction 'Be brief.' and not ''" in out, "the model was saved with another format"


def test_eval_generates_as_its_options_say(capsys, monkeypatch, folder, data, tmp_path):
    words = ["eval", "--model", folder, "--task", "jsonl", "--data", data, "--wire", "text", "--show", 1]
    answers = []
    for more in ([], ["--max-new-tokens", 1], ["--min-new-tokens", 12, "--max-new-tokens", 12]):
        status, out, err = run(capsys, monkeypatch, *words, *more)
        assert status == 0, err
        answers.append(re.search(r">>> answer (.*), gold", out).group(1))
    assert len(answers[1]) < len(answers[2])
    status, out, err = run(capsys, monkeypatch, *words, "--suppress", "not a token:2")
    assert (status, out) == (2, "")
    assert "suppress_tokens: found 'not a token'" in err


def write_adapter(kind, place):
    model = tiny_model(max_position_embeddings=256)
    if kind == "lora":
        write_lora(model, place)
    else:
        write_prefix(model, place, 4)
    return place


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_changes_the_numbers_and_is_named_beside_them(
    capsys, monkeypatch, folder, data, tmp_path, kind
):
    place = write_adapter(kind, tmp_path / kind)
    words = ["eval", "--model", folder, "--task", "jsonl", "--data", data, "--wire", "text,mask=prefix"]
    found = []
    for more in ([], ["--adapter", place]):
        status, _, err = run(capsys, monkeypatch, *words, *more, "--json", tmp_path / "numbers.json")
        assert status == 0, err
        found.append(json.loads((tmp_path / "numbers.json").read_text()))
    nll = [each["metrics"]["text,mask=prefix"]["jsonl"]["nll"]["value"] for each in found]
    assert abs(nll[0] - nll[1]) > 1e-2
    assert [each.get("adapter") for each in found] == [None, str(place)]


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_model_with_an_adapter_passes_the_audit(capsys, monkeypatch, folder, tmp_path, kind):
    monkeypatch.setattr("latentwire.evaluation.audit.KERNELS", ("sdpa", "eager"))
    words = ["--adapter", write_adapter(kind, tmp_path / kind), "--wire", "text,mask=prefix"]
    status, out, err = run(capsys, monkeypatch, "audit", "--model", folder, *words)
    assert status == 0, err + out
    assert "passed" in out


@pytest.mark.slow
def test_audit_passes_an_honest_wire_and_fails_a_leaky_one(capsys, monkeypatch, folder, tmp_path):
    monkeypatch.setattr("latentwire.evaluation.audit.KERNELS", ("sdpa", "eager"))
    status, out, _ = run(capsys, monkeypatch, "audit", "--model", folder, "--wire", "text,mask=prefix")
    assert status == 0
    assert "fully bidirectional" in out
    assert "passed" in out
    kept = tmp_path / "audit.json"
    status, out, _ = run(capsys, monkeypatch, "audit", "--model", folder, "--wire", "leaky", "--json", kept)
    assert status == 1
    assert "LEAK" in out
    (written,) = read_audits(kept)["audits"]
    assert written["wire"] == "leaky"
    assert all(problem in out for problem in written["problems"])


def test_doctor_says_what_is_there(capsys, monkeypatch):
    _, out, _ = run(capsys, monkeypatch, "doctor")
    assert "torch" in out
    assert "embedded:heron" in out


WRONG = {
    "no such option": (["eval", "--modle", "x"], "modle"),
    "no such command": (["evla"], "eval"),
    "no model": (["eval", "--task", "one_hop"], "--model"),
    "unknown task": (["eval", "--model", "{folder}", "--task", "one_hopp"], "one_hop"),
    "unknown wire": (["eval", "--model", "{folder}", "--task", "one_hop", "--wire", "txt"], "nearest: text"),
    "unknown wire option": (["audit", "--model", "{folder}", "--wire", "text,msk=prefix"], "nearest: mask"),
    "unknown embedded model": (["eval", "--model", "embedded:hern", "--task", "one_hop"], "heron"),
    "no folder": (["eval", "--model", "./nowhere", "--task", "one_hop"], "nothing at"),
    "a file for a folder": (["audit", "--model", "{data}"], "a file"),
    "negative limit": (["eval", "--model", "{folder}", "--task", "one_hop", "--limit", "-3"], "-3"),
    "limit in words": (["eval", "--model", "{folder}", "--task", "one_hop", "--limit", "ten"], "ten"),
    "no data": (["eval", "--model", "{folder}", "--task", "squad"], "--data"),
    "missing data": (["eval", "--model", "{folder}", "--task", "jsonl", "--data", "{tmp}/no.jsonl"], "no.jsonl"),
    "empty data": (
        ["eval", "--model", "{folder}", "--task", "jsonl", "--data", "{tmp}/empty.jsonl"],
        "empty.jsonl",
    ),
    "not JSON": (["eval", "--model", "{folder}", "--task", "jsonl", "--data", "{tmp}/bad.jsonl"], "line 1"),
    "a chat without a template": (
        ["eval", "--model", "{folder}", "--task", "one_hop", "--chat"],
        "whose tokenizer has no chat template",
    ),
    "a system text without a chat": (
        ["audit", "--model", "{folder}", "--system", "Be brief."],
        "expected template chat",
    ),
    "no prompt format": (
        ["eval", "--model", "{folder}", "--task", "one_hop", "--prompt-format", "{tmp}/no.json"],
        "no.json cannot be read",
    ),
    "no adapter": (
        ["eval", "--model", "{folder}", "--task", "one_hop", "--adapter", "{tmp}"],
        "found no adapter_config.json",
    ),
    "too long": (["eval", "--model", "{folder}", "--task", "jsonl", "--data", "{tmp}/long.jsonl"], "at most 256"),
    "no place for the numbers": (
        ["eval", "--model", "{folder}", "--task", "one_hop", "--json", "{tmp}/no/x.json"],
        "x.json",
    ),
    "a folder for the numbers": (["eval", "--model", "{folder}", "--task", "one_hop", "--json", "{tmp}"], "file"),
    "layers the model has not": (
        [
            "eval",
            "--model",
            "{folder}",
            "--task",
            "jsonl",
            "--data",
            "{data}",
            "--wire",
            "text,mask=prefix,layers=0-9",
        ],
        "0-2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_sentence_and_status_2(capsys, monkeypatch, folder, data, tmp_path, case):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    (tmp_path / "long.jsonl").write_text(json.dumps({**LINES[0], "context": "Ada " * 400}) + "\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    words, part = WRONG[case]
    filled = [word.format(folder=folder, data=data, tmp=tmp_path) for word in words]
    status, out, err = run(capsys, monkeypatch, *filled)
    assert (status, out) == (2, "")
    assert err.startswith("latentwire: ")
    assert err.count("\n") == 1
    assert part in err
    assert sorted(path for path in tmp_path.rglob("*")) == before


DAMAGES = {
    "NaN": (change_weights(poison), "model.norm.weight"),
    "missing": (change_weights(lambda state: state.pop("model.norm.weight")), "model.norm.weight"),
    "extra": (change_weights(lambda state: state.update(strange=torch.zeros(2))), "strange"),
    "shape": (
        change_weights(lambda state: state.update({"model.norm.weight": torch.ones(3)})),
        "model.norm.weight",
    ),
    "truncated": (lambda place: _truncate(place / "model.safetensors"), "damaged"),
    "no weights": (lambda place: (place / "model.safetensors").unlink(), "damaged"),
    "no tokenizer": (lambda place: [path.unlink() for path in place.glob("tokenizer*")], "tokenizer"),
    "no config": (lambda place: (place / "config.json").unlink(), "config.json"),
}


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_model_is_refused_in_one_sentence(capsys, monkeypatch, folder, tmp_path, case):
    change, part = DAMAGES[case]
    place = damaged(folder, tmp_path, change)
    status, _, err = run(capsys, monkeypatch, "audit", "--model", place)
    assert status == 2, err
    assert err.count("\n") == 1
    assert part in err


def test_a_traceback_is_shown_only_with_debug(capsys, monkeypatch):
    from latentwire import cli
    from latentwire.errors import UserError

    monkeypatch.setattr(sys, "argv", ["latentwire", "audit", "--model", "./nowhere", "--debug"])
    with pytest.raises(UserError):
        cli.main()


def test_the_help_of_eval_names_every_wire_and_variant(capsys, monkeypatch):
    from latentwire import wires
    from latentwire.evaluation import arms

    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(capsys, monkeypatch, "eval", "--help")
    words = set(re.split(r"[\s,;().\[\]]+", out))
    assert status == 0
    assert {*wires.KINDS, *arms.VARIANTS, *wires.CONTROLS, "embedded:NAME", "run"} <= words


def test_the_help_of_init_names_every_template(capsys, monkeypatch):
    from latentwire.studies import templates

    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(capsys, monkeypatch, "init", "--help")
    assert status == 0
    assert {*templates(), "bridge"} <= set(re.findall(r"[\w-]+", re.sub(r"-\s+", "-", out)))  # where a line breaks


@pytest.mark.parametrize("module", ["cli", "launching.launcher", "runs.queries", "runs.watching"])
def test_help_lists_and_watching_need_no_torch(module):
    code = f"import sys, latentwire.{module}; assert 'torch' not in sys.modules, 'slow'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["latentwire.cli", "latentwire.harness.__main__"])
@pytest.mark.parametrize(("chosen", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_wait_passively_unless_the_user_says_otherwise(module, chosen, expected):
    """Set before PyTorch loads its OpenMP runtime, which reads it once."""
    code = (
        f"import os, sys, importlib; importlib.import_module({module!r}); "
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", expected]


def test_grow_refuses_what_it_could_not_put_anywhere(capsys, monkeypatch, tmp_path):
    (tmp_path / "there").mkdir()
    for words, part in (
        (["finch"], "expected one of heron, wren."),
        (["heron", "-o", tmp_path / "there"], "exists already"),
        (["heron", "-o", tmp_path / "no" / "place"], "cannot be written"),
    ):
        status, _, err = run(capsys, monkeypatch, "grow", *words)
        assert (status, err.count("\n")) == (2, 1)
        assert part in err
