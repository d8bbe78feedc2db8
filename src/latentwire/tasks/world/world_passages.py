"""Passages: people, the facts that hold of them, and the sentences that state the facts.

In a *direct* passage every sentence names the person it is about. In a *tagged* passage the facts
are about "the one with the red hat", and only later sentences say who that is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from latentwire.tasks.base import Split
from latentwire.tasks.world.names import ACQUAINTANCES, JOBS, YEARS, draw_names, draw_tags

Attribute = Literal["birthplace", "home", "job", "year"]
Relation = Literal["birthplace", "home", "job", "year", "acquaintance"]
ATTRIBUTES: tuple[Attribute, ...] = ("birthplace", "home", "job", "year")
RELATIONS: tuple[Relation, ...] = (*ATTRIBUTES, "acquaintance")

# A name at the very beginning of a text has no space before it and is other tokens than everywhere
# else; with an opening no name stands there.
OPENING = "Listen:"

# How a fact is stated. `who` is the person, `what` the value, `tie` the kind of acquaintance.
TEMPLATES: dict[Relation, tuple[str, ...]] = {
    "birthplace": ("{who} was born in {what}.", "{who} comes from {what}.", "{what} is where {who} was born."),
    "home": ("{who} lives in {what}.", "The home of {who} is in {what}.", "{what} is where {who} lives."),
    "job": ("{who} works as a {what}.", "{who} is a {what}.", "The job of {who} is {what}."),
    "year": ("{who} was born in {what}.", "{who} dates from {what}.", "{what} is the year {who} was born."),
    "acquaintance": (
        "The {tie} of {who} is {what}.",
        "{who} has {what} as {tie}.",
        "{what} is the {tie} of {who}.",
    ),
}
RESOLUTIONS = ("{who} is the one with {tag}.", "The one with {tag} is {who}.")

# The shifted tests' own sentences: none of them is ever trained on.
SHIFTED_TEMPLATES: dict[Relation, tuple[str, ...]] = {
    "birthplace": ("Born in {what}, this is {who}.", "{who} saw first light in {what}."),
    "home": ("{who} has a house in {what}.", "In {what} stands the house of {who}."),
    "job": ("{who} earns a living as a {what}.", "People know {who} as a {what}."),
    "year": ("{who} came to the world in {what}.", "In {what} came the birth of {who}."),
    "acquaintance": ("{who} calls {what} a {tie}.", "As {tie}, {who} has {what}."),
}
SHIFTED_RESOLUTIONS = ("It is {who} who has {tag}.", "{tag} belongs to {who}.")


@dataclass(frozen=True)
class Fact:
    """`relation` of `who` is `what`."""

    relation: Relation
    who: str
    what: str


@dataclass(frozen=True)
class WorldPassage:
    """A text and its facts in the order in which it states them.

    Every relation of the passage holds for every person, each time with another value. `tie` is
    the kind of acquaintance that is stated ("friend"); empty where none is. `tags` are what the people are
    known by in a tagged passage, person by person; empty in a direct one.
    """

    text: str
    people: tuple[str, ...]
    facts: tuple[Fact, ...]
    tie: str = ""
    tags: tuple[str, ...] = ()

    def of(self, relation: Relation) -> tuple[Fact, ...]:
        """The facts of one relation, in order of statement."""
        return tuple(fact for fact in self.facts if fact.relation == relation)


def direct_passage(
    random_: random.Random, split: Split, relations: Sequence[Relation], count: int, shifted: bool = False
) -> WorldPassage:
    """A passage about `count` people that names whom each sentence is about."""
    tie = random_.choice(ACQUAINTANCES)
    people, facts = _draw_facts(random_, split, relations, count)
    templates = SHIFTED_TEMPLATES if shifted else TEMPLATES
    sentences = [
        random_.choice(templates[fact.relation]).format(who=fact.who, what=fact.what, tie=tie) for fact in facts
    ]
    return WorldPassage(" ".join([OPENING, *sentences]), people, facts, tie if "acquaintance" in relations else "")


def tagged_passage(
    random_: random.Random,
    split: Split,
    relations: Sequence[Relation],
    count: int,
    shifted: bool = False,
    shared_colours: bool = True,
) -> WorldPassage:
    """A passage that states its facts about tags, and says last to whom each tag belongs."""
    people, facts = _draw_facts(random_, split, relations, count)
    tags = dict(zip(people, draw_tags(random_, len(people), shared_colours), strict=True))
    templates, resolutions = (SHIFTED_TEMPLATES, SHIFTED_RESOLUTIONS) if shifted else (TEMPLATES, RESOLUTIONS)
    sentences = [
        random_.choice(templates[fact.relation]).format(who=f"the one with {tags[fact.who]}", what=fact.what)
        for fact in facts
    ]
    sentences += [
        random_.choice(resolutions).format(who=person, tag=tags[person])
        for person in random_.sample(people, len(people))
    ]
    text = " ".join([OPENING, *(sentence[0].upper() + sentence[1:] for sentence in sentences)])
    return WorldPassage(text, people, facts, tags=tuple(tags.values()))


def _draw_facts(
    random_: random.Random, split: Split, relations: Sequence[Relation], count: int
) -> tuple[tuple[str, ...], tuple[Fact, ...]]:
    drawn = draw_names(random_, split, 3 * count)
    people, births, homes = drawn[:count], drawn[count : 2 * count], drawn[2 * count :]
    facts: list[Fact] = []
    for relation in relations:
        if relation == "birthplace":
            values: Sequence[str] = births
        elif relation == "home":
            values = homes
        elif relation == "job":
            values = random_.sample(JOBS, count)
        elif relation == "year":
            values = random_.sample(YEARS, count)
        else:
            # One circle through everybody: nobody is their own acquaintance, and the acquaintance of
            # X's acquaintance is not X, so that a question must be read in the right direction.
            values = people[1:] + people[:1]
        facts += [Fact(relation, who, what) for who, what in zip(people, values, strict=True)]
    random_.shuffle(facts)
    return tuple(people), tuple(facts)
