"""The made-up world: people who never were, and what a reader can be asked about them.

Every example is a pure function of (task, split, index); nothing is stored. `names` keeps the
splits apart, `passages` states the facts, `reading`, `choices` and `sums` ask about them.
"""

from __future__ import annotations

from latentwire.tasks.base import Task
from latentwire.tasks.world.choices import choice_tasks
from latentwire.tasks.world.sums import sums_task
from latentwire.tasks.world.tiers import reading_tasks


def world_tasks() -> dict[str, Task]:
    """Every task of the world by name: the reading tiers, their shifted tests, sums, choices."""
    tasks = [*reading_tasks(), sums_task(), *choice_tasks()]
    return {task.name: task for task in tasks}
