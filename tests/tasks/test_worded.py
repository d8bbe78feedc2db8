"""Official files without lm-eval: the same examples, words, ids and scores as with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire.tasks import harness, read, worded
from latentwire.tasks.base import Task, examples_sha256
from tests.support.benchmarks import HUB, REAL, write

KINDS = list(worded.KINDS)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("official"))


def without_lm_eval(kind: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    with monkeypatch.context() as patched:
        patched.setattr(harness, "_manager", lambda include_path: None)
        return read(kind, data, f"my {kind}")


def compare(kind: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, Task]:
    ours = without_lm_eval(kind, data, monkeypatch)
    pytest.importorskip("lm_eval")
    theirs = read(kind, data, f"my {kind}")
    assert ours.examples() == theirs.examples()
    assert examples_sha256(ours.examples()) == examples_sha256(theirs.examples())
    for field in ("name", "answer", "max_new_tokens", "stop", "format", "remark"):
        assert getattr(ours, field) == getattr(theirs, field), field
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_files_give_the_examples_that_lm_eval_gives(
    official: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = compare(kind, official, monkeypatch)
    assert len(ours.examples()) == len(HUB[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not REAL.is_dir(), reason="no real files beside this checkout")
def test_real_files_give_the_examples_that_lm_eval_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(kind, REAL, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "#### 7",
        " 12 - 5 = 7\n#### 7.",
        "#### 7.0",
        "#### $7",
        "####7",
        "#### -7",
        "#### 1,200\n#### 5",
        "#### x",
    ],
)
def test_a_sum_is_judged_as_lm_eval_judges_it(official: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = compare("gsm8k", official, monkeypatch)
    assert ours.judge is not None
    assert theirs.judge is not None
    for example in ours.examples():
        assert ours.judge(text, example) == theirs.judge(text, example)


def test_without_a_train_file_sums_are_asked_zero_shot_and_say_so(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_bytes((official / "gsm8k_test.jsonl").read_bytes())
    task = without_lm_eval("gsm8k", tmp_path, monkeypatch)
    assert task.examples()[0].context == f"Question: {HUB['gsm8k'][0]['question']}\nAnswer:"
    assert "asked zero-shot, not 5-shot" in task.remark
