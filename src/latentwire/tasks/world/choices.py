"""Multiple choice: the passage's own four values of a relation, scored by log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split, Task
from latentwire.tasks.world.tiers import Tier, draw_question, example_id, indices
from latentwire.tasks.world.world_passages import Attribute

# Each task asks about one relation in one tier, so that their mean covers easy and hard reading.
PEOPLE = 4
CHOICES: dict[str, tuple[Tier, Attribute | None]] = {
    "choices/birthplace": ("one_hop", "birthplace"),
    "choices/home": ("two_hop", "home"),
    "choices/job": ("later", "job"),
    "choices/person": ("reverse", None),
}


def _choosing(task: str, split: Split) -> Iterator[Example]:
    tier, about = CHOICES[task]
    for index in indices(task, split):
        random_, passage, question = draw_question(task, tier, split, index, PEOPLE, about)
        choices = random_.sample(question.candidates, len(question.candidates))
        id_ = example_id(task, split, index)
        yield Example(
            id=id_,
            group=id_,
            context=passage.text,
            question=question.text,
            choices=tuple(choices),
            gold=choices.index(question.answer),
            candidates=question.candidates,
        )


def choice_tasks() -> list[Task]:
    """The tasks `choices/…`, four choices each, every one of them stated in the passage."""
    return [Task(name=name, answer="choice", source=partial(_choosing, name), apart=True) for name in CHOICES]
