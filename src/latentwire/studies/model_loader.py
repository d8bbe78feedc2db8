"""The models that stages read with and train, one in memory at a time unless a wire needs several."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from latentwire.errors import UserError
from latentwire.evaluation.arms import Arm
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.runs.identity import model_folder
from latentwire.runs.store import Run
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate, share
from latentwire.wires.relay import source_name

Checkpoint = Literal["best", "final", "best_loss", "best_first_token", "best_exact_match", "best_f1"]
Source = tuple[str, str | None, Checkpoint]
"""A model, the stage that finetuned it (None for the model as it is), and which of that stage's checkpoints."""


class ModelLoader:
    """Loads the study's models and the checkpoints of its stages, and keeps those that are asked for again.

    Always from disk: later stages read with what a user can load, and not with what a training left in memory.
    Frozen models stay as they were loaded, so that stages share them: large ones take minutes to load.

    Args:
        loading: How to load a model, by its name.
        prompts: How to ask a model, by its name; others are asked as their own files say.
        dtype: What evaluations read in; None takes the machine's default.
        folders: Where each model of the study is.
        runs: The run that counts for each stage; the caller adds to it as stages are carried out.
    """

    def __init__(
        self,
        loading: Mapping[str, Loading],
        prompts: Mapping[str, PromptSettings],
        dtype: str | None,
        folders: Mapping[str, Path],
        runs: Mapping[str, Run],
    ) -> None:
        self._loading, self._prompts, self._dtype = loading, prompts, dtype
        self._folders, self._runs = folders, runs
        self._loaded: dict[tuple[Source, str], LM] = {}
        self._sources: dict[str, LM] = {}

    def holds(self, source: Source) -> bool:
        """Whether this reader is in memory."""
        return any(known == source for known, _ in self._loaded)

    def load(self, source: Source, *, to_train: bool = False) -> LM:
        """A model as it is or as a finetuning left it; in float32 if it is to be trained.

        Raises:
            UserError: The checkpoint is gone or is not what the finetuning wrote.
        """
        dtype = torch.float32 if to_train else self._evaluation_dtype()
        if self._key(source, dtype) not in self._loaded:
            self.drop()
        return self._get(source, dtype)

    def beside(self, names: Sequence[str]) -> dict[str, LM]:
        """Further readers as they are, in memory together with the one that `load` gave."""
        return {name: self._get((name, None, "best"), self._evaluation_dtype()) for name in names}

    def _get(self, source: Source, dtype: torch.dtype | None) -> LM:
        name, stage, _ = source
        if (key := self._key(source, dtype)) not in self._loaded:
            self._loaded[key] = LM.load(self._folder(*source), **self._options(name, dtype))
            self._loaded[key].name = f"{name} after {stage}" if stage else name
        return self._loaded[key]

    def _key(self, source: Source, dtype: torch.dtype | None) -> tuple[Source, str]:
        """What a model in memory is known by: what it is, and how it was loaded."""
        return source, repr(self._options(source[0], dtype)["loading"])

    def _evaluation_dtype(self) -> torch.dtype | None:
        return getattr(torch, self._dtype) if self._dtype else None

    def drop(self) -> None:
        """Forget the models in memory: their weights have changed, or their memory is needed."""
        self._loaded.clear()
        self._sources.clear()
        self.tidy()

    def tidy(self) -> None:
        """Give back the memory of what a stage has left, and keep the models."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wire(self, stage: str, checkpoint: Checkpoint = "best") -> Path:
        """The folder of the wire that a stage has trained. Raises as `load` does."""
        return self._checkpoint(stage, checkpoint)

    def together(self, names: Sequence[str], dtype: torch.dtype = torch.float32) -> dict[str, LM]:
        """Several models as they are, all in memory at once and no others: a wire's encoder and readers.

        Args:
            dtype: what they are held in; for models of 4 bits, what is not rounded is bfloat16.
        """
        wanted: list[Source] = [(name, None, "best") for name in names]
        keys = [self._key(source, dtype) for source in wanted]
        if set(keys) != set(self._loaded):
            kept = {key: self._loaded[key] for key in keys if key in self._loaded}
            self.drop()
            self._loaded = kept
        return {source[0]: self._get(source, dtype) for source in wanted}

    def prepare_sources(self, lm: LM, arms: Iterable[Arm]) -> None:
        """Load the source models of arms that `lm` is about to read over, as the study says.

        Raises `UserError` as `LM.load` does.
        """
        for name in dict.fromkeys(source_name(arm.wire) for arm in arms):
            if name is not None and name != lm.name:
                self._prepare(name, lm)

    def prepare_wires(self, models: Mapping[str, LM], readers: Iterable[str], paths: Iterable[str | Path]) -> None:
        """Let finished wires, read beside the one in training, use the models that are loaded for the training.

        Their other source models are loaded as the study says.

        Args:
            models: The models of the training, by name.
            readers: Which of them read.
            paths: The finished wires.

        Raises:
            UserError: As `LM.load`, or there is no such wire.
        """
        sources = [read_config(locate(str(path))).source for path in paths]
        for reader in (models[name] for name in readers):
            for model in models.values():
                share(model, reader)
            for name in sources:
                if name not in models:
                    self._prepare(name, reader)

    def _prepare(self, name: str, lm: LM) -> None:
        """Load a source for a reader, in the reader's dtype, if the study says how to load or ask it."""
        if name not in self._loading and name not in self._prompts:
            return
        if name not in self._sources:
            revision = self._loading.get(name, Loading()).revision
            folder = self._folders.get(name) or model_folder(name, revision)
            self._sources[name] = LM.load(folder, **self._options(name, lm.model.dtype))
            self._sources[name].name = name
        share(self._sources[name], lm)

    def _options(self, model: str, dtype: torch.dtype | None) -> dict[str, Any]:
        # What is loaded is a folder, which `model_folder` chose by the revision.
        loading = self._loading.get(model, Loading()).without_revision()
        loading = loading.with_dtype(torch.bfloat16 if loading.bits else dtype)
        return {"loading": loading, "prompts": self._prompts.get(model)}

    def _folder(self, model: str, stage: str | None, checkpoint: Checkpoint) -> Path:
        return self._folders[model] if stage is None else self._checkpoint(stage, checkpoint)

    def _checkpoint(self, stage: str, checkpoint: Checkpoint) -> Path:
        run, place = self._runs[stage], f"checkpoints/{checkpoint}"
        if not any(path.startswith(place) for path in run.record.artifacts):
            raise UserError(f"{run.folder}: {stage} ended without a {checkpoint} checkpoint; its log says why.")
        if changed := run.changed_artifacts(place):
            raise UserError(
                f"{run.folder}: {changed[0]} is gone or not as {stage} wrote it; "
                f"expected it unchanged, or a new run with --stage {stage} --fresh."
            )
        return run.folder / place
