"""`Workload`: what a stage computes, launches, moves and keeps; and how long an offer takes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentwire.estimates.offers import Offer, Offers

GIB = 2**30
SHARE = 0.9
"""Of a GPU's memory, what a stage may take: allocators leave gaps, and kernels need room."""


@dataclass(frozen=True)
class Workload:
    """What a stage needs on any machine.

    Attributes:
        kind: of the stage.
        units: optimizer steps, or answers.
        tokens: columns that are read in all of them, padding included.
        operations: floating-point operations of matrix products and attention.
        passes: of single layers: a forward pass counts once, a backward pass twice.
        decode_passes: the same in single steps of generation.
        moved: bytes of memory that steps of decoding and of the optimizer read and write.
        written: bytes to the disk.
        memory: bytes on the GPU at the peak.
        resident: the part of them that is there between steps.
        passages: contexts that a host prepares for a wire's steps.
    """

    kind: Literal["finetune", "wire", "evaluate"]
    units: int
    tokens: float
    operations: float
    passes: float
    decode_passes: float
    moved: float
    written: float
    memory: float
    resident: float
    passages: float = 0.0
    remark: str = ""

    def seconds(self, offer: Offer, offers: Offers) -> float:
        """The base estimate on an offer, without the setup of the machine."""
        launch, reached = offers.launch_of(offer), offers.efficiency_of(offer)
        share, each = float(getattr(reached, self.kind)), float(getattr(launch, self.kind))
        return (
            self.start_seconds(offers)
            + self.operations / (1e12 * offer.tflops * share)
            + 1e-3 * (self.passes * each + self.decode_passes * launch.decode + self.passages * launch.passage)
            + self.moved / (1e12 * offer.bandwidth_tbs)
            + self.written / (1e9 * offer.disk_gbs)
        )

    def start_seconds(self, offers: Offers) -> float:
        """What passes before the first step."""
        return 60 * float(getattr(offers.stage_start, self.kind))

    def fits(self, offer: Offer) -> bool:
        """Whether it fits into one GPU of an offer."""
        return self.memory <= SHARE * GIB * offer.memory_gib
