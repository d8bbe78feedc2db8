"""What a wire's training begins with: nothing, a finished wire, or one that gets one more reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Size, Tensor

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import departure
from latentwire.training.wire.config import Fit
from latentwire.wires.latent import checkpoint
from latentwire.wires.latent.modules import LatentModules, key_of, read_config
from latentwire.wires.latent.trained_readers import ReaderConfig, attach, restore, saved


def begin(
    modules: LatentModules,
    readers: Mapping[str, LM],
    settings: Fit,
    start: Path | None,
    log: Callable[[str], None],
) -> tuple[dict[str, LM], ReaderConfig]:
    """Make the modules what training begins with; returns the readers as they learn, and what they learn.

    Readers of a wire in which they have learned nothing begin to learn. Readers that the wire to start from does
    not have begin anew beside the others, which is logged. A `new_reader` learns its adapter alone, and nothing
    else learns.

    Raises:
        UserError: the readers of the wire to start from have learned other pieces than these, or it is another
            wire than the one that the new reader is to be added to.
    """
    config = ReaderConfig(lora=settings.reader_lora, prefix=settings.reader_prefix)
    if start is None:
        return attach(modules, readers, config), config
    before, formats = saved(start), read_config(start).formats or {}
    for name, lm in readers.items():
        if remark := departure(lm.format, formats.get(name), f"{start}, over which {name} reads,"):
            log(remark)
    if settings.new_reader is not None:
        return _add(modules, readers, settings.new_reader, before, start)
    if not before.nothing and config != before.model_copy(update={"without": ()}):
        raise UserError(
            f"start: found a wire whose readers have learned {before.model_dump(exclude_none=True)}, expected "
            "reader_lora and reader_prefix to be the same."
        )
    new = _anew(modules, start)
    for name in new:
        log(f"the adapter of {name} begins anew")
    if not before.nothing:
        return restore(modules, readers, start, new=new), before
    modules.restore(start, new=new)
    return attach(modules, readers, config), config


def _anew(modules: LatentModules, start: Path) -> list[str]:
    """The readers whose adapters a wire does not bring: it does not have them, or of another kind or size.

    Of a wire whose readers have learned, what they have learned belongs to their adapters: none is another's.
    """
    known, learned = read_config(start).adapters, not saved(start).nothing
    found, wanted = _shapes(checkpoint.read(start)), _shapes(modules.pieces())

    def fits(name: str) -> bool:
        if learned or key_of(name) not in modules.adapters:
            return True
        mine = f"adapters.{key_of(name)}."
        pieces = [{each: shape for each, shape in of.items() if each.startswith(mine)} for of in (found, wanted)]
        return known[name].kind == modules.config.adapters[name].kind and pieces[0] == pieces[1]

    return [name for name in modules.config.adapters if name not in known or not fits(name)]


def _shapes(pieces: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: each.shape for name, each in pieces.items()}


def _add(
    modules: LatentModules, readers: Mapping[str, LM], new: str, before: ReaderConfig, start: Path
) -> tuple[dict[str, LM], ReaderConfig]:
    known = read_config(start)
    rest = {name: each for name, each in modules.config.adapters.items() if name != new}
    recorded = {"fingerprints": known.fingerprints, "formats": known.formats}
    wanted = modules.config.model_copy(update={"adapters": rest, **recorded})
    # What a wire leaves to its layout is what another one writes out.
    mine, theirs = (each.model_copy(update={"positions": each.spread}) for each in (wanted, known))
    if new not in known.adapters and mine != theirs:
        field = next(each for each in type(known).model_fields if getattr(mine, each) != getattr(theirs, each))
        raise UserError(
            f"wire.{field}: found {getattr(wanted, field)}, expected {getattr(known, field)} as in {start}: the "
            f"wire there with {new} as one reader more."
        )
    config = before if before.nothing else before.model_copy(update={"without": (*before.without, new)})
    modules.restore(start, new=[new])
    modules.freeze_all_but(new)
    return dict(readers), config
