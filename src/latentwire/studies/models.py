"""The models that stages start from, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentwire.errors import UserError
from latentwire.evaluation.arms import Arm
from latentwire.lm.model import LM
from latentwire.runs.identity import model_folder
from latentwire.runs.store import Run
from latentwire.studies.plan import Plan
from latentwire.studies.stages import Checkpoint, Source
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate, share
from latentwire.wires.relay import source_name


class Readers:
    """Loads the study's model or a finetuning's checkpoint, and keeps it while it is asked for.

    Always from disk: what later stages read with is what a user can load, and not what was left in memory.
    """

    def __init__(self, plan: Plan, runs: Mapping[str, Run]) -> None:
        self._plan, self._runs = plan, runs
        self._held: tuple[tuple[Source, torch.dtype | None], LM] | None = None
        self._sources: dict[str, LM] = {}

    def holds(self, source: Source) -> bool:
        return self._held is not None and self._held[0][0] == source

    def load(self, source: Source, *, to_train: bool = False) -> LM:
        """The reader that a finetuning left, or a model as it is; in float32 if it is to be trained.

        Raises:
            UserError: the checkpoint is gone or is not what the finetuning wrote.
        """
        named = self._plan.study.dtype
        dtype: torch.dtype | None = torch.float32 if to_train else getattr(torch, named) if named else None
        if self._held is None or self._held[0] != (source, dtype):
            self.drop()
            lm = LM.load(self._folder(*source), **self._options(source[0], dtype))
            lm.name = f"{source[0]} after {source[1]}" if source[1] else source[0]
            self._held = ((source, dtype), lm)
        return self._held[1]

    def drop(self) -> None:
        """Forget the reader that is held: its weights have changed, or its memory is needed."""
        self._held = None
        self._sources.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wire(self, stage: str, checkpoint: Checkpoint = "best") -> Path:
        """The folder of the wire that a stage has trained. Raises as `load` does."""
        return self._folder("", stage, checkpoint)

    def models(self, specs: Sequence[str]) -> dict[str, LM]:
        """Models as they are, all of them in memory: a wire's encoder and readers.

        In float32; of those of 4 bits, what is not rounded is bfloat16.
        """
        self.drop()
        found = {}
        for spec in specs:
            found[spec] = LM.load(self._plan.models[spec], **self._options(spec, torch.float32))
            found[spec].name = spec
        return found

    def prepare_sources(self, lm: LM, arms: Iterable[Arm]) -> None:
        """Load as the study says the sources of arms that the held reader `lm` is about to read over.

        Raises `UserError` as `LM.load` does.
        """
        for name in dict.fromkeys(source_name(arm.wire) for arm in arms):
            if name is not None and name != lm.name:
                self._prepare(name, lm)

    def prepare_wires(self, models: Mapping[str, LM], readers: Iterable[str], paths: Iterable[str | Path]) -> None:
        """Let wires that are read beside the one that is trained have the models that are loaded for it.

        Their other sources are loaded as the study says.

        Args:
            models: of the training, by name. readers: which of them read. paths: of the wires.

        Raises:
            UserError: as `LM.load`, or no such wire.
        """
        sources = [read_config(locate(str(path))).source for path in paths]
        for reader in (models[name] for name in readers):
            for model in models.values():
                share(model, reader)
            for name in sources:
                if name not in models:
                    self._prepare(name, reader)

    def _prepare(self, name: str, lm: LM) -> None:
        """Load a source for a reader, in its dtype as other sources, if the study says how."""
        study = self._plan.study
        if name not in study.loading and name not in study.prompts:
            return
        if name not in self._sources:
            folder = self._plan.models.get(name) or model_folder(name)
            self._sources[name] = LM.load(folder, **self._options(name, lm.model.dtype))
            self._sources[name].name = name
        share(self._sources[name], lm)

    def _options(self, model: str, dtype: torch.dtype | None) -> dict[str, Any]:
        asked, prompts = self._plan.study.loading.get(model), self._plan.study.prompts.get(model)
        if asked is None:
            return {"dtype": dtype, "prompts": prompts}
        rounded = torch.bfloat16 if asked.bits else dtype
        return {"dtype": rounded, "device_map": asked.device_map, "bits": asked.bits, "prompts": prompts}

    def _folder(self, model: str, start: str | None, checkpoint: Checkpoint) -> Path:
        if start is None:
            return self._plan.models[model]
        run, place = self._runs[start], f"checkpoints/{checkpoint}"
        if not any(path.startswith(place) for path in run.record.artifacts):
            raise UserError(f"{run.folder}: {start} ended without a {checkpoint} checkpoint; its log says why.")
        if changed := run.changed_artifacts(place):
            raise UserError(
                f"{run.folder}: {changed[0]} is gone or not as {start} wrote it; "
                f"expected it unchanged, or a new run with --stage {start} --fresh."
            )
        return run.folder / place
