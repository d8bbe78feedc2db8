"""The same answers as lm-eval: its `hf` model and this package agree on every example of every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import datasets
from lm_eval.evaluator import evaluate as lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from latentwire.evaluation.encoded import reader_of
from latentwire.evaluation.evaluate import evaluate, prepare
from latentwire.lm.loading import weights
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.tasks import harness_index, resolve
from latentwire.tasks.official import documents, training
from latentwire.wires import parse
from tests.support.benchmarks import HUB, REAL, SPLITS, TRAIN, write
from tests.support.models import tiny_model, tiny_tokenizer

CHOICES = [name for name in HUB if name != "gsm8k"]
FOLDERS: dict[str, tuple[str, dict[str, bool]]] = {
    "llama": ("llama", {}),
    "bos": ("gpt_neox", {"bos": True}),
    "merging": ("qwen3", {"merge_blanks": True}),
}


@pytest.fixture(scope="module", params=FOLDERS)
def readers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, HFLM]:
    """The same folder as this package reads it and as lm-eval does."""
    family, how = FOLDERS[request.param]
    folder = tmp_path_factory.mktemp("models") / family
    weights.save(tiny_model(family, max_position_embeddings=2048), tiny_tokenizer(**how), PromptFormat(), folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", logits_cache=False, batch_size=1)
    return LM.load(folder), theirs


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return harness_index.manager(None)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("official"))


def theirs(manager: TaskManager, hf: HFLM, name: str, docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's own samples of its task over documents as the hub has them, in order."""
    split = SPLITS.get(name, "test")
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(docs)})
    entry = {"task": name, "custom_dataset": lambda **_: made, "training_split": None, "fewshot_split": None}
    entry |= {"validation_split": split if split == "validation" else None}
    (task,) = manager.load([{"group": "reference", "task": [entry]}])["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    found = lm_eval(lm=hf, task_dict={name: task}, bootstrap_iters=0, log_samples=True)
    return sorted(next(iter(found["samples"].values())), key=lambda sample: sample["doc_id"])


def compare(
    manager: TaskManager, readers: tuple[LM, HFLM], name: str, data: Path, docs: list[dict[str, Any]]
) -> None:
    lm, hf = readers
    reference = theirs(manager, hf, name, docs)
    (task,) = resolve([name], data)
    items = prepare(lm, task, "test", len(docs))
    outcomes = evaluate(lm, [task], [parse("text")], limit=len(docs)).outcomes
    assert len(outcomes) == len(reference) == len(docs)
    for item, outcome, sample in zip(items, outcomes, reference, strict=True):
        scores = []
        for prompt, answers in item.rows():
            prefilled = lm.prefill(parse("text")([prompt], reader_of(lm, task)))
            scores += lm.score(prefilled, [answers])[0]
        expected = [(float(value), greedy) for ((value, greedy),) in sample["resps"]]
        # lm-eval sums in float32, which holds a sum of 2,000 nats to about 1e-7 of it.
        logprobs = pytest.approx([value for value, _ in expected], abs=1e-4, rel=3e-7)
        assert [score.logprob for score in scores] == logprobs
        assert [score.greedy for score in scores] == [greedy for _, greedy in expected]
        for metric in {"acc", "acc_norm"} & set(sample):
            assert outcome.metrics[metric] == sample[metric], (name, outcome.id, metric)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_every_example_is_scored_as_by_lm_eval(
    manager: TaskManager, readers: tuple[LM, HFLM], official: Path, name: str
) -> None:
    compare(manager, readers, name, official, HUB[name])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real files beside this checkout")
@pytest.mark.parametrize("name", ["piqa", "openbookqa"])
def test_real_documents_are_scored_as_by_lm_eval(
    manager: TaskManager, readers: tuple[LM, HFLM], name: str
) -> None:
    compare(manager, readers, name, REAL, documents(name, REAL)[:40])


def compare_prompts(
    manager: TaskManager, data: Path, docs: list[dict[str, Any]], train: list[dict[str, Any]]
) -> None:
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(docs)}
    )
    entry = {"task": "gsm8k", "custom_dataset": lambda **_: made}
    (task,) = manager.load([{"group": "reference", "task": [entry]}])["tasks"].values()
    task.set_fewshot_seed(seed=1234)  # as its evaluator does
    task.build_all_requests(limit=len(docs), rank=0, world_size=1)
    (ours,) = resolve(["gsm8k"], data)
    assert [each.context for each in ours.examples(limit=len(docs))] == [each.args[0] for each in task.instances]
    (first, *_) = ours.examples(limit=1)
    assert first.context.count("####") == task.config.num_fewshot == 5
    assert (ours.stop, ours.remark) == (tuple(task.config.generation_kwargs["until"]), "")


def test_sums_are_asked_in_lm_evals_words_worked_examples_included(manager: TaskManager, official: Path) -> None:
    compare_prompts(manager, official, HUB["gsm8k"], TRAIN["gsm8k"])


@pytest.mark.skipif(not REAL.is_dir(), reason="no real files beside this checkout")
def test_real_sums_are_asked_in_lm_evals_words(manager: TaskManager) -> None:
    compare_prompts(manager, REAL, documents("gsm8k", REAL)[:40], training("gsm8k", REAL))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real files beside this checkout")
@pytest.mark.parametrize("spec", ["text", "text,mask=prefix"])
@pytest.mark.parametrize("name", ["piqa", "openbookqa"])
def test_a_benchmark_costs_at_most_1_05_of_its_fewest_tokens(name: str, spec: str) -> None:
    tokenizer = LM.load("embedded:heron").tokenizer
    lm = LM(tiny_model(max_position_embeddings=2048, vocab_size=len(tokenizer)), tokenizer)
    work = evaluate(lm, resolve([name], REAL), [parse(spec)], limit=300).work[spec, name]
    assert work.least <= work.run <= 1.05 * work.least
