"""Grow an embedded model into a folder of the user's, with the card that says what it can do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from latentwire.errors import UserError
from latentwire.training.growing import card
from latentwire.training.growing.grow import Report, grow
from latentwire.training.growing.growth_data import recipe_of


def regrow(name: str, seeds: Sequence[int], folder: Path, report: Report, log: Callable[[str], None]) -> None:
    """Grow and measure an embedded model in `folder`, which appears only once everything is done.

    Args:
        name: The embedded model.
        seeds: The first is the model's; the others are grown for its card.
        folder: Where to.
        report: As in `grow`.
        log: Called with one sentence at a time.

    Raises:
        UserError: There is no such model, or the folder exists already or cannot be made.
    """
    recipe = asdict(recipe_of(name))
    if folder.exists():
        raise UserError(f"out: {folder} exists already, expected a folder to be made.")
    partial = [folder.with_name(f".{folder.name}.partial-{seed}") for seed in seeds]
    for place in partial:
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir()
        except OSError as error:
            raise UserError(f"out: {folder.parent} cannot be written into: {error.strerror}.") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for seed, place in zip(seeds, partial, strict=True):
        grown = grow(name, seed, place, device, report)
        card.write(place, name, seed, recipe, grown, device)
        log(f"seed {seed}: grown in {grown['seconds']:.0f} s")
    card.add_seeds(partial[0], partial[1:])
    partial[0].rename(folder)
    for place in partial[1:]:
        shutil.rmtree(place)
