"""What the processes beside the first one do in a study: carry out the stages that it names, and write nothing.

The first process holds the locks, plans, records, writes and prints. The others make the same plan, so that a
machine with other files is found out, and then wait for its orders.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.process_group import Group, lost
from latentwire.runs.log import Log
from latentwire.runs.store import Run
from latentwire.studies import plan
from latentwire.studies.spec import Study
from latentwire.studies.stages.base import StageWork


@dataclass(frozen=True)
class Order:
    """The stage that all processes carry out next.

    Attributes:
        stage: Its name.
        identity: Its identity, which must be the same in every process.
        folder: Its run's folder.
        runs: By stage, the folder of the run that counts.
    """

    stage: str
    identity: str
    folder: Path
    runs: Mapping[str, Path]


def follow(study: Study, group: Group) -> int:
    """Carry out a study's stages as the first process orders.

    Returns:
        The exit status: 2 for bad input, 1 if something failed.
    """
    try:
        _follow(study, group)
    except Exception as error:
        user = isinstance(error, UserError)
        sentence = str(error) if user else f"{type(error).__name__}: {error}"
        if not lost(error):
            group.note(sentence)
        group.give_way()
        if not lost(error) and 0 not in group.notes():
            print(f"latentwire: process {group.index} of {group.size}: {sentence}", file=sys.stderr)
        return 2 if user else 1
    return 0


def _follow(study: Study, group: Group) -> None:
    planned = group.leader_first(lambda: plan.make(study))
    counting: dict[str, Run] = {}
    models = planned.model_loader(counting)
    log = Log(silent=True)
    order: Order | None = None
    while (order := group.told(order)) is not None:
        stage = planned.stages[order.stage]
        if stage.identity != order.identity:
            raise UserError(
                f"stages.{order.stage}: found other files on this machine than the first process has, expected "
                "the same models and data on every machine."
            )
        if not order.folder.is_dir():
            raise UserError(
                f"runs: found no {order.folder} on this machine, expected a folder that all machines share."
            )
        counting.clear()
        counting.update({name: Run.read(folder) for name, folder in order.runs.items()})
        stage.stage.run(StageWork(planned.context, models, order.folder, log, group))
