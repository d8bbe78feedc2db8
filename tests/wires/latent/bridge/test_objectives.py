"""A flow follows its aims without letting the reader see them, and imitation ends at the wire that it imitates."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import STEADY
from latentwire.training.objectives import AnswerCrossEntropy, FlowMatching, Imitate, imitation
from latentwire.training.wire.train import check
from latentwire.wires.latent.adapters import EmbeddingsConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules, key_of
from latentwire.wires.latent.select import Anchors
from tests.support import wire_training
from tests.support.bridge_training import one_step, settings, train
from tests.support.bridges import TRANSLATORS, bridge, reader_lm, saved, source_lm
from tests.support.latent_wires import shaken

DIT = TRANSLATORS["dit-attention-guided"].model_copy(update={"drop": 0.5})
WIDE = {"translator": DIT, "width": 24}
"""Latents as wide as the reader's embeddings."""


def flows(source, reader, teacher="answer", **changes):
    modules, step, part = one_step(source, reader, (FlowMatching(teacher=teacher),), **{**WIDE, **changes})
    return modules, step.evidence(part)[0]


@pytest.mark.parametrize("teacher", ["answer", "prompt"])
def test_the_flow_is_learned_by_the_translator_alone(teacher, source, reader):
    modules, one = flows(source, reader, teacher, count=8)
    loss = FlowMatching(teacher=teacher).loss(one)
    loss.backward()
    assert float(loss.detach()) > 0
    for name, each in modules.pieces().items():
        learns = name.startswith("encoder.translator")
        assert (each.grad is not None and bool(each.grad.any())) == learns, name


@pytest.mark.parametrize("teacher", ["answer", "prompt"])
def test_the_flow_objective_does_not_change_the_message(teacher, source, reader):
    """The earlier bridge let its reader read noise mixed with the answer."""
    modules, one = flows(source, reader, teacher)
    alone = modules(one.contexts).flat()
    FlowMatching(teacher=teacher).loss(one)
    assert torch.equal(one.message.flat(), alone)
    other = flows(source, reader, teacher)[1]
    other.questions.labels[other.questions.labels >= 0] = 7
    assert torch.equal(other.message.flat(), alone), "the message knows the answer"
    assert (FlowMatching(teacher=teacher).loss(other) != FlowMatching(teacher=teacher).loss(one)) == (
        teacher == "answer"
    )


@torch.no_grad()
def test_the_flows_aims_are_the_answers_tokens_or_means_of_the_texts(source, reader):
    _, one = flows(source, reader)
    aims, told = FlowMatching()._answers(one)
    for row in range(3):
        labels = one.questions.labels[row]
        ids = labels[labels >= 0].tolist()[: int(told[row].sum())]
        torch.testing.assert_close(aims[row, : len(ids)], reader.embed(torch.tensor(ids)))
        rest = aims[row, len(ids) :]
        torch.testing.assert_close(rest, reader.embed(torch.tensor([2])).expand_as(rest))
    aims, told = FlowMatching()._prompts(one)
    assert bool((told <= one.encoded.whole.valid).all())
    text = one.text_embeddings
    # The first latent is the first column alone, and together the latents stand for every token once.
    torch.testing.assert_close(aims[:, 0], text[:, 0])
    assert torch.equal(one.source_spans.sum(1), one.text_valid.float())


@torch.no_grad()
def test_a_flow_that_samples_its_aims_exactly_has_zero_loss(source, reader, monkeypatch):
    _, one = flows(source, reader)
    translator, states = one.encoded.modules.encoder.translator, one.encoded.states
    aims = F.rms_norm(FlowMatching()._answers(one)[0], (24,))
    monkeypatch.setattr(
        translator, "_velocity", lambda point, at, known: (aims - point) / (1 - at[:, None, None]).clamp_min(1e-6)
    )
    assert float(FlowMatching().loss(one)) / one.labels < 1e-6
    made = F.rms_norm(translator(states), (24,))
    torch.testing.assert_close(made[states.real], aims[states.real], rtol=1e-4, atol=1e-4)


def test_the_source_reads_once_for_all_objectives(source, reader, monkeypatch):
    objectives = (AnswerCrossEntropy(), FlowMatching(teacher="prompt"))
    _, step, part = one_step(source, reader, objectives, **WIDE)
    passes = []
    honest = LM.run
    monkeypatch.setattr(LM, "run", lambda self, *a, **o: (passes.append(self.name), honest(self, *a, **o))[1])
    step(part)
    assert passes == [source.name, reader.name]


@pytest.mark.parametrize(
    ("wire", "found"),
    [
        ({"width": 24}, "found the encoder source with the translator mlp, expected the encoder source with the"),
        ({"translator": DIT}, "found latents of width 16, expected the 24 of reader's embeddings"),
    ],
)
def test_what_the_flow_cannot_lead_to_is_refused_before_a_step(wire, found, tmp_path):
    source, reader = source_lm(), reader_lm()
    asked = settings(source, reader, objectives=(AnswerCrossEntropy(), FlowMatching()), wire=wire)
    with pytest.raises(UserError, match=f"objectives: flow {found}"):
        check({reader.name: reader}, source, asked)
    with pytest.raises(UserError, match=f"objectives: flow {found}"):
        train(tmp_path, objectives=(AnswerCrossEntropy(), FlowMatching()), wire=wire)


def test_the_flow_refuses_another_encoder_and_an_automatic_scale():
    lm = source_lm()
    config = LatentConfig(source=lm.name, encoder=SelfConfig(), adapters={lm.name: EmbeddingsConfig()})
    asked = settings(lm, lm).model_copy(update={"wire": config, "objectives": (FlowMatching(),)})
    with pytest.raises(UserError, match="flow found the encoder self, expected"):
        check({lm.name: lm}, lm, asked)
    with pytest.raises(ValueError, match="flow: found auto"):
        FlowMatching(auto=True)
    reader = reader_lm()
    asked = settings(lm, reader, objectives=(FlowMatching(reader="wren"),), wire=WIDE)
    with pytest.raises(UserError, match="found the reader 'wren', expected one of reader"):
        check({"reader": reader}, lm, asked)


@pytest.fixture
def imitated(reader, tmp_path):
    """A finished bridge that stands in a folder, with its source."""
    source = saved(source_lm(), tmp_path)
    made = {"align": reader.name, "translator": TRANSLATORS["mlp"]}
    bridge(source, reader, "deep_prefix", **made).save(tmp_path / "wire")
    return source, str(tmp_path / "wire"), made


def test_an_imitated_wire_out_of_memory_is_read_in_halves(imitated, reader, monkeypatch):
    """Or not at all, and then the step goes without: the objective is counted as left out."""
    source, folder, made = imitated
    objective, said = Imitate(wire=folder), []
    _, step, part = one_step(source, reader, (objective,), "deep_prefix", **made)
    whole = step.evidence(part)[0].imitated(folder)
    honest = LatentModules.forward

    def short_of_memory(room, what):
        def forward(self, contexts):
            if len(contexts) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return honest(self, contexts)

        _, step, part = one_step(source, reader, (objective,), "deep_prefix", **made)
        evidence = step.evidence(part)[0]
        monkeypatch.setattr(evidence._teacher, "_log", said.append)
        with monkeypatch.context() as patch:
            patch.setattr(LatentModules, "forward", forward)
            return evidence, what(evidence)

    evidence, halves = short_of_memory(1, lambda evidence: evidence.imitated(folder))
    assert evidence._teacher.contexts == 1
    assert torch.equal(halves.columns.valid, whole.columns.valid)
    valid = whole.columns.valid[:, None, :, None]
    for ours, theirs in zip((*halves.keys, *halves.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(ours * valid, theirs * valid)
    assert short_of_memory(0, objective.loss)[1] is None
    assert said[-1].endswith("cannot encode one context as teacher; the step goes without")


def test_a_wire_that_imitates_itself_has_zero_loss(imitated, reader):
    source, folder, made = imitated
    objective = Imitate(wire=folder)

    def apart(**changes):
        modules, step, part = one_step(source, reader, (objective,), "deep_prefix", **{**made, **changes})
        return modules, objective.loss(step.evidence(part)[0])

    assert float(apart()[1].detach()) < 1e-6
    modules, far = apart(translator=TRANSLATORS["cross"])
    far.backward()
    assert float(far.detach()) > 1
    assert all(each.grad.any() for name, each in modules.pieces().items() if "adapters" in name)


def test_latents_that_are_dropped_are_imitated_too(imitated, reader):
    source, folder, made = imitated
    losses = []
    for keep in (1.0, 0.5):
        modules, step, part = one_step(source, reader, (Imitate(wire=folder),), "deep_prefix", **made)
        modules.adapters[key_of(reader.name)].shift.data += 1
        losses.append(step(replace(part, keep=keep)).terms["imitate"])
    assert float(losses[0].detach()) > 1
    torch.testing.assert_close(losses[1], losses[0])


def test_imitation_needs_the_same_number_of_latents(imitated, reader):
    source, folder, made = imitated
    for changes in ({"select": Anchors(ratio=2)}, {"align": None}):
        _, step, part = one_step(source, reader, (Imitate(wire=folder),), "deep_prefix", **{**made, **changes})
        with pytest.raises(UserError, match=r"imitate found \d+ latents of keys and values, expected the \d+ of"):
            step(part)
    _, step, part = one_step(source, reader, (Imitate(wire=folder),), "embeddings", **made)
    with pytest.raises(UserError, match="imitate found 0 latents of keys and values"):
        step(part)


def test_another_number_of_latents_or_another_carry_is_refused_before_a_step(imitated, reader):
    source, folder, made = imitated
    for changes, message in (
        ({"select": Anchors(ratio=2)}, r"imitate found \d+ latents of keys and values, expected the \d+ of"),
        ({"carry": "prompt"}, "with carry: context, expected prompt"),
    ):
        carry = {"carry": changes.pop("carry")} if "carry" in changes else {}
        asked = settings(source, reader, wire={**made, **changes}, objectives=(Imitate(wire=folder),))
        asked = asked.model_copy(update={"wire": asked.wire.model_copy(update=carry)})
        with pytest.raises(UserError, match=message):
            check({reader.name: reader}, source, asked)
    fits = settings(source, reader, wire=made, objectives=(Imitate(wire=folder),))
    check({reader.name: reader}, source, fits)


def test_ratios_that_are_hardly_apart_are_told_apart_before_a_step(imitated, reader, tmp_path):
    source, _, made = imitated
    coarse = {**made, "select": Anchors(ratio=18)}
    bridge(source, reader, "deep_prefix", **coarse).save(tmp_path / "coarse")
    for ratio in (18, 20):
        wire = {**made, "select": Anchors(ratio=ratio)}
        asked = settings(source, reader, wire=wire, objectives=(Imitate(wire=str(tmp_path / "coarse")),))
        if ratio == 18:
            check({reader.name: reader}, source, asked)
        else:
            with pytest.raises(UserError, match=r"imitate found \d+ latents of keys and values"):
                check({reader.name: reader}, source, asked)


def test_latents_for_every_token_can_imitate_the_text_itself():
    """The reader's own, untrained, has come to its end; fewer latents than tokens are refused."""

    def apart(ratio, mask="causal"):
        plain = SelfConfig(select=Anchors(ratio=ratio), mask=mask, rank=1, marks=False)
        modules, step, part = wire_training.one_step(
            objectives=(AnswerCrossEntropy(), Imitate(wire="text")), encoder=plain
        )
        modules.pad_to(STEADY)
        return step(part).terms["imitate"] / part.labels

    assert float(apart(1)) < 1e-6
    assert float(apart(1, "prefix")) > 0.1
    with pytest.raises(UserError, match=r"imitate found \d+ latents of keys and values, expected the \d+ of text"):
        apart(2)


def test_an_imitated_wire_gives_its_own_keys_and_values_from_the_first_step(tmp_path):
    """Autocast keeps what weights were when they were first read, and a wire is tried before it has its own."""
    torch.manual_seed(1)
    lm = wire_training.start()
    shaken(LatentModules(wire_training.config(lm), {lm.name: lm}, lm)).save(tmp_path)
    _, step, part = wire_training.one_step(objectives=(Imitate(wire=str(tmp_path)),), lm=lm)
    found = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(step.evidence(part)[0].imitated(str(tmp_path)))
    for first, second in zip(found[0].keys, found[1].keys, strict=True):
        assert torch.equal(first, second)


def memory(seed, shapes, valid):
    drawn = torch.Generator().manual_seed(seed)
    each = [torch.randn(shape, generator=drawn) for shape in shapes]
    places = torch.arange(valid.shape[1]).expand_as(valid)
    return Memory(tuple(each[0::2]), tuple(each[1::2]), Columns.of(valid, places))


@pytest.mark.parametrize("bytes_at_once", [1, 2**28])
def test_layers_are_compared_together_as_alone(bytes_at_once, monkeypatch):
    """Layers of other heads and widths stand among them; the spread is each head's own."""
    monkeypatch.setattr(imitation, "AT_ONCE", bytes_at_once)
    valid = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    shapes = [(2, 3, 9, 4), (2, 3, 9, 4), (2, 3, 9, 4), (2, 3, 9, 4), (2, 1, 9, 6), (2, 3, 9, 4)]
    made, aims = memory(0, shapes, valid), memory(1, shapes, valid)
    parts = []
    for ours, theirs in zip((*made.keys, *made.values), (*aims.keys, *aims.values), strict=True):
        heads = []
        for head in range(ours.shape[1]):
            own, aim = ours[:, head][valid].double(), theirs[:, head][valid].double()
            spread = torch.cov(aim.T, correction=0)
            floor = imitation.RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
            apart = own - aim
            heads.append(((apart @ torch.linalg.inv(spread + floor)) * apart).sum() / apart.numel())
        parts.append(torch.stack(heads).mean())
    torch.testing.assert_close(imitation._apart(made, aims), torch.stack(parts).mean().float(), rtol=1e-5, atol=0)
