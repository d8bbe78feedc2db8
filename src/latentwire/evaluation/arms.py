"""An arm: a wire as it is evaluated, with the variant of the examples and the model that reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

from latentwire.errors import UserError, one_of
from latentwire.evaluation.encoded import EncodedExample, encode_all, reader_of
from latentwire.evaluation.variants import Variant, counterfactual, deranged, partners
from latentwire.lm.decoding import Decoding, DecodingSettings
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.base import Task
from latentwire.wires import CONTROLS, Wire, split
from latentwire.wires import parse as parse_wire
from latentwire.wires.latent import hub_wires
from latentwire.wires.latent.latent_wire import Latent, LatentWireBase, share
from latentwire.wires.relay import Relay

VARIANTS: tuple[Variant, ...] = get_args(Variant)
SAMPLE = 64
"""How many contexts, each of a different group, a wire is calibrated on before a task; `mean` averages them."""


@dataclass(frozen=True)
class Arm:
    """A wire as it is evaluated, written `WIRE[:VARIANT][@READER]`: `embedded:heron-4x:deranged@embedded:wren`.

    Attributes:
        wire: delivers the contexts. What is done to its message (`zero`, `mean`, `4bit`) belongs to it.
        variant: what is done to the examples.
        reader: the model that reads, where there are several; None for the one that is evaluated.
        decoding: how its answers are generated, where that is not as the task says.

    Example:
        >>> parse("nth,ratio=4:deranged").variant
        'deranged'
    """

    wire: Wire
    variant: Variant | None = None
    reader: str | None = None
    decoding: DecodingSettings | None = None

    @classmethod
    def of(cls, arm: Wire | Arm) -> Arm:
        """An arm as it is; a wire as an arm without variant."""
        return arm if isinstance(arm, Arm) else cls(arm)

    @property
    def label(self) -> str:
        """As the command line writes it."""
        variant = f":{self.variant}" if self.variant else ""
        settings = {} if self.decoding is None else self.decoding.model_dump(exclude_none=True)
        decoded = f" [{', '.join(f'{name}={value}' for name, value in settings.items())}]" if settings else ""
        return self.wire.label + variant + (f"@{self.reader}" if self.reader else "") + decoded

    @property
    def leaks(self) -> bool:
        """Whether a scored token can see its own label."""
        return self.wire.leaks

    def bind(self, lm: LM) -> Self:
        """This arm with its wire bound to the reader; see `Wire.bind`."""
        return replace(self, wire=self.wire.bind(lm))

    def how(self, task: Task, begin_suppress_tokens: tuple[str, ...] = ()) -> Decoding:
        """How this arm's answers to a task are generated: the arm's settings go over those of the task.

        Raises:
            UserError: the settings do not go together.
        """
        own = Decoding(
            max_new_tokens=task.max_new_tokens, stop=task.stop, begin_suppress_tokens=begin_suppress_tokens
        )
        return (task.decoding or DecodingSettings()).then(self.decoding).over(own)

    def reading(self, lm: LM, task: Task) -> LM:
        """The model that reads over this (bound) arm, with the task's own prompt format where it has one."""
        return reader_of(self.wire.reader(lm), task)

    def prepared(self, lm: LM, task: Task, items: Sequence[EncodedExample]) -> tuple[Self, list[EncodedExample]]:
        """This (bound) arm, calibrated on the task's contexts, and its examples in order.

        Examples that its variant cannot change are left out.

        Raises:
            UserError: the variant can change no example, or there are too few contexts to calibrate the wire on.
        """
        reader, first = reader_of(lm, task), dict[str, Prompt]()
        for item in items:
            first.setdefault(item.example.group, item.prompts[0])
        sample = dict(zip(first, self.wire.carried(list(first.values())[:SAMPLE], reader), strict=False))
        akin = {
            text: sample[item.example.group]
            for item in items
            if item.example.group in sample
            for text in self.wire.carried(item.prompts, reader)
        }
        calibrated = replace(self, wire=self.wire.sampled(list(sample.values()), akin))
        if self.variant is None:
            return calibrated, list(items)
        examples = [item.example for item in items]
        if self.variant == "deranged" and self.wire.keeps_text:
            others = partners(examples, task.name, whole=self.wire.question_aware)
            pairs = [(example, other) for example, other in zip(examples, others, strict=True) if other]
            return calibrated, _sending(
                [example for example, _ in pairs],
                [example for example, _ in pairs],
                [other.example for _, other in pairs],
                reader,
            )
        change = deranged if self.variant == "deranged" else counterfactual
        changes = zip(examples, change(examples, task.name), strict=True)
        changed = [(old, new) for old, new in changes if new is not None]
        if self.wire.keeps_text:
            # Text that the reader sees itself would bring the changed answer without the message.
            return calibrated, _sending(
                [old for old, _ in changed],
                [replace(new, context=old.context) for old, new in changed],
                [new for _, new in changed],
                reader,
            )
        encoded = encode_all([new for _, new in changed], reader)
        return calibrated, [replace(item, original=old) for item, (old, _) in zip(encoded, changed, strict=True)]

    def partner_types(self, examples: Sequence[Example], task: str) -> dict[str, int]:
        """How many examples are `deranged` with a partner that wants the `same type` of answer, how many with one
        of `any type`, and how many have `none`; empty for arms without this variant."""
        if self.variant != "deranged":
            return {}
        found = partners(examples, task, whole=self.wire.keeps_text and self.wire.question_aware)
        same = sum(partner is not None and partner.same_type for partner in found)
        none = sum(partner is None for partner in found)
        return {"same type": same, "any type": len(found) - same - none, "none": none}


def bind_all(arms: Sequence[Arm], lm: LM) -> list[Arm]:
    """The arms bound to a reader. Those of one wire share its modules, and encode each context once."""
    known: dict[str, LatentWireBase] = {}
    bound = []
    for arm in arms:
        if not isinstance(arm.wire, LatentWireBase):
            bound.append(arm.bind(lm))
            continue
        plain = arm.wire.plain()
        wire = known.get(repr(plain)) or known.setdefault(repr(plain), plain.bind(lm))
        bound.append(replace(arm, wire=arm.wire.over(wire)))
    return bound


def _sending(
    originals: Sequence[Example], asked: Sequence[Example], of: Sequence[Example], reader: LM
) -> list[EncodedExample]:
    """Examples asked over the messages that others' contexts and questions make."""
    sent = [Prompt(context=each.context, question=each.question) for each in of]
    encoded = encode_all(asked, reader, sent)
    return [replace(item, original=old) for item, old in zip(encoded, originals, strict=True)]


def relay_sources(
    readers: Mapping[str | None, LM], arms: Sequence[Arm], prompts: PromptSettings | None
) -> list[LM]:
    """Load the models that write for relays with the readers' prompt settings; to be held while arms read.

    Raises:
        UserError: as `LM.load`.
    """
    loaded = []
    for arm in arms if prompts is not None else ():
        lm = readers[arm.reader]
        if isinstance(arm.wire, Relay) and arm.wire.source != lm.name:
            loaded.append(LM.load(arm.wire.source, dtype=lm.model.dtype, device=str(lm.device), prompts=prompts))
            share(loaded[-1], lm)
    return loaded


def parse_all(texts: Sequence[str | Wire | Arm], model: str, *, controls: bool = False) -> list[Arm]:
    """Arms as the command line writes them, or as they are, each once.

    Args:
        texts: spellings, wires or arms.
        model: the reader where none is named.
        controls: add what shows for a trained wire how much crosses it, and whether its message is what crosses:
            `text`, `none`, `deranged`, `mean` and `counterfactual`.

    Example:
        >>> [arm.label for arm in parse_all(["embedded:heron-4x"], "embedded:heron", controls=True)][:2]
        ['text', 'none']

    Raises:
        UserError: as `parse`.
    """
    named = [parse(text) if isinstance(text, str) else Arm.of(text) for text in texts]
    # The model by its name is the model: its arms are compared with those that name nobody.
    arms = [replace(arm, reader=None) if arm.reader == model else arm for arm in named]
    if controls:
        readers = dict.fromkeys(arm.reader for arm in arms if isinstance(arm.wire, Latent))
        arms = [Arm(parse_wire(plain), reader=reader) for reader in readers for plain in ("text", "none")] + arms
        arms = [each for arm in arms for each in (arm, *_controls(arm))]
    return list({arm.label: arm for arm in arms}.values())


def _controls(arm: Arm) -> list[Arm]:
    if not isinstance(arm.wire, Latent) or arm.variant is not None or arm.wire.control is not None:
        return []
    mean = arm.wire.model_copy(update={"control": "mean"})
    return [replace(arm, variant="deranged"), replace(arm, wire=mean), replace(arm, variant="counterfactual")]


def parse(text: str) -> Arm:
    """An arm from `WIRE[:VARIANT][@READER]`; the variant may also follow the reader.

    An existing folder is taken whole, whatever characters its name holds. After a wire of the hub, `@` is its
    revision where what follows has no slash and no colon.

    Example:
        >>> parse("text@embedded:wren").reader
        'embedded:wren'

    Raises:
        UserError: an unknown wire or variant (the nearest valid one is named), a second variant or reader, or no
            reader after `@`.
    """
    text = text.strip()
    kept = _folder(text) or hub_wires.named(text)
    rest, at, reader = text[len(kept) :].partition("@")
    if at and not reader.partition(":")[0]:
        raise UserError(f"wire: found {text!r}, expected a model after '@'.")
    rest, before = _words(kept, rest)
    reader, after = _words("", reader)
    if "@" in reader and not Path(reader).exists():
        raise UserError(f"wire: found {text!r}, expected one reader, or an existing folder.")
    spec, unknown = split(kept + rest) if rest or not kept else (kept, "")
    if unknown:
        parse_wire(spec)
    for named, word in ((spec, unknown), _unread(reader)):
        if word:
            valid = one_of(word, (*VARIANTS, *CONTROLS))
            raise UserError(f"wire: found {word!r} after {named}, expected {valid}.")
    variants = [each for each in VARIANTS if each in (*before, *after)]
    controls = [each for each in CONTROLS if each in (*before, *after)]
    if len(before) + len(after) > len(variants[:1]) + len(controls[:1]):
        found = " and ".join([*before, *after])
        raise UserError(f"wire: found {found} in {text!r}, expected one variant and one control at most.")
    return Arm(parse_wire(":".join([spec, *controls])), variants[0] if variants else None, reader or None)


def _folder(text: str) -> str:
    """The beginning of a text up to the end of the longest folder that it names, as a wire or as an option."""
    ends = [at for at, letter in enumerate(text) if letter in ":@,"]
    for end in [len(text), *reversed(ends)]:
        begun = text[:end]
        for name in (begun, begun.rpartition("=")[2]):
            if name not in ("", "embedded") and Path(name).is_dir():
                return begun
    return ""


def _words(kept: str, text: str) -> tuple[str, list[str]]:
    """A text without the variants and controls that it ends with, and these in order. kept: what precedes it."""
    words: list[str] = []
    while not Path(text).exists():
        spec, colon, word = text.rpartition(":")
        if not colon or word not in (*VARIANTS, *CONTROLS) or (kept + spec) in ("", "embedded"):
            break
        text, words = spec, [word, *words]
    return text, words


def _unread(reader: str) -> tuple[str, str]:
    """A reader and the word after its last colon; "" where that colon belongs to its name."""
    name, _, word = reader.rpartition(":")
    return (name, word) if name not in ("", "embedded") and not Path(reader).exists() else (reader, "")
