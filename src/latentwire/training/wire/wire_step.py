"""One step of a wire's training, as a module whose forward is all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentwire.lm.model import LM
from latentwire.lm.tapping import depth
from latentwire.training.objectives import Term
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.training_step import Step
from latentwire.training.wire.evidence import Encoded, Evidence
from latentwire.training.wire.part import Part
from latentwire.training.wire.teacher import Teacher
from latentwire.wires.latent.modules import LatentModules


class WireStep(Step):
    """A wire, its readers and the objectives on one part.

    Args:
        modules: the wire.
        readers: as they are trained, by name.
        teachers: the same readers as they were before training.
        objectives: the terms of the loss.
        adapting: running numbers that scale them.
    """

    def __init__(
        self,
        modules: LatentModules,
        readers: Mapping[str, LM],
        teachers: Mapping[str, Teacher],
        objectives: Sequence[Term],
        adapting: Adapting,
    ) -> None:
        super().__init__(objectives, adapting)
        self.modules_ = modules
        self._readers, self._teachers = dict(readers), dict(teachers)
        self._taps = {
            name: sorted({layer for objective in objectives for layer in objective.taps(depth(lm))})
            for name, lm in readers.items()
        }

    def evidence(self, part: Part) -> list[Evidence]:
        """One for each reader; all share the message."""
        encoded = Encoded(self.modules_, part)
        best = self.adapting.best
        return [
            Evidence(encoded, name, lm, self._teachers[name], self._taps[name], best)
            for name, lm in self._readers.items()
        ]

    def kept(self, part: Part) -> list[object]:
        """Run the passes whose activations a step keeps for its backward pass; the teacher's keep none."""
        passes: list[object] = []
        for evidence in self.evidence(part):
            passes.append(evidence.student)
            passes += [term.loss(evidence) for term in self._objectives if not term.needs_teacher]
        return passes

    def ahead(self, contexts: Sequence[str]) -> None:
        """`LatentModules.ahead` of the wire, and of the finished wires that objectives imitate."""
        self.modules_.ahead(contexts)
        for teacher in self._teachers.values():
            teacher.ahead(contexts)
