"""Killed, on a full disk or told to stop at any file operation, the same command comes to the same results."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.crashes import MODES, Mode, strikes

SEED = 17
Pairs = Sequence[tuple[int, Mode]]


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def problems(name: str, folder: Path, choose=lambda every: every) -> tuple[int, list[str]]:
    struck = COMMANDS[name](folder)
    tried = list(strikes(struck.work, struck.results, folder / "struck", choose))
    return len(tried), [str(each) for each in tried if each.problem]


SAMPLE: dict[str, tuple[Mode, ...]] = {
    "finetuning": ("kill", "term"),
    "wire": ("full",),
    "evaluation": ("torn", "term"),
    "export": MODES,
}
"""The modes of each command that the normal suite tries, each at one operation."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ended_at_some_file_operations_comes_to_the_same_results(name: str, tmp_path: Path) -> None:
    def sample(every: Pairs) -> Pairs:
        draw = random.Random(SEED)
        return [draw.choice([pair for pair in every if pair[1] == mode]) for mode in SAMPLE[name]]

    assert problems(name, tmp_path, sample) == (len(SAMPLE[name]), [])


@pytest.mark.sweep
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ended_at_any_file_operation_comes_to_the_same_results(name: str, tmp_path: Path) -> None:
    count, found = problems(name, tmp_path)
    assert found == []
    assert count > 20
