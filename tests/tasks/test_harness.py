"""lm-eval's tasks by name: its words over official files or hub datasets, and refusals in one sentence."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import datasets

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.encoded import prepare, reader_of
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.metrics import chance
from latentwire.studies import loading, plan
from latentwire.tasks import harness, resolve
from tests.support.benchmarks import GSM8K_TRAIN, HUB, REAL, SPLITS, TRAIN, write
from tests.support.models import tiny_lm

TEMPLATE = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("official"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub, without a network."""
    paths = {
        "Rowan/hellaswag": "hellaswag",
        "baber/piqa": "piqa",
        "ARC-Easy": "arc_easy",
        "ARC-Challenge": "arc_challenge",
        "allenai/winogrande": "winogrande",
        "allenai/openbookqa": "openbookqa",
        "openai/gsm8k": "gsm8k",
    }

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        if path == "yahma/alpaca-cleaned":
            return datasets.Dataset.from_list(
                [{"instruction": f"Add {n} and 1.", "output": str(n + 1)} for n in range(40)]
            )
        kind = paths.get(path) or paths[str(name)]
        docs = datasets.Dataset.from_list(HUB[kind])
        train = datasets.Dataset.from_list(TRAIN.get(kind, HUB[kind][:1]))
        return datasets.DatasetDict({"train": train, SPLITS.get(kind, "test"): docs})

    monkeypatch.setattr(datasets, "load_dataset", load)


def run(capsys: Any, monkeypatch: Any, *words: object) -> tuple[int, str, str]:
    from latentwire import cli

    monkeypatch.setattr(sys, "argv", ["latentwire", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]


@pytest.mark.usefixtures("hub")
def test_official_files_and_hub_datasets_give_the_same_examples(official: Path) -> None:
    for ours, theirs in zip(resolve(list(HUB), official), resolve(list(HUB), None), strict=True):
        assert ours.examples() == theirs.examples()
        assert len(ours.examples()) == len({example.id for example in ours.examples()}) == len(HUB[ours.name])
        assert ours.examples(limit=2) == ours.examples()[:2]


def test_prompts_and_choices_are_lm_evals_words(official: Path) -> None:
    piqa, arc, winogrande, hellaswag = (
        task.examples()[0] for task in resolve(["piqa", "arc_easy", "winogrande", "hellaswag"], official)
    )
    assert (piqa.context, piqa.question) == ("Question: How do I catch a fish?\nAnswer:", "")
    assert piqa.choices == ("Stand in the water and wait.", "Stand in the town  and sing ")
    assert arc.context == "Question: Where does a heron live?\nAnswer:"
    assert hellaswag.context == "Fishing: A heron stands in water. It"
    assert [(each.context, each.choices) for each in winogrande.requests()] == [
        (f"Ada gave Bob the apples because {name}", ("was kind.",)) for name in ("Ada", "Bob")
    ]
    assert winogrande.gold == 0


def test_examples_with_the_same_prompt_are_one_group(official: Path) -> None:
    (piqa,) = resolve(["piqa"], official)
    groups = [example.group for example in piqa.examples()]
    assert groups[1] == groups[3]
    assert len(set(groups)) == 3


def test_chance_is_one_over_the_number_of_choices(official: Path) -> None:
    found = {task.name: chance(task.examples()) for task in resolve(list(HUB)[:-1], official)}
    assert found == pytest.approx(
        {
            "piqa": 1 / 2,
            "winogrande": 1 / 2,
            "hellaswag": 1 / 4,
            "arc_easy": (1 / 4 + 1 / 3 + 1 / 4) / 3,
            "arc_challenge": (1 / 4 + 1 / 3 + 1 / 4) / 3,
            "openbookqa": 1 / 4,
        }
    )


def test_without_its_context_only_the_beginning_of_a_text_is_read(official: Path) -> None:
    lm = tiny_lm(max_position_embeddings=512)
    for task in resolve(["piqa", "winogrande"], official):
        for item in prepare(lm, task, "test", None):
            reader = reader_of(lm, task)
            prefix = wires.parse("none")(list(item.prompts), reader)
            assert prefix.ids is not None
            assert prefix.ids.tolist() == [[lm.tokenizer.bos_token_id]] * len(item.prompts)
            assert lm.format.template == "question", "the reader's own format stays as it is"


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_one_prompt_a_choice_gives_the_same_under_every_batch(official: Path, batch_tokens: int) -> None:
    lm = tiny_lm(max_position_embeddings=512)
    tasks = resolve(["winogrande", "piqa"], official)
    arms = [wires.parse(spec) for spec in ("text", "text,mask=prefix", "repeat", "leaky")]
    one = evaluate(lm, tasks, arms).outcomes
    other = evaluate(lm, tasks, arms, batch_tokens=batch_tokens).outcomes
    assert [(o.id, o.prediction, o.tokens) for o in one] == [(o.id, o.prediction, o.tokens) for o in other]
    assert {o.arm for o in one} == {arm.label for arm in arms}


@pytest.mark.parametrize(
    ("text", "right", "unreadable"),
    [
        (" 12 - 5 is 7\n#### 7", 1.0, 0.0),
        ("#### 7. \n", 1.0, 0.0),
        ("#### 8", 0.0, 0.0),
        ("The answer is 7.", 0.0, 1.0),
        ("", 0.0, 1.0),
    ],
)
def test_a_sum_is_judged_by_lm_evals_strict_filter(
    official: Path, text: str, right: float, unreadable: float
) -> None:
    (task,) = resolve(["gsm8k"], official)
    example = task.examples()[0]
    assert example.context.endswith(f"\n\nQuestion: {HUB['gsm8k'][0]['question']}\nAnswer:")
    assert task.judge is not None
    assert task.judge(text, example) == {"exact_match": right, "unreadable": unreadable}
    assert task.judge("#### 1200", task.examples()[1])["exact_match"] == 1.0
    assert "Question:" in task.stop


def test_sums_without_a_train_file_are_asked_zero_shot_and_say_so(official: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_bytes((official / "gsm8k_test.jsonl").read_bytes())
    (bare,), (full,) = resolve(["gsm8k"], tmp_path), resolve(["gsm8k"], official / "gsm8k_test.jsonl")
    assert bare.examples()[0].context == f"Question: {HUB['gsm8k'][0]['question']}\nAnswer:"
    assert (
        bare.remark
        == f"gsm8k: asked zero-shot, not 5-shot as lm-eval does, for want of a train file beside {tmp_path}."
    )
    assert full.remark == ""
    assert sum(answer in full.examples()[0].context for _, answer in GSM8K_TRAIN) == 5
    assert [e.group for e in bare.examples()] == [e.group for e in full.examples()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["piqa", "openbookqa", "gsm8k"])
@pytest.mark.skipif(not REAL.is_dir(), reason="no real files beside this checkout")
def test_real_files_are_read_whole(name: str) -> None:
    (task,) = resolve([name], REAL)
    assert len(task.examples()) == {"piqa": 1838, "openbookqa": 500, "gsm8k": 1319}[name]
    if name == "gsm8k":
        assert task.judge is not None
        for example in task.examples():
            assert task.judge(example.answers[0], example) == {"exact_match": 1.0, "unreadable": 0.0}


def test_a_yaml_of_ones_own_is_found_through_its_folder(tmp_path: Path) -> None:
    (tmp_path / "docs.json").write_text('{"q": "Who?", "a": ["Ada", "Bob"], "y": 1}\n' * 2)
    (tmp_path / "mine.yaml").write_text(
        "task: my_quiz\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.json'}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}} Say:'\n"
        "doc_to_choice: '{{a}}'\ndoc_to_target: y\ndescription: 'A quiz. '\ntarget_delimiter: ' - '\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (task,) = resolve(["my_quiz"], None, tmp_path)
    first = task.examples()[0]
    assert (first.context, first.choices, first.gold) == ("A quiz. Who? Say:", ("Ada", "Bob"), 1)
    assert task.format is not None
    assert task.format.delimiter == " - "
    with pytest.raises(UserError, match=r"found 'my_quis' .nearest: my_quiz"):
        resolve(["my_quis"], None, tmp_path)
    with pytest.raises(UserError, match="include-path: expected a folder"):
        resolve(["my_quiz"], None, tmp_path / "mine.yaml")


@pytest.mark.usefixtures("hub")
def test_the_prefill_masks_tasks_are_lm_evals() -> None:
    study = loading.load("prefill-mask", ["model=embedded:wren", "limit=2"])
    assert list(study.tasks) == TEMPLATE
    made = plan.make(study)
    assert [task.name for task in made.tasks] == TEMPLATE
    assert made.reported == [*TEMPLATE, "macro"]


def test_a_study_reads_official_files(official: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "name: quiz\nmodel: embedded:wren\n"
        f"tasks: [one_hop, {{name: quiz, kind: piqa, data: {official}}}]\n"
        "stages: {baseline: {kind: evaluate, arms: {text: text}}}\n"
    )
    made = plan.make(loading.load(str(tmp_path / "study.yaml")))
    assert made.tasks[1].examples() == resolve(["piqa"], official)[0].examples()
    assert {"task quiz", "task quiz labels"} <= set(made.stages["baseline"].inputs)


def test_no_split_but_lm_evals_is_there(official: Path) -> None:
    (task,) = resolve(["piqa"], official)
    with pytest.raises(UserError, match="split: lm-eval fixes the documents of piqa; found 'train'"):
        task.examples("train")


WRONG = {
    "a label too few": ("piqa_valid-labels.lst", "0\n1\n1\n", "expected 4 labels, one a document, found 3"),
    "a label of another kind": (
        "piqa_valid-labels.lst",
        "0\n1\n2\n0\n",
        "line 3: expected one of 0, 1, found '2'",
    ),
    "a field is missing": ("piqa_valid.jsonl", '{"goal": "a", "sol1": "b"}\n', "line 1: field 'sol2' is missing"),
    "no JSON": ("piqa_valid.jsonl", "goal\n", "line 1: "),
    "nothing": ("piqa_valid.jsonl", "", "expected at least one line, found none"),
    "no blank": ("winogrande_dev.jsonl", '{"sentence": "a", "option1": "b", "option2": "c"}\n', "'sentence'"),
    "a column is missing": ("openbookqa_test.tsv", "ID\tChoices\n", "found no 'Question Stem'"),
    "a cell is missing": (
        "openbookqa_test.tsv",
        "ID\tQuestion Stem\tChoices\tAnswer Key\n1\tWhy?\t(A) x (B) y\n",
        "line 2: expected 4 cells between tabs, found 3",
    ),
    "a choice is missing": (
        "openbookqa_test.tsv",
        "ID\tQuestion Stem\tChoices\tAnswer Key\n1\tWhy?\t(A) x (B) y\tA\n",
        r"line 2: expected choices '\(A\)",
    ),
    "no such answer": (
        "ARC-Easy-Test.jsonl",
        '{"question": {"stem": "a", "choices": [{"text": "b", "label": "A"}, {"text": "c", "label": "B"}]}, '
        '"answerKey": "C"}',
        "field 'answerKey': expected one of A, B, found 'C'",
    ),
    "a label beyond the endings": (
        "hellaswag_val.jsonl",
        '{"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": ["c", "d"], "label": 2}',
        "field 'label': expected 0 to 1, found 2",
    ),
    "a solution without its number": ("gsm8k_test.jsonl", '{"question": "a", "answer": "7"}', "field 'answer'"),
}
KINDS = {"ARC": "arc_easy"}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_file_is_named_in_one_sentence(tmp_path: Path, case: str) -> None:
    file, content, said = WRONG[case]
    (write(tmp_path) / file).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        resolve([next(kind for kind in HUB if KINDS.get(file[:3], file).startswith(kind))], tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path, official: Path) -> None:
    with pytest.raises(UserError, match=r"data: expected piqa_valid\.jsonl or .* found none of them"):
        resolve(["piqa"], tmp_path)
    with pytest.raises(UserError, match=r"nothing\.jsonl: expected a readable file"):
        resolve(["piqa"], tmp_path / "nothing.jsonl")
    (tmp_path / "piqa_valid.jsonl").write_bytes((official / "piqa_valid.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"piqa_valid-labels\.lst: expected a readable file"):
        resolve(["piqa"], tmp_path)


def test_what_cannot_be_scored_here_is_refused(official: Path) -> None:
    with pytest.raises(UserError, match=r"found 'arc_eazy' .nearest: arc_easy"):
        resolve(["arc_eazy"], None)
    with pytest.raises(UserError, match="found its group 'mmlu'"):
        resolve(["mmlu"], None)
    with pytest.raises(UserError, match="data: expected a task that reads it"):
        resolve(["sciq"], official)


def test_without_lm_eval_or_the_hub_a_task_is_refused_with_status_2(capsys: Any, monkeypatch: Any) -> None:
    words = ["--model", "embedded:wren", "--task", "piqa"]
    status, _, err = run(capsys, monkeypatch, "eval", *words)
    assert status == 2
    assert "task: 'piqa' of lm-eval cannot be loaded with its documents" in err
    imports = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return imports(name, *rest)

    harness._manager.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        for command in (["eval", *words], ["run", "prefill-mask", "--set", "model=embedded:wren"]):
            status, _, err = run(capsys, monkeypatch, *command)
            assert status == 2
            assert "not installed; pip install 'latentwire[harness]'" in err
            assert len(err.strip().splitlines()) == 1
        with pytest.raises(UserError, match="nearest: piqa"):
            resolve(["pica"], None)
    finally:
        harness._manager.cache_clear()
