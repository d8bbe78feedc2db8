"""Reading, in tiers: one hop, the reverse question, two hops, and references resolved later."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split, Task
from latentwire.tasks.world.world_passages import (
    ATTRIBUTES,
    RELATIONS,
    Attribute,
    Relation,
    WorldPassage,
    direct_passage,
    tagged_passage,
)

Tier = Literal["one_hop", "reverse", "two_hop", "later"]
TIERS: tuple[Tier, ...] = ("one_hop", "reverse", "two_hop", "later")
HELD_OUT_EXAMPLES = 2_000
# More people make a tier harder; these numbers leave it room in both directions.
PEOPLE: dict[Tier, int] = {"one_hop": 4, "reverse": 6, "two_hop": 6, "later": 6}

_ID = re.compile(rf"world/((shifted/)?({'|'.join(TIERS)}))/(train|validation|test)/(\d+)")

ASK_WHAT: dict[Attribute, str] = {
    "birthplace": "Where was {who} born?",
    "home": "Where does {who} live?",
    "job": "What does {who} work as?",
    "year": "When was {who} born?",
}
ASK_WHO: dict[Attribute, str] = {
    "birthplace": "Who was born in {what}?",
    "home": "Who lives in {what}?",
    "job": "Who works as a {what}?",
    "year": "Who was born in {what}?",
}


@dataclass(frozen=True)
class Question:
    """A question about a passage; `candidates[position]` is its answer."""

    relation: Relation
    text: str
    candidates: tuple[str, ...]
    position: int

    @property
    def answer(self) -> str:
        return self.candidates[self.position]


def draw_passage(
    random_: random.Random,
    split: Split,
    tier: Tier,
    people: int,
    about: Attribute | None = None,
    shifted: bool = False,
    shared_colours: bool = True,
) -> WorldPassage:
    """A passage that questions of `tier` can be asked about, telling of `about` where one is given."""
    required: list[Relation] = [] if about is None else [about]
    if tier == "later":
        pool, wanted = list[Relation](ATTRIBUTES), 2
    else:
        pool, wanted = list[Relation](RELATIONS), 3
        if tier == "two_hop":
            required.append("acquaintance")
    free = [relation for relation in pool if relation not in required]
    relations = required + random_.sample(free, wanted - len(required))
    if tier == "later":
        return tagged_passage(random_, split, relations, people, shifted, shared_colours)
    return direct_passage(random_, split, relations, people, shifted)


def ask(passage: WorldPassage, tier: Tier) -> list[Question]:
    """Every question of `tier` that the passage answers."""
    questions: list[Question] = []
    stated_relations = dict.fromkeys(fact.relation for fact in passage.facts)
    for relation in stated_relations:
        facts = passage.of(relation)
        subjects = tuple(fact.who for fact in facts)
        values = tuple(fact.what for fact in facts)
        if relation == "acquaintance":
            if tier == "one_hop":
                asked = f"Who is the {passage.tie} of {{}}?"
                questions += [Question(relation, asked.format(who), values, at) for at, who in enumerate(subjects)]
        elif tier == "reverse":
            questions += [
                Question(relation, ASK_WHO[relation].format(what=what), subjects, at)
                for at, what in enumerate(values)
            ]
        elif tier == "two_hop":
            questions += [
                Question(
                    relation,
                    ASK_WHAT[relation].format(who=f"the {passage.tie} of {known.who}"),
                    values,
                    subjects.index(known.what),
                )
                for known in passage.of("acquaintance")
            ]
        else:
            questions += [
                Question(relation, ASK_WHAT[relation].format(who=who), values, at)
                for at, who in enumerate(subjects)
            ]
    return questions


def ask_tags(passage: WorldPassage) -> list[Question]:
    """The halves of the `later` questions about a tagged passage: who has which tag, and what holds of a tag.

    No task asks these; a model that is being grown learns from them what the whole question is made of.
    """
    questions = [
        Question("acquaintance", f"Who is the one with {tag}?", passage.people, at)
        for at, tag in enumerate(passage.tags)
    ]
    for relation in ATTRIBUTES:
        facts = passage.of(relation)
        questions += [
            Question(relation, ASK_WHAT[relation].format(who=f"the one with {tag}"), values, at)
            for values in [tuple(fact.what for fact in facts)]
            for at, tag in enumerate(passage.tags[passage.people.index(fact.who)] for fact in facts)
        ]
    return questions


def draw_question(
    task: str,
    tier: Tier,
    split: Split,
    index: int,
    people: int,
    about: Attribute | None = None,
    shifted: bool = False,
) -> tuple[random.Random, WorldPassage, Question]:
    """WorldPassage and question number `index` of a task, and the random state after drawing them.

    The right answer's place among the candidates goes round with the index, so that "always the
    first one stated" is right exactly as often as any other such rule.
    """
    random_ = random.Random(f"world/{task}/{split}/{index}")
    passage = draw_passage(random_, split, tier, people, about, shifted)
    position = index % len(passage.people)
    questions = [
        question
        for question in ask(passage, tier)
        if question.position == position and about in (None, question.relation)
    ]
    return random_, passage, random_.choice(questions)


def indices(task: str, split: Split) -> Iterator[int]:
    """The numbers of a split's examples: 2,000 held out, and train without end.

    Raises `UserError` for the train split of a shifted task: it exists to be tested on.
    """
    if split != "train":
        return iter(range(HELD_OUT_EXAMPLES))
    if task.startswith("shifted/"):
        raise UserError(
            f"{task}: split 'train' was asked for, but a shifted task has 'validation' and 'test' only"
        )
    return count()


def example_id(task: str, split: Split, index: int) -> str:
    """`world/one_hop/test/000017`: the same for ever."""
    return f"world/{task}/{split}/{index:06d}"


def _reading(task: str, tier: Tier, shifted: bool, split: Split) -> Iterator[Example]:
    people = PEOPLE[tier] * (2 if shifted else 1)
    for index in indices(task, split):
        _, passage, question = draw_question(task, tier, split, index, people, shifted=shifted)
        id_ = example_id(task, split, index)
        yield Example(
            id=id_,
            group=id_,
            context=passage.text,
            question=question.text,
            answers=(question.answer,),
            candidates=question.candidates,
        )


def ask_all(tiers: Sequence[Tier], index: int) -> list[Example]:
    """Training passage number `index` with every question of `tiers` that can be asked about it, shuffled.

    A passage is as long as the tasks' are; where `later` is among others, every third passage is a tagged one.
    """
    random_ = random.Random(f"world/passages/train/{index}")
    direct = [tier for tier in tiers if tier != "later"]
    tagged = "later" in tiers and (not direct or index % 3 == 0)
    asked: Sequence[Tier] = ("later",) if tagged else direct
    people = random_.choice(sorted({PEOPLE[tier] for tier in asked}))
    passage = draw_passage(random_, "train", "later" if tagged else "two_hop", people)
    questions = [(tier, question) for tier in asked for question in ask(passage, tier)]
    random_.shuffle(questions)
    group = example_id("passages", "train", index)
    return [
        Example(
            id=f"{group}/{at}",
            group=group,
            context=passage.text,
            question=question.text,
            answers=(question.answer,),
            candidates=question.candidates,
        )
        for at, (_, question) in enumerate(questions)
    ]


def reading_tasks() -> list[Task]:
    """The four tiers, then each again as `shifted/TIER`: twice as long, in sentences never trained on."""
    return [
        Task(
            name=prefix + tier,
            answer="span",
            source=partial(_reading, prefix + tier, tier, bool(prefix)),
            apart=True,
        )
        for prefix in ("", "shifted/")
        for tier in TIERS
    ]


def stated(example: str) -> int | None:
    """How many facts the passage of a tier's example states, who has which tag among them.

    Args:
        example: its id. None for those of any other task.
    """
    found = _ID.fullmatch(example)
    if found is None:
        return None
    task, shifted, tier, split, index = found.groups()
    people = PEOPLE[tier] * (2 if shifted else 1)  # type: ignore[index]
    _, passage, _ = draw_question(task, tier, split, int(index), people, shifted=bool(shifted))  # type: ignore[arg-type]
    return len(passage.facts) + len(passage.tags)
