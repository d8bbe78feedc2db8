"""A source that drafts is one that reads its own words after the context, the same words whoever asks."""

from __future__ import annotations

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.training.data.world import WorldPassages
from latentwire.training.objectives import Align, AnswerCrossEntropy, FlowMatching
from latentwire.wires.latent import drafts as draft
from latentwire.wires.latent.adapters import DeepPrefixConfig, FuseConfig
from latentwire.wires.latent.drafts import Drafts
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.encoders.encoder import EncoderConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.ridge import Ridge
from latentwire.wires.latent.select import Anchors
from tests.support.bridge_training import train
from tests.support.bridges import CONTEXTS, SMALL, encoder
from tests.support.latent_wires import shaken

DRAFT = {"draft": True, "draft_tokens": 6}


def encoders(**changes: object) -> list[EncoderConfig]:
    return [
        encoder(**changes),
        SelfConfig(rank=2, gives="both", select=Anchors(ratio=3), **changes),  # type: ignore[arg-type]
    ]


def wire(source: LM, reader: LM, made: EncoderConfig) -> LatentModules:
    torch.manual_seed(0)
    config = LatentConfig(source=source.name, encoder=made, adapters={reader.name: DeepPrefixConfig(hidden=8)})
    return shaken(LatentModules(config, {reader.name: reader}, source))


def written(lm: LM, context: str) -> str:
    """By the model's own `generate`."""
    ids = [*lm.format.before(context, lm), *lm.format.ending(lm)]
    made = lm.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
    ends = [at for at, token in enumerate(made) if token in lm.eos_ids]
    return lm.decode(made[: ends[0] if ends else None])


def test_a_draft_is_the_sources_own_continuation(source: LM) -> None:
    drafted = Drafts(source, 6)(CONTEXTS)
    for context, found in zip(CONTEXTS, drafted, strict=True):
        assert found == f"{context}\nAnswer:{written(source, context)}"
    assert len({each.removeprefix(context) for each, context in zip(drafted, CONTEXTS, strict=True)}) > 1
    assert Drafts(source, 0)(CONTEXTS) is CONTEXTS


@pytest.mark.parametrize("at", [0, 1], ids=["source", "self"])
def test_latents_are_those_of_the_context_with_its_draft(at: int, source: LM, reader: LM) -> None:
    with_draft = wire(source, reader, encoders(**DRAFT)[at])
    without = wire(source, reader, encoders()[at])
    ours, theirs = with_draft(CONTEXTS), without(Drafts(source, 6)(CONTEXTS))
    assert torch.equal(ours.valid, theirs.valid)
    torch.testing.assert_close(ours.flat(), theirs.flat())
    assert not torch.equal(ours.valid, without(CONTEXTS).valid)
    # Adapters of the encoder write nothing: the draft is the source's own.
    alone = with_draft(CONTEXTS[2:])
    count = int(alone.valid.sum())
    torch.testing.assert_close(alone.flat()[0, :count], ours.flat()[2, :count], atol=1e-5, rtol=1e-5)


def test_drafts_are_kept_in_training_and_written_each_time_in_reading(
    source: LM, reader: LM, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    honest = Drafts._written
    monkeypatch.setattr(Drafts, "_written", lambda self, left: (times.append(len(left)), honest(self, left))[1])
    made = wire(source, reader, encoder(**DRAFT))
    times.clear()
    for _ in range(2):
        made([*CONTEXTS, CONTEXTS[0]])
    assert times == [3]
    made.save(tmp_path)
    source.name = reader.name  # so that no other model is loaded
    bound = made.for_reading()
    times.clear()
    for _ in range(2):
        bound(["Another."])
    assert times == [1, 1]


def test_a_long_context_leaves_the_drafts_of_others_unchanged(source: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest drafts go, and those only where there are too many."""
    monkeypatch.setattr(draft, "REMEMBERED", 3)
    kept = Drafts(source, 2)
    monkeypatch.setattr(kept, "_written", lambda left: [f" {len(each)}" for each in left])
    long = "a" * 5_000
    assert kept(["b", "bb", long]) == ["b 1", "bb 2", f"{long} 5000"]
    assert list(kept._kept) == ["b", "bb", long]
    kept(["bbb", "bb"])
    assert list(kept._kept) == ["bb", long, "bbb"]


def test_a_bridge_that_drafts_is_trained_and_read(tmp_path) -> None:
    found, _ = train(tmp_path, wire=DRAFT, data=WorldPassages(tiers=("one_hop",)))
    assert found.steps == 3
    assert Latent(path=str(tmp_path / "checkpoints" / "best")).config.encoder.draft


def test_what_lays_latents_over_the_text_is_refused_with_a_draft(tmp_path) -> None:
    """A draft's latents stand for no token of the reader's text: their aims would be other tokens'."""
    with pytest.raises(UserError, match="align found draft: true, expected false"):
        train(tmp_path / "align", "embeddings", wire=DRAFT, objectives=(AnswerCrossEntropy(), Align()))
    flow = {"wire": DRAFT | {"width": 24, "translator": SMALL}, "objectives": (FlowMatching(teacher="prompt"),)}
    with pytest.raises(UserError, match="flow found draft: true, expected false"):
        train(tmp_path / "flow", "embeddings", **flow)
    with pytest.raises(UserError, match="ridge: found draft: true, expected false"):
        train(tmp_path / "ridge", "projected", wire=DRAFT, ridge=Ridge())


def test_a_draft_before_an_adapter_that_counts_the_readers_tokens_is_refused(source: LM) -> None:
    made = encoder(translator=None, states="keys", select=Anchors(ratio=1), **DRAFT)
    config = LatentConfig(
        source=source.name, encoder=made, adapters={source.name: FuseConfig(hidden=8)}, layout="text"
    )
    with pytest.raises(UserError, match="format: found prompts"):
        LatentModules(config, {source.name: source}, source)
