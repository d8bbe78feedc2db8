"""A training that is killed between two steps, as a kill from outside would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from latentwire.training import loop


class Killed(BaseException):
    """Nothing of the package catches it."""


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """The training inside the block ends after this many steps, before it can tidy up."""
    honest = loop.Training._train_step

    def die(self: loop.Training) -> None:
        if self.done == steps:
            raise Killed
        honest(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_train_step", die)
        with pytest.raises(Killed):
            yield
