"""The untrained harness: every column kept, nothing learned, and a reader cannot tell latents from text."""

import pytest
import torch

from latentwire.lm.prefix import pad_rows
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.latent.select import Anchors, LearnedSlots, Mean
from tests.support.models import tiny_lm

CONTEXTS = ["Ada lives in the old town by the river.", "The heron stood.", "one two three four five six seven"]
QUESTIONS = ["Where does Ada live?", "Who stood?", "What follows?"]
ANSWERS = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
EVERY_COLUMN = SelfConfig(select=Anchors(ratio=1), mask="causal", rank=0, marks=False)
SELECTS = [Anchors(ratio=3), Mean(ratio=3), LearnedSlots(slots=4)]


def wire(lm, encoder=EVERY_COLUMN):
    return LatentModules(
        LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()}), {lm.name: lm}, lm
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "gpt_neox"])
@torch.no_grad()
def test_every_key_and_value_kept_reads_as_the_text_itself(family):
    lm = tiny_lm(family)
    modules = wire(lm)
    shared = modules.deliver(modules(CONTEXTS), lm.name)
    after = [lm.format.after(question, lm) for question in QUESTIONS]
    latent = lm.forced(shared.ask(after, lm), pad_rows(ANSWERS, -100)).hidden
    text = Shared.of_tokens([lm.format.before(context, lm) for context in CONTEXTS], "cpu")
    torch.testing.assert_close(
        latent, lm.forced(text.ask(after, lm), pad_rows(ANSWERS, -100)).hidden, atol=1e-4, rtol=0
    )
    whole = [lm.format.tokens(c, q, lm).ids for c, q in zip(CONTEXTS, QUESTIONS, strict=True)]
    assert whole == [lm.format.before(c, lm) + b for c, b in zip(CONTEXTS, after, strict=True)]


@pytest.mark.parametrize("select", SELECTS, ids=lambda s: s.kind)
@torch.no_grad()
def test_the_latents_of_a_context_do_not_depend_on_its_batch(select):
    lm = tiny_lm()
    torch.manual_seed(0)
    modules = wire(lm, SelfConfig(select=select, rank=2)).eval()
    together = modules(CONTEXTS)
    for row, context in enumerate(CONTEXTS):
        alone = modules([context])
        count = int(alone.valid.sum())
        assert int(together.valid[row].sum()) == count
        assert together.positions[row][together.valid[row]].tolist() == alone.positions[0][alone.valid[0]].tolist()
        torch.testing.assert_close(
            together.flat()[row][together.valid[row]], alone.flat()[0][alone.valid[0]], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("select", "expected"), [(Anchors(ratio=4), 1 + 5), (Mean(ratio=4), 1 + 5), (LearnedSlots(slots=7), 7)]
)
def test_a_context_of_twenty_one_tokens_becomes_the_expected_number_of_latents(select, expected):
    width = 21 + select.slots
    weights = select.weights(torch.ones(1, width, dtype=torch.bool))
    assert int((weights.sum(-1) > 0).sum()) == expected
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, expected))


@torch.no_grad()
def test_questions_side_by_side_read_as_each_alone():
    lm = tiny_lm()
    modules = wire(lm)
    shared = modules.deliver(modules(CONTEXTS[:1]), lm.name)
    pairs = [(lm.format.after(q, lm), a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    questions = Questions.of([pairs], "cpu")
    found = questions.forced(shared, lm)
    assert questions.place.tolist() == [0, 1, 2] * 3
    alone = [lm.forced(shared.ask([q], lm), torch.tensor([a])).hidden[0] for q, a in pairs]
    torch.testing.assert_close(found.hidden, torch.cat(alone), atol=1e-5, rtol=0)
    assert found.labels.tolist() == [token for answer in ANSWERS for token in answer]


def test_a_context_of_one_token_is_one_latent_alone_and_in_a_batch():
    alone = Anchors(ratio=4).weights(torch.tensor([[True]]))
    beside = Anchors(ratio=4).weights(torch.tensor([[True, False, False], [True, True, True]]))
    assert int((alone.sum(-1) > 0).sum()) == int((beside[0].sum(-1) > 0).sum()) == 1
