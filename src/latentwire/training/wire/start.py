"""Where a wire's training starts: new modules, a finished wire, or one that gets one more reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Size, Tensor

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import departure
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent import checkpoint
from latentwire.wires.latent.modules import LatentModules, key_of, read_config
from latentwire.wires.latent.trained_readers import ReaderConfig, attach, restore, saved


def begin(
    modules: LatentModules,
    readers: Mapping[str, LM],
    settings: WireTraining,
    start: Path | None,
    log: Callable[[str], None],
) -> tuple[dict[str, LM], ReaderConfig]:
    """Give the modules the weights that training starts from.

    Readers of the wire to start from that were frozen may learn from now on. Readers that it does not have start
    with new adapters beside the others, which is logged. With `new_reader`, only that reader's adapter is trained.

    Args:
        modules: the wire, changed in place.
        readers: the frozen readers, by name.
        start: the folder of a finished wire, or None.

    Returns:
        The readers as they are trained, and what is trained of them.

    Raises:
        UserError: the readers of the wire to start from were trained with other adapters than these or asked in
            another prompt format, or the new reader is to be added to a wire with other settings.
    """
    config = ReaderConfig(lora=settings.reader_lora, prefix=settings.reader_prefix)
    if start is None:
        return attach(modules, readers, config), config
    before, formats = saved(start), read_config(start).formats or {}
    for name, lm in readers.items():
        if found := departure(lm.format, formats.get(name), f"start: {start}, over which {name} reads,"):
            raise UserError(
                f"{found.rstrip('.')}; expected the prompts that it was trained with (prompts: {name})."
            )
    if settings.new_reader is not None:
        return _add(modules, readers, settings.new_reader, before, start)
    if not before.nothing and config != before.model_copy(update={"without": ()}):
        raise UserError(
            f"start: found a wire whose readers were trained with {before.model_dump(exclude_none=True)}, "
            "expected the same reader_lora and reader_prefix."
        )
    new = _anew(modules, start)
    for name in new:
        log(f"the adapter of {name} starts anew")
    if not before.nothing:
        return restore(modules, readers, start, new=new), before
    modules.restore(start, new=new)
    return attach(modules, readers, config), config


def _anew(modules: LatentModules, start: Path) -> list[str]:
    """The readers for which a wire has no adapter, or one of another kind or size.

    Where the wire's readers were trained too, their own weights belong to their adapters: none is replaced.
    """
    known, trained = read_config(start).adapters, not saved(start).nothing
    there, wanted = _shapes(checkpoint.read(start)), _shapes(modules.pieces())

    def fits(name: str) -> bool:
        if trained or key_of(name) not in modules.adapters:
            return True
        own = f"adapters.{key_of(name)}."
        old, new = ({key: shape for key, shape in of.items() if key.startswith(own)} for of in (there, wanted))
        return known[name].kind == modules.config.adapters[name].kind and old == new

    return [name for name in modules.config.adapters if name not in known or not fits(name)]


def _shapes(pieces: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: piece.shape for name, piece in pieces.items()}


def _add(
    modules: LatentModules, readers: Mapping[str, LM], new: str, before: ReaderConfig, start: Path
) -> tuple[dict[str, LM], ReaderConfig]:
    known = read_config(start)
    rest = {name: adapter for name, adapter in modules.config.adapters.items() if name != new}
    recorded = {"fingerprints": known.fingerprints, "formats": known.formats}
    wanted = modules.config.model_copy(update={"adapters": rest, **recorded})
    # One configuration may leave to its layout what the other writes out.
    mine, theirs = (config.model_copy(update={"positions": config.spread}) for config in (wanted, known))
    if new not in known.adapters and mine != theirs:
        field = next(name for name in type(known).model_fields if getattr(mine, name) != getattr(theirs, name))
        raise UserError(
            f"wire.{field}: found {getattr(wanted, field)}, expected {getattr(known, field)} as in {start}, to "
            f"which {new} is added as one more reader."
        )
    config = before if before.nothing else before.model_copy(update={"without": (*before.without, new)})
    modules.restore(start, new=[new])
    modules.freeze_all_but(new)
    return dict(readers), config
