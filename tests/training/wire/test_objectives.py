"""Every objective is zero where its aim is reached, has a gradient where it is not, and equals its definition."""

import pytest
import torch
import torch.nn.functional as F

from latentwire.training import losses
from latentwire.training.objectives import (
    Align,
    AnswerCrossEntropy,
    Contrast,
    Distill,
    DistillHidden,
    FirstTokens,
    Gist,
    GrowingTokens,
    InfoNce,
    Manifold,
    Reconstruct,
    Scale,
)
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors
from tests.support.wire_training import KEYS, SOFT, config, one_step, start

IDENTITY = SelfConfig(select=Anchors(ratio=1), mask="causal", rank=0, marks=False)
ALL = [
    AnswerCrossEntropy(),
    FirstTokens(),
    GrowingTokens(tokens=2),
    Distill(),
    Distill(top=5, tokens=2, temperature=2.0),
    DistillHidden(),
    Contrast(margin=20.0),
    Scale(target=30.0),
    Align(),
    Align(measure="mse"),
    Manifold(),
    InfoNce(),
    Reconstruct(limit=20),
    Gist(limit=20),
]


def evidence(adapter=SOFT, modules=None, **changes):
    found, step, part = one_step(adapter, **changes)
    if modules is not None:
        step.modules_ = modules
    return found, step.evidence(part)[0]


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.kind}-{getattr(o, 'measure', '')}")
def test_every_objective_moves_the_encoder(objective):
    modules, one = evidence(objectives=(objective,))
    loss = objective.loss(one)
    assert torch.isfinite(loss)
    assert loss.ndim == 0
    loss.backward()
    norms = [
        float(p.grad.norm()) for name, p in modules.named_parameters() if p.grad is not None and "lora_B" in name
    ]
    assert max(norms) > 0


@pytest.mark.parametrize("objective", [Distill(), Distill(top=5), DistillHidden(), DistillHidden(layers=(-1, 0))])
def test_a_reader_that_gets_every_key_and_value_is_already_its_teacher(objective):
    lm = start()
    modules = LatentModules(config(lm, KEYS, IDENTITY), {lm.name: lm}, lm)
    _, one = evidence(KEYS, modules, lm=lm, objectives=(objective,))
    _, trained = evidence(KEYS, lm=lm, objectives=(objective,))
    with torch.no_grad():
        assert float(objective.loss(one)) < 1e-3 < 1e-1 < float(objective.loss(trained))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [None, 4, 320])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_distillation_without_full_logits_is_the_plain_one(temperature, top, family, monkeypatch):
    """gemma2 caps its logits; without a plain head (`Head.of` is None) the same loss is made from logits."""
    lm = start(family, kernel="eager")
    torch.manual_seed(0)
    ours, theirs = torch.randn(7, 32), torch.randn(7, 32)
    distill = Distill(top=top, temperature=temperature)

    def both():
        states = ours.clone().requires_grad_()
        loss = distill.divergence(lm, states, lm, theirs)
        return loss.detach(), *torch.autograd.grad(loss, states)

    chunked = both()
    monkeypatch.setattr(losses.Head, "of", classmethod(lambda cls, lm: None))
    plain = both()
    torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-5)
    if top == 320:
        # With every token among the top nothing is left over; what rounding leaves is weighed by the temperature.
        every = Distill(temperature=temperature).divergence(lm, ours, lm, theirs)
        torch.testing.assert_close(every, plain[0], rtol=1e-4, atol=0)


def test_the_hidden_distance_is_its_definition():
    _, one = evidence(KEYS, objectives=(DistillHidden(layers=(1,)),))
    ours, theirs = one.student_states[1], one.teacher_states[1]
    assert ours.shape == (one.labels, 32)
    expected = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).square().sum()
    torch.testing.assert_close(DistillHidden(layers=(1,)).loss(one), expected)


def test_the_tapped_state_behind_the_last_layer_is_what_the_head_reads():
    _, one = evidence(SOFT, objectives=(DistillHidden(),))
    normed = one.lm.model.get_decoder().norm(one.student_states[one.depth - 1])
    torch.testing.assert_close(normed, one.student.hidden)


def test_soft_tokens_that_are_their_text_align_and_those_of_others_do_not():
    _, one = evidence(objectives=(Align(),))
    spans = one.spans
    # Every token of a text stands for exactly one latent, and only real tokens do.
    assert torch.equal(spans.sum(1), one.text_valid.float())
    perfect = (spans / spans.sum(-1, keepdim=True).clamp_min(1)) @ one.text_embeddings
    one.delivered = _with(one.delivered, perfect)
    assert float(Align().loss(one)) < 1e-4
    assert float(Align(measure="mse").loss(one)) < 1e-4
    matched = float(InfoNce().loss(one))
    one.delivered = _with(one.delivered, perfect.roll(1, 0))
    assert float(Align().loss(one)) > 0.1
    assert float(Align(measure="mse").loss(one)) > 0.1
    assert float(InfoNce().loss(one)) > matched


def test_a_span_ends_at_its_latent_and_begins_behind_the_one_before():
    _, one = evidence(objectives=(Align(),))
    sizes = one.spans.sum(-1)[0][one.message.valid[0]].tolist()
    length = int(one.text.end[0])
    assert sizes[0] == 1.0, "the first column is a latent of its own"
    assert sizes[1:-1] == [4.0] * (len(sizes) - 2)
    assert sum(sizes) == length


def test_soft_tokens_drawn_as_embeddings_are_lie_on_the_manifold():
    _, one = evidence(objectives=(Manifold(),))
    mean, spread, _ = one.table
    drawn = mean + spread * torch.randn(one.delivered.content.shape, generator=torch.Generator().manual_seed(0))
    one.delivered = _with(one.delivered, drawn)
    on = float(Manifold().loss(one))
    one.delivered = _with(one.delivered, drawn * 100)
    assert on / one.labels < 0.2 < float(Manifold().loss(one)) / one.labels


def _with(shared, content):
    from dataclasses import replace

    return replace(shared, content=content)


def test_first_tokens_weigh_as_much_as_all():
    _, one = evidence(objectives=(FirstTokens(),))
    each = F.cross_entropy(one.lm.head(one.student.hidden), one.student.labels, reduction="none")
    first = each[one.questions.place == 0]
    torch.testing.assert_close(FirstTokens().loss(one), first.mean() * len(each))
    torch.testing.assert_close(FirstTokens(tokens=1000).loss(one), AnswerCrossEntropy().loss(one))


def test_answer_tokens_grow_with_the_accuracy():
    grows = GrowingTokens(tokens=1, most=9, low=0.2, high=0.6)
    assert [grows.tokens_at(accuracy) for accuracy in (0.0, 0.2, 0.31, 0.41, 0.6, 1.0)] == [1, 1, 3, 5, 9, 9]
    _, one = evidence(objectives=(grows,))
    torch.testing.assert_close(grows.loss(one), FirstTokens(tokens=1).loss(one))
    one.best_accuracy = 0.41
    torch.testing.assert_close(grows.loss(one), FirstTokens(tokens=5).loss(one))
    with pytest.raises(ValueError, match="most >= tokens"):
        GrowingTokens(tokens=4, most=2)


def test_gist_masks_tokens_by_context_and_step_and_asks_for_them_only(monkeypatch):
    from latentwire.training.objectives import contexts

    asked = []
    honest = contexts._mean_nats
    monkeypatch.setattr(contexts, "_mean_nats", lambda one, found: (asked.append(found), honest(one, found))[1])
    _, one = evidence(objectives=(Gist(),))
    gist = Gist(share=0.5, limit=40)
    assert torch.equal(gist.loss(one), gist.loss(one)), "a draw is a function of seed, step, context and name"
    found, learned = asked[0], asked[0].labels >= 0
    assert set(found.ids[learned].tolist()) == {min(one.lm.eos_ids)}
    assert 0.3 < float(learned.sum() / (found.places >= 0).sum()) < 0.7
    whole = Reconstruct(limit=40).loss(one).detach()
    torch.testing.assert_close(Gist(share=1.0, limit=1).loss(one), Reconstruct(limit=1).loss(one))
    assert float(whole) > 0
    assert bool((asked[-1].labels[asked[-1].places == 0] >= 0).all())


def test_no_forward_pass_is_made_twice_for_all_objectives_together(monkeypatch):
    from latentwire.lm.model import LM

    objectives = tuple({each.kind: each for each in ALL}.values())
    _, step, part = one_step(SOFT, objectives=objectives)
    passes = []
    honest = LM.run
    monkeypatch.setattr(LM, "run", lambda self, *a, **o: (passes.append(1), honest(self, *a, **o))[1])
    step(part)
    # The encoder, the student, the deranged student, the teacher, the reconstruction, the gist.
    assert len(passes) == 6
