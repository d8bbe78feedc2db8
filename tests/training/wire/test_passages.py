"""A wire is trained on the answer tokens that an evaluation scores."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, normalizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from latentwire.errors import UserError
from latentwire.evaluation.encoded import prepare, reader_of
from latentwire.lm.prompt_format import PromptFormat
from latentwire.tasks import resolve
from latentwire.tasks.base import Task
from latentwire.tasks.world.sums import training_passage
from latentwire.tasks.world.tiers import TIERS, ask_all
from latentwire.training.data import task as task_data
from latentwire.training.data import world as world_data
from latentwire.training.data.task import TaskData
from latentwire.training.data.world import WorldPassages
from latentwire.training.wire.asking import Asking
from latentwire.training.wire.passages import passages
from latentwire.wires import parse
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.reader_text import asking
from tests.support.models import CORPUS, tiny_lm, tiny_tokenizer

EXAMPLES = ask_all(TIERS, 3)


def metaspace():
    """As SentencePiece cuts: every text gets a blank in front, whether it has one or not."""
    core = Tokenizer(BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Metaspace()
    letters = sorted({"▁", *"".join(e.context + e.question for e in EXAMPLES)} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def tokenizing(tokenizer, **how):
    return Asking(tokenizer, PromptFormat(**how), "tiny", frozenset([tokenizer.eos_token_id]))


@pytest.mark.parametrize(
    ("reader", "alone"),
    [
        (tokenizing(metaspace()), False),
        (tokenizing(tiny_tokenizer(merge_blanks=True)), False),
        (tokenizing(tiny_tokenizer(), template="raw", delimiter="\n"), False),
        (tokenizing(tiny_tokenizer(bos=True)), True),
    ],
    ids=["metaspace", "merging", "delimiter", "byte-level"],
)
def test_answers_are_trained_as_the_tokens_that_they_are_scored_by(reader, alone):
    pairs = reader.contexts([EXAMPLES])[0].pairs
    ends = sorted(reader.eos_ids)
    for example, (after, answer) in zip(EXAMPLES, pairs, strict=True):
        assert answer == [*reader.format.encode(example, reader)[1][0], *ends]
        assert after == reader.format.after(example.question, reader)
    bare = [
        reader.tokenizer(f" {example.answers[0]}", add_special_tokens=False)["input_ids"] for example in EXAMPLES
    ]
    assert ([answer[:-1] for _, answer in pairs] == bare) is alone


class Strides:
    """Three characters a token, counted from the text's beginning: what stands before changes every token."""

    eos_token_id = -1

    def __call__(self, texts, add_special_tokens=True):
        cut = [[text[at : at + 3] for at in range(0, len(text), 3)] for text in texts]
        return {"input_ids": [[int.from_bytes(each.encode()) for each in pieces] for pieces in cut]}


def test_a_context_that_changes_the_answers_tokens_is_refused():
    example = EXAMPLES[0]
    assert len(example.context) % 3 != 2  # with its line break no whole number of tokens
    with pytest.raises(UserError, match=f"tiny cuts the answer to {example.id} in another way"):
        tokenizing(Strides()).contexts([EXAMPLES])


def drawn(data, split, count=40):
    return passages(data, {"llama": tiny_lm()}, split, count)


@pytest.mark.parametrize("name", ["one_hop", "sums"])
def test_a_task_of_the_world_is_trained_on_its_own_train_split_and_chosen_on_validation(name):
    data = TaskData(kind="task", task=name)
    tested = {example.context for example in resolve([name], None)[0].examples("test")}
    for split in ("train", "validation"):
        found = drawn(data, split)
        assert {each.group.rsplit("/", 1)[0] for each in found} == {f"world/{name}/{split}"}
        assert not tested & {each.context for each in found}


def test_a_task_whose_only_examples_are_those_it_is_evaluated_on_is_refused(monkeypatch):
    held = Task(name="hub", answer="span", source=lambda split: EXAMPLES)
    monkeypatch.setattr(task_data, "resolve", lambda names, path: [held])
    with pytest.raises(UserError, match="data, a file to train on"):
        drawn(TaskData(kind="task", task="hub"), "train")


BENCHMARK = PromptFormat(template="raw", anchor="", delimiter=" ")
ASKED = [replace(each, question=f"\nQ: {each.question}\nA:") for each in EXAMPLES]
WHOLE = [replace(each, context=f"{each.context}\nQ: {each.question}\nA:", question="") for each in EXAMPLES]


@pytest.mark.parametrize(
    ("examples", "wire"),
    [
        (ASKED, {}),
        (ASKED, {"layout": "text"}),
        (WHOLE, {"layout": "text"}),
        (WHOLE, {"layout": "text", "carry": "prompt"}),
    ],
    ids=["question", "question-text", "whole-text", "whole-prompt"],
)
@pytest.mark.parametrize("bos", [True, False])
def test_a_task_with_a_format_of_its_own_is_trained_on_the_tokens_it_is_evaluated_on(
    examples, wire, bos, monkeypatch
):
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(bos=bos)
    task = Task(name="own", answer="span", source=lambda split: examples, format=BENCHMARK)
    monkeypatch.setattr(task_data, "resolve", lambda names, path: [task])
    data, config = TaskData(kind="task", task="own", data="own.jsonl"), LatentConfig(**wire)
    found = [each for split in ("train", "validation") for each in passages(data, {"a": lm}, split, 999, config)]
    trained = {
        (each.context, (*each.text["a"], *asked), tuple(each.asks("a", at)), tuple(answer))
        for each in found
        for at, (asked, answer) in enumerate(each.pairs["a"])
    }
    reader = reader_of(lm, task)
    text, ends = parse("text").bind(reader), sorted(lm.eos_ids)[:1]
    evaluated = set()
    for item in prepare(lm, task, "test", None):
        asked = item.prompt.context, item.prompt.question
        carried = reader.format.body(*asked) if config.carry == "prompt" else asked[0]
        (after,) = asking(config, [asked], reader)[1]
        ids = text([item.prompt], reader).ids[0].tolist()
        evaluated.add((carried, tuple(ids), tuple(after), (*item.answers[0], *ends)))
    assert trained == evaluated


def test_a_prompt_that_is_all_context_is_refused_since_nothing_follows_the_latents(monkeypatch):
    task = Task(name="own", answer="span", source=lambda split: WHOLE, format=BENCHMARK)
    monkeypatch.setattr(task_data, "resolve", lambda names, path: [task])
    data = TaskData(kind="task", task="own", data="own.jsonl")
    with pytest.raises(UserError, match=r"found nothing after the latents of .*, expected .*layout: text"):
        [drawn(data, split) for split in ("train", "validation")]  # by its hash the only group is in one of them


def test_passages_are_made_once_for_all_stages_that_train_on_the_same(monkeypatch):
    made = []
    honest = world_data.training_passage
    monkeypatch.setattr(world_data, "training_passage", lambda *a: (made.append(a), honest(*a))[1])
    lm, twin, data = tiny_lm(), tiny_lm(), WorldPassages(tiers=("reverse",))
    first = passages(data, {"a": lm}, "train", 7)
    assert len(made) == 7
    again = passages(data, {"a": twin}, "train", 7)
    assert len(made) == 7
    assert again == first
    assert again is not first
    lm.format = PromptFormat(anchor="Well:")
    other = passages(data, {"a": lm}, "train", 7)
    assert len(made) == 14
    assert other[0].pairs != first[0].pairs


def test_a_reader_under_another_name_has_passages_of_its_own():
    lm, data = tiny_lm(), WorldPassages()
    for name in ("one", "other"):
        assert all(each.pairs.keys() == {name} for each in passages(data, {name: lm}, "train", 3))


def test_sums_are_passages_of_the_train_split_and_take_their_turn_among_the_tiers():
    alone = drawn(WorldPassages(tiers=("sums",)), "train")
    assert [each.group for each in alone] == [f"world/sums/train/{n:06d}" for n in range(40)]
    assert {each.asked for each in alone} == {1}
    mixed = drawn(WorldPassages(tiers=("one_hop", "sums")), "train")
    assert [each.group.split("/")[1] for each in mixed] == ["sums", "passages"] * 20
    held = drawn(WorldPassages(tiers=("one_hop", "sums")), "validation", 4)
    assert [each.group.split("/")[1:3] for each in held] == [["one_hop", "validation"], ["sums", "validation"]] * 2


def test_no_sum_that_is_trained_on_is_tested_on():
    tested = {example.answers for example in resolve(["sums"], None)[0].examples("test", 500)}
    assert not tested & {training_passage(("sums",), number)[0].answers for number in range(500)}
