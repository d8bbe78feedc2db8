"""The made-up world: what makes it hard to fake, and what must never change about it."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from latentwire.errors import UserError
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.prompts import Example
from latentwire.models import NAMES, folder
from latentwire.tasks.base import Split
from latentwire.tasks.floors import type_floor
from latentwire.tasks.world import world_tasks
from latentwire.tasks.world.names import SYLLABLES, split_of, stems
from latentwire.tasks.world.sums import draw_problem
from latentwire.tasks.world.tiers import TIERS, ask, ask_tags, draw_passage
from latentwire.tasks.world.world_passages import (
    RESOLUTIONS,
    SHIFTED_RESOLUTIONS,
    SHIFTED_TEMPLATES,
    TEMPLATES,
)
from latentwire.training.growing.growth_data import encode_turns, grow_tokenizer, recipe_of, row_turns

TASKS = world_tasks()
CHOICES = [name for name in TASKS if name.startswith("choices/")]
SHIFTED = [f"shifted/{tier}" for tier in TIERS]
ALL_STEMS = {stem for split in ("train", "validation", "test") for stem in stems(split)}
WITH_CANDIDATES = [*TIERS, *SHIFTED, *CHOICES]
# A capital begins a name or one of these words.
WORDS = {"Listen", "The", "Where", "What", "When", "Who", "How"} | {"Born", "In", "As", "People", "It"}


def some(name: str, split: Split = "test", limit: int = 200) -> list[Example]:
    return TASKS[name].examples(split, limit)


def right_answer(example: Example) -> str:
    return example.choices[example.gold] if example.choices else example.answers[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]+", text)) - WORDS


def splits_of(name: str) -> set[str]:
    """Every split that could have drawn the name: it should be one."""
    cuts = [name, *(name.removesuffix(last) for last in SYLLABLES if name.endswith(last))]
    return {split_of(stem) for stem in cuts if stem in ALL_STEMS}


def test_the_world_has_its_tiers_sums_and_four_choices() -> None:
    assert {*TIERS, *SHIFTED, "sums"} <= set(TASKS)
    assert len(CHOICES) >= 4
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", WITH_CANDIDATES)
def test_no_question_contains_its_answer(name: str) -> None:
    assert not any(right_answer(example).lower() in example.question.lower() for example in some(name))


@pytest.mark.parametrize("name", WITH_CANDIDATES)
def test_every_asked_relation_has_four_different_values_in_the_passage(name: str) -> None:
    for example in some(name):
        assert len(set(example.candidates)) == len(example.candidates) >= 4
        assert right_answer(example) in example.candidates
        assert all(value in example.context for value in example.candidates)


@pytest.mark.parametrize("name", WITH_CANDIDATES)
def test_a_reader_that_ignores_whom_the_question_is_about_scores_little(name: str) -> None:
    assert type_floor(TASKS[name].examples("test")) <= 0.30


def test_type_floor_finds_a_position_that_is_always_right() -> None:
    example = Example(id="a", group="a", context="", question="", answers=("y",), candidates=("x", "y"))
    assert type_floor([example, example]) == 1.0
    with pytest.raises(ValueError, match="candidates"):
        type_floor([Example(id="a", group="a", context="", question="", answers=("y",))])


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", TASKS)
def test_names_of_a_split_occur_in_no_other(name: str, split: Split) -> None:
    for example in some(name, split, 100):
        found = names_in(f"{example.context} {example.question}")
        assert found
        assert all(splits_of(found_name) == {split} for found_name in found)


def test_growth_rows_hold_names_of_the_train_split_only() -> None:
    recipe = recipe_of("heron")
    for index in range(200):
        text = " ".join(part for turn in row_turns(recipe, index) for part in turn)
        assert all(splits_of(name) == {"train"} for name in names_in(text) - {"Question", "Answer"})


def test_two_hops_need_an_acquaintance_that_is_different_for_everybody() -> None:
    for index in range(200):
        passage = draw_passage(random.Random(index), "test", "two_hop", people=4)
        known = {fact.who: fact.what for fact in passage.of("acquaintance")}
        assert len(known) >= 4
        assert set(known) == set(known.values()) == set(passage.people)
        assert all(person != other and known[other] != person for person, other in known.items())
        for question in ask(passage, "two_hop"):
            (asked,) = (person for person in passage.people if person in question.text)
            told = {fact.who: fact.what for fact in passage.of(question.relation)}
            assert question.answer == told[known[asked]] != told[asked]


def test_halves_of_a_later_question_are_asked_by_tag_and_answered_by_the_passage() -> None:
    for index in range(100):
        passage = draw_passage(random.Random(index), "train", "later", people=4)
        assert len(set(passage.tags)) == 4
        known = dict(zip(passage.tags, passage.people, strict=True))
        questions = ask_tags(passage)
        assert len(questions) == 4 * 3
        for question in questions:
            (tag,) = (tag for tag in passage.tags if tag in question.text)
            told = {fact.who: fact.what for fact in passage.facts if fact.relation == question.relation}
            assert question.answer == told.get(known[tag], known[tag])


def test_colours_tell_tags_apart_only_where_that_is_asked_for() -> None:
    def colours(shared: bool) -> list[int]:
        passages = (
            draw_passage(random.Random(index), "train", "later", people=6, shared_colours=shared)
            for index in range(100)
        )
        return [len({tag.split()[1] for tag in passage.tags}) for passage in passages]

    assert set(colours(shared=False)) == {6}
    assert min(colours(shared=True)) < 6


@pytest.mark.parametrize("name", ["later", "shifted/later"])
def test_a_later_reference_is_resolved_only_after_its_fact(name: str) -> None:
    for example in some(name):
        person = max(names_in(example.question), key=len)
        assert example.context.count(person) == 1
        assert example.context.index(person) > example.context.index(right_answer(example))


def test_shifted_passages_are_twice_as_long_in_sentences_never_trained_on() -> None:
    for relation, templates in SHIFTED_TEMPLATES.items():
        assert not set(templates) & set(TEMPLATES[relation])
    assert not set(RESOLUTIONS) & set(SHIFTED_RESOLUTIONS)
    for tier in TIERS:
        plain, shifted = (
            sum(len(example.context.split()) for example in some(name)) for name in (tier, f"shifted/{tier}")
        )
        assert 1.8 < shifted / plain < 2.6


def test_a_shifted_task_has_no_train_split() -> None:
    with pytest.raises(UserError, match="shifted/one_hop"):
        some("shifted/one_hop", "train")


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_four_and_gold_is_anywhere(name: str) -> None:
    examples = TASKS[name].examples("test")
    assert all(set(example.choices) == set(example.candidates) for example in examples)
    shares = [sum(example.gold == at for example in examples) / len(examples) for at in range(4)]
    assert all(0.21 < share < 0.29 for share in shares)


def test_the_solutions_of_sums_are_right_when_recomputed() -> None:
    for example in some("sums", "test", 500):
        steps, result = example.answers[0].split(" #### ")
        who = re.fullmatch(r"How many (\w+) does (\w+) have now\?", example.question)
        assert who is not None
        carried = re.search(rf"\b{who[2]} has (\d+) {who[1]}", example.context)
        assert carried is not None
        total = int(carried[1])
        assert 2 <= len(steps.split(", ")) <= 4
        for step in steps.split(", "):
            before, sign, number, after = re.fullmatch(r"(\d+) ([+*-]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
            assert int(before) == total
            total = {"+": total + int(number), "-": total - int(number), "*": total * int(number)}[sign]
            assert int(after) == total
            assert number in example.context or sign == "*"
        assert int(result) == total


def test_no_sums_of_the_test_split_are_trained_on() -> None:
    train = {draw_problem(random.Random(index), "train") for index in range(2_000)}
    test = {draw_problem(random.Random(index), "test") for index in range(2_000)}
    assert all(problem.split == "train" for problem in train)
    assert not train & test


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_the_same_whatever_the_limit_and_the_order(name: str) -> None:
    task = TASKS[name]
    assert task.examples("test", 5) == task.examples("test", 20)[:5]
    assert list(islice(world_tasks()[name].source("test"), 5)) == task.examples("test", 5)


@pytest.mark.parametrize("name", TASKS)
def test_ids_and_groups_are_unique_and_name_task_and_split(name: str) -> None:
    examples = TASKS[name].examples("test")
    assert len({example.id for example in examples}) == len(examples) >= 2_000
    assert len({example.group for example in examples}) == len(examples)
    assert examples[17].id == f"world/{name}/test/000017"
    assert len(TASKS[name].examples("validation")) >= 2_000


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_grown_again_from_its_recipe_is_the_one_that_ships(name: str) -> None:
    grown, ships = grow_tokenizer(recipe_of(name)), Tokenizing.load(f"embedded:{name}").tokenizer
    assert grown.get_vocab() == ships.get_vocab()
    for task in TASKS:
        for example in some(task, "validation", 2):
            assert grown(example.context)["input_ids"] == ships(example.context)["input_ids"]


@pytest.fixture(scope="module", params=NAMES)
def grown_tokenizer(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return Tokenizing.load(f"embedded:{request.param}").tokenizer


def test_a_prompt_is_a_token_prefix_of_itself_with_its_answer(grown_tokenizer) -> None:  # type: ignore[no-untyped-def]
    for name in TASKS:
        for example in some(name, "validation", 20):
            for context in (f"{example.context}\n", ""):
                prompt = f"{context}Question: {example.question}\nAnswer:"
                before = grown_tokenizer(prompt)["input_ids"]
                assert before[0] == grown_tokenizer.bos_token_id
                for answer in example.choices or example.answers:
                    whole = grown_tokenizer(f"{prompt} {answer}")["input_ids"]
                    assert whole[: len(before)] == before
                    row, is_answer = encode_turns(grown_tokenizer, [(prompt, f" {answer}")], 1_024)
                    assert row == [*whole, grown_tokenizer.eos_token_id]
                    assert is_answer.index(True) == len(before)


def test_for_an_unknown_embedded_model_the_nearest_is_named() -> None:
    with pytest.raises(UserError, match="heron"):
        folder("herron")
    assert folder("wren").joinpath("recipe.json").is_file()
