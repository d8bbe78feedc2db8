"""The models that stages start from, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import torch

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.store import Run
from latentwire.studies.plan import Plan

BEST = "checkpoints/best"


class Readers:
    """Loads the study's model or a finetuning's best checkpoint, and keeps it while it is asked for.

    Always from disk: what later stages read with is what a user can load, and not what was left in memory.
    """

    def __init__(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        self._plan, self._runs = plan, runs
        self._held: tuple[tuple[str | None, torch.dtype | None], LM] | None = None

    def holds(self, start: str | None) -> bool:
        return self._held is not None and self._held[0][0] == start

    def load(self, start: str | None, *, to_train: bool = False) -> LM:
        """The reader that a finetuning left, or the study's model for None; in float32 if it is to be trained.

        Raises:
            UserError: the checkpoint is gone or is not what the finetuning wrote.
        """
        named = self._plan.study.dtype
        dtype: torch.dtype | None = torch.float32 if to_train else getattr(torch, named) if named else None
        if self._held is None or self._held[0] != (start, dtype):
            self.drop()
            lm = LM.load(self._folder(start), dtype=dtype)
            lm.name = self._plan.study.model if start is None else f"{self._plan.study.model} after {start}"
            self._held = ((start, dtype), lm)
        return self._held[1]

    def drop(self) -> None:
        """Forget the reader that is held: its weights have changed, or its memory is needed."""
        self._held = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _folder(self, start: str | None) -> Path:
        if start is None:
            return self._plan.model
        run = self._runs[start]
        if changed := run.changed_artifacts(BEST):
            raise UserError(
                f"{run.folder}: {changed[0]} is gone or not as {start} wrote it; "
                f"expected it unchanged, or a new run with --stage {start} --fresh."
            )
        return run.folder / BEST
