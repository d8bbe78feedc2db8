"""A few logits that a checkpoint gave when it was saved, so that it can be asked for them again.

Hashes say that a file is what was written. Only a forward pass says that what is loaded from it, with today's
libraries, is the model that was saved. A probe asks one question over the wire and keeps some logits of the
answer's first token, for every reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.lm.prompts import Example

FOLDER = "probes"
"""Where a run keeps the probes of its checkpoints, `probes/NAME.json`."""
ASKED = Example(
    id="probe",
    group="probe",
    context="Ada Brown was born in 1957. Ada Brown lives in Tarn.",
    question="When was Ada Brown born?",
    answers=("1957",),
)
"""What every checkpoint is asked."""
_EVEN, _TOP = 48, 16  # logits evenly spread over the vocabulary, and the highest ones
_EXACT, _ROUNDED = 1e-3, 5e-2  # of the largest logit: merged adapters and other kernels round otherwise


class ReaderProbe(BaseModel):
    """Logits of one reader: `logits[i]` is that of token `ids[i]`."""

    model_config = ConfigDict(frozen=True)

    ids: tuple[int, ...]
    logits: tuple[float, ...]
    dtype: str

    @classmethod
    def of(cls, logits: Tensor) -> ReaderProbe:
        """From all logits of a position, shape `(V,)`, in the dtype that the reader computes in."""
        dtype = logits.dtype
        logits = logits.detach().float().cpu()
        even = torch.linspace(0, len(logits) - 1, min(_EVEN, len(logits))).round().long()
        ids = torch.cat([logits.topk(min(_TOP, len(logits))).indices, even]).unique()
        numbers = tuple(float(number) for number in logits[ids])
        return cls(ids=tuple(ids.tolist()), logits=numbers, dtype=str(dtype).removeprefix("torch."))

    def differs(self, logits: Tensor, *, rounded: bool = False) -> str | None:
        """How logits of the same position differ from these, as the end of a sentence; None if they are the same.

        Args:
            logits: all of them, shape `(V,)`.
            rounded: whether weights or arithmetic have 16 bits on either side.
        """
        if max(self.ids) >= len(logits):
            return f"has {len(logits):,} tokens in its vocabulary, expected more than {max(self.ids):,}"
        again = logits.detach().float().cpu()[list(self.ids)]
        then = torch.tensor(self.logits)
        scale = max(float(then.abs().max()), 1e-6)
        off = float((again - then).abs().max()) / scale
        allowed = _ROUNDED if rounded or self.dtype != "float32" else _EXACT
        if off <= allowed:  # false for NaN too
            return None
        found = f"gives logits that differ from those at saving by {off:.2g} of the largest"
        return f"{found}, expected at most {allowed:g}"


class CheckpointProbe(BaseModel):
    """A checkpoint's probe, by reader.

    Attributes:
        device: where the checkpoint was when it was saved.
        readers: by name.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    readers: dict[str, ReaderProbe]


@torch.no_grad()
def keep(
    ask: Callable[[], Mapping[str, Tensor]],
    device: torch.device,
    folder: Path,
    name: str,
    log: Callable[[str], None],
) -> None:
    """Write the probe of a run's checkpoint, or log why there is none.

    Args:
        ask: returns the logits `(V,)` of each reader after `ASKED`, in the dtype that it computes in.
        device: where it computes.
        folder: the run's.
        name: the checkpoint's.
        log: called with one sentence.
    """
    try:
        first, second = ask(), ask()
    except (UserError, RuntimeError, ValueError) as error:
        # What was trained is saved; that it cannot be asked this question must not lose it.
        log(f"no logits are kept of {name}: {str(error).splitlines()[0] if str(error) else error!r}")
        return
    if not all(torch.allclose(first[reader], second[reader], rtol=1e-4, atol=1e-4) for reader in first):
        log(f"no logits are kept of {name}: two passes gave different ones")  # a wire that draws at random
        return
    readers = {reader: ReaderProbe.of(logits) for reader, logits in first.items()}
    (folder / FOLDER).mkdir(exist_ok=True)
    text = CheckpointProbe(device=device.type, readers=readers).model_dump_json(indent=1)
    write_atomically(folder / FOLDER / f"{name}.json", text + "\n")


def read(folder: Path, name: str) -> CheckpointProbe | None:
    """The probe of a run's checkpoint; None where an older version saved none.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / FOLDER / f"{name}.json"
    try:
        return CheckpointProbe.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{path} cannot be read, expected the logits of a checkpoint.") from error


def names(folder: Path) -> Iterator[str]:
    """The checkpoints of a run, `best` first."""
    places = sorted(place.name for place in (folder / "checkpoints").glob("*") if place.is_dir())
    yield from (name for name in places if not name.startswith(".") and name != "last")
