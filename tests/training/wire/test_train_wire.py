"""A fit goes on exactly where it stopped, leaves its readers as they were, and saves every piece it trained."""

import json

import pytest
import torch
from safetensors.torch import save_file

from latentwire.errors import UserError
from latentwire.lm.loading.lora import Lora
from latentwire.lm.prefix import STEADY
from latentwire.training.data.text import TextData
from latentwire.training.not_finite import NotFinite
from latentwire.training.objectives import (
    Align,
    AnswerCrossEntropy,
    Contrast,
    Distill,
    DistillHidden,
    FirstTokens,
    GrowingTokens,
    Reconstruct,
    Scale,
)
from latentwire.training.objectives.adapting import SMOOTHING
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_training_config import KeepProb, TextSteps, WireTraining
from latentwire.wires.latent import trained_readers as pieces
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.encoders.self_encoder import SelfEncoder
from latentwire.wires.latent.modules import LatentModules, fingerprint, key_of
from latentwire.wires.latent.select import Anchors
from tests.support.killing import killed_after
from tests.support.wire_training import (
    KEYS,
    SOFT,
    STAGE_B,
    config,
    lines_of,
    one_step,
    run,
    settings,
    start,
    weights_of,
)

ADAPTIVE = (
    AnswerCrossEntropy(),
    FirstTokens(final=0.1, auto=True),
    GrowingTokens(low=0.0, high=0.2, most=6),
    Contrast(auto=True),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": ADAPTIVE, "samples": 1},
        {"keep_prob": KeepProb(start=0.5, final=1.0), "accumulation": 2},
        {**STAGE_B, "objectives": (AnswerCrossEntropy(), Distill(auto=True))},
    ],
    ids=["adaptive", "dropout", "readers"],
)
def test_an_interrupted_training_resumes_exactly_where_it_stopped(tmp_path, changes):
    run(tmp_path / "whole", **changes)
    with killed_after(5):
        run(tmp_path / "parts", **changes)
    _, _, said = run(tmp_path / "parts", **changes)
    assert any("resumed at step 4" in line for line in said)
    for name in ("final", "best"):
        whole, parts = weights_of(tmp_path / "whole", name), weights_of(tmp_path / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "parts")


@pytest.mark.slow
def test_running_numbers_have_moved_in_the_interrupted_training(tmp_path):
    """Else the test above would hold for a state that is never saved."""
    run(tmp_path / "run", objectives=ADAPTIVE)
    states = [line["adapting"] for line in lines_of(tmp_path / "run") if "adapting" in line]
    assert states[3] != states[-1]
    assert states[3]["accuracy"] is not None
    assert set(states[-1]["scales"]) == {"first_tokens", "contrast"}
    assert all(scale != 1.0 for scale in states[-1]["scales"].values())


@pytest.mark.slow
def test_an_automatic_scale_brings_the_gradient_to_the_first_objectives(tmp_path):
    run(tmp_path / "run", objectives=(AnswerCrossEntropy(), Scale(target=1e3, auto=True)), learning_rate=1e-9)
    line = [line for line in lines_of(tmp_path / "run") if "adapting" in line][-1]
    norms, scale = line["objective_gradient_norms"], line["adapting"]["scales"]["scale"]
    assert not 0.8 < norms["scale"] / norms["answer_ce"] < 1.25, "nothing to bring together"
    assert scale * norms["scale"] == pytest.approx(norms["answer_ce"], rel=0.5)


@pytest.mark.slow
def test_the_readers_own_weights_stay_and_their_trained_adapters_are_saved_with_the_wire(tmp_path):
    before = fingerprint(start())
    _, lm, _ = run(tmp_path / "b", **STAGE_B)
    assert fingerprint(lm) == before
    assert lm.prefix_tuning is None
    found = weights_of(tmp_path / "b", "best")
    assert any(name.startswith(f"readers.{key_of('llama')}.lora") for name in found)
    assert f"readers.{key_of('llama')}.prefix.weight" in found
    modules = LatentModules(config(lm), {lm.name: lm}, lm)
    trained = pieces.restore(modules, {lm.name: lm}, tmp_path / "b" / "checkpoints" / "best")[lm.name]
    own = dict(modules.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in found.items())
    # The restored reader reads with what it has learned, and the reader that it came from without.
    ids = torch.tensor([[5, 6, 7, 8]])
    from latentwire.lm.prefix import Prefix

    prefix = Prefix.of_tokens(ids.tolist())
    assert not torch.allclose(trained.prefill(prefix).logits, lm.prefill(prefix).logits, atol=1e-3)
    assert torch.equal(start().prefill(prefix).logits, lm.prefill(prefix).logits)


@pytest.mark.slow
def test_a_piece_of_a_reader_that_is_missing_is_an_error(tmp_path):
    _, lm, _ = run(tmp_path / "b", steps=1, **STAGE_B)
    folder = tmp_path / "b" / "checkpoints" / "best"
    whole = weights_of(tmp_path / "b", "best")
    learned = [name for name in whole if name.startswith("readers.")]
    for name in (learned[0], learned[-1]):
        save_file({key: each for key, each in whole.items() if key != name}, folder / "wire.safetensors")
        with pytest.raises(UserError, match=f"lacks {name.split('/')[0]}"):
            pieces.restore(LatentModules(config(lm), {lm.name: lm}, lm), {lm.name: lm}, folder)
    save_file(whole, folder / "wire.safetensors")
    (folder / pieces.FILE).unlink()
    with pytest.raises(UserError, match="no place for"):
        pieces.restore(LatentModules(config(lm), {lm.name: lm}, lm), {lm.name: lm}, folder)


def test_the_teacher_reads_without_the_readers_trained_adapters(tmp_path):
    """Distillation towards a teacher that learns along would have no fixed aim."""
    from latentwire.training.wire.train import _WireTrainee

    lm = start()
    trainee = _WireTrainee({lm.name: lm}, lm, settings(lm, reader_lora=Lora(rank=2)), tmp_path, print)
    part = trainee.parts(0, 0, 1)[0]

    def hidden():
        one = trainee.step.evidence(part)[0]
        return one.teacher.hidden, one.student.hidden.detach()

    teacher, student = hidden()
    with torch.no_grad():
        for name, each in trainee.modules.named_parameters():
            if name.startswith("readers") and "lora_B" in name:
                each.add_(0.5)
    again, moved = hidden()
    assert torch.equal(teacher, again)
    assert not torch.allclose(student, moved)


def test_latents_after_a_learned_prefix_have_the_positions_of_the_text():
    """One layer: there the text's keys and values do not depend on the prefix, and ratio 1 is the text itself."""
    lm = start(num_hidden_layers=1)
    identity = SelfConfig(select=Anchors(ratio=1), mask="causal", rank=0, marks=False)
    modules = LatentModules(config(lm, KEYS, identity), {lm.name: lm}, lm)
    _, step, part = one_step(lm=lm)
    reader = pieces.attach(modules, {lm.name: lm}, pieces.ReaderConfig(prefix=3))[lm.name]
    one = step.evidence(part)[0]
    with torch.no_grad():
        latent = one.questions.forced(modules.deliver(modules(part.contexts), lm.name), reader).hidden
        text = one.questions.forced(one.text, reader).hidden
        bare = one.questions.forced(one.text, lm).hidden
    torch.testing.assert_close(latent, text, atol=1e-4, rtol=0)
    assert not torch.allclose(text, bare, atol=1e-2)


def test_text_steps_read_the_text_and_only_those_train_no_encoder(tmp_path):
    from latentwire.training.wire.train import _WireTrainee

    lm = start()
    always = TextSteps(probability=1.0, tail=1.0, steps=1)
    given = settings(lm, reader_lora=Lora(rank=2), text_steps=always)
    trainee = _WireTrainee({lm.name: lm}, lm, given, tmp_path, print)
    part = trainee.parts(0, 0, 1)[0]
    assert part.textual
    losses = trainee.step(part)
    # With nothing learned yet, a reader of the text is its own teacher.
    assert losses.terms["distill"].item() == pytest.approx(0, abs=1e-3)
    losses.total.backward()
    moved = {name.split(".")[0] for name, p in trainee.modules.named_parameters() if p.grad is not None}
    assert moved == {"readers"}
    assert (losses.first_right, losses.firsts) == (0, 0), "what adapts must not take text for latents"
    assert [TextSteps(tail=0.2, steps=10).at(step) for step in (0, 10, 99)] == [1.0, 0.2, 0.2]


@pytest.mark.slow
def test_an_automatic_scale_is_taken_from_messages_never_from_text(tmp_path):
    """Gradients of hidden states and of messages differ in size: a mean over both would be of neither."""
    mixed = {**STAGE_B, "text_steps": TextSteps(probability=0.5, tail=0.5, steps=1)}
    run(tmp_path / "run", objectives=(AnswerCrossEntropy(), Distill(auto=True)), steps=12, **mixed)
    lines = [line for line in lines_of(tmp_path / "run") if "adapting" in line]
    textual = [line["first_token_accuracy"] is None for line in lines]
    assert 2 < sum(textual) < 10
    scale = None
    for line, text in zip(lines, textual, strict=True):
        norms = line["objective_gradient_norms"]
        ratio = norms["answer_ce"] / norms["distill"]
        if not text:
            scale = ratio if scale is None else SMOOTHING * scale + (1 - SMOOTHING) * ratio
        assert line["adapting"]["scales"].get("distill") == (None if scale is None else pytest.approx(scale))


def test_latents_are_dropped_by_context_and_step_never_all():
    _, step, part = one_step(keep=0.5)
    kept = step.evidence(part)[0].message.valid
    _, step, whole = one_step()
    every = step.evidence(whole)[0].message.valid
    assert 0.3 < float(kept.sum() / every.sum()) < 0.7
    assert bool((kept <= every).all())
    _, step, alone = one_step(keep=0.5, count=1)
    assert torch.equal(step.evidence(alone)[0].message.valid[0], kept[0][: alone_width(step, alone)])
    _, step, hardly = one_step(keep=1e-9)
    assert step.evidence(hardly)[0].message.valid.sum(1).tolist() == [1, 1, 1]


def alone_width(step, part):
    return step.evidence(part)[0].message.valid.shape[1]


@pytest.mark.slow
def test_several_readers_are_trained_in_one_step(tmp_path):
    """Other widths, depths and layers tapped: each has its own teacher, adapters and soft tokens."""
    first, second = start(), start("qwen3", hidden_size=24, num_hidden_layers=2, seed=1)
    readers = {"llama": first, "qwen3": second}
    wire = config(first, SOFT).model_copy(update={"adapters": {"llama": SOFT, "qwen3": SOFT}})
    objectives = (AnswerCrossEntropy(), Distill(), DistillHidden(layers=(-1,)), Align(), Reconstruct(limit=8))
    given = settings(first, wire=wire, objectives=objectives, reader_lora=Lora(rank=2), steps=2)
    (tmp_path / "run").mkdir()
    train_wire(readers, first, given, tmp_path / "run", log=lambda line: None)
    found = weights_of(tmp_path / "run")
    for name in readers:
        learned = [
            each for key, each in found.items() if key.startswith(f"readers.{key_of(name)}") and "lora_B" in key
        ]
        assert any(bool(each.any()) for each in learned), f"{name} has learned nothing"
        assert any(key.startswith(f"adapters.{key_of(name)}") for key in found)


def test_padding_to_widths_that_recur_changes_no_loss():
    modules, step, part = one_step(objectives=(AnswerCrossEntropy(), Distill(), Reconstruct(limit=8)))
    assert all(each.ids.shape[1] % STEADY == 0 for each in part.questions.values())
    bare = step(part)
    modules.pad_to(STEADY)
    padded = step(part)
    assert modules(part.contexts).valid.shape[1] > max(modules(part.contexts).valid.sum(1))
    for name, loss in bare.terms.items():
        torch.testing.assert_close(padded.terms[name], loss, rtol=1e-4, atol=0)


def test_unlabelled_text_trains_a_reader_to_continue_it(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = [" ".join(f"{word}{number}" for word in ("one", "two", "three", "four") * 5) for number in range(6)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = TextData(kind="text", path=path, context=6, continuation=4)
    found, lm, _ = run(tmp_path / "run", data=data, objectives=(AnswerCrossEntropy(), Reconstruct(weight=0.2)))
    assert found.steps == 6
    from latentwire.training.wire.passages import passages

    train, held_out = (passages(data, {lm.name: lm}, split, 99) for split in ("train", "validation"))
    assert len(train) == 10
    assert len(held_out) == 2
    assert not {each.group for each in train} & {each.group for each in held_out}
    one = train[0]
    ((cue, rest),) = one.pairs[lm.name]
    assert any(one.context + lm.decode([*cue, *rest]) in text for text in texts)
    with pytest.raises(UserError, match=r"data\.path"):
        passages(data.model_copy(update={"context": 100}), {lm.name: lm}, "train", 1)
    path.write_text('{"txt": "one"}\n')
    with pytest.raises(UserError, match="line 1"):
        passages(data, {lm.name: lm}, "train", 1)


def test_settings_that_cannot_teach_anything_are_refused(tmp_path):
    with pytest.raises(ValueError, match="auto on the first"):
        WireTraining(steps=1, objectives=[{"kind": "answer_ce", "auto": True}])
    with pytest.raises(ValueError, match="reader_lora or reader_prefix"):
        WireTraining(steps=1, text_steps={"steps": 10})
    with pytest.raises(UserError, match="align, which compares soft tokens"):
        run(tmp_path / "keys", KEYS, objectives=(Align(),))
    run(tmp_path / "soft", SOFT, objectives=(AnswerCrossEntropy(), Align(weight=0.1)), steps=1)
    assert not (tmp_path / "keys" / "diagnostics.jsonl").exists()


def test_a_bos_after_the_anchor_follows_latents_only_in_training_and_in_evaluation(tmp_path):
    from latentwire.lm.prompts import Prompt
    from latentwire.training.wire.train import _WireTrainee
    from latentwire.wires.latent.latent_wire import Latent

    lm = start()
    wire = config(lm).model_copy(update={"bos_after_anchor": True})
    plain, marked = (
        _WireTrainee({lm.name: lm}, lm, settings(lm, **changes), tmp_path, print)
        for changes in ({}, {"wire": wire})
    )
    one, other = (each.step.evidence(each.parts(0, 0, 1)[0])[0] for each in (plain, marked))
    assert torch.equal(one.teacher.hidden, other.teacher.hidden)
    assert torch.equal(one.student.labels, other.student.labels)
    assert not torch.allclose(one.student.hidden, other.student.hidden, atol=1e-3)
    bos = lm.tokenizer.bos_token_id
    assert (other.questions.ids == bos).sum() == len(other.lengths)
    assert not (other.plain.ids == bos).any()
    marked.export(tmp_path / "wire")
    bound = Latent(path=str(tmp_path / "wire")).bind(lm)
    prefix = bound([Prompt(context="Ada lives here.", question="Where does Ada live?", unstable=0, tokens=1)], lm)
    assert prefix.ids[0, -1] == bos
    lm.tokenizer.bos_token = None
    with pytest.raises(UserError, match="has no such token"):
        bound([Prompt(context="Ada lives here.", question="Where?", unstable=0, tokens=1)], lm)


def test_the_contexts_of_every_step_are_announced_before_it_runs(tmp_path, monkeypatch):
    announced, read, ahead, forward = [], [], LatentModules.ahead, SelfEncoder.forward

    def listening(modules, contexts):
        announced.extend(contexts)
        ahead(modules, contexts)

    def reading(encoder, contexts):
        if encoder.training and len(contexts) > 1:  # a single one is the trial when it is built
            assert set(contexts) <= set(announced)
            read.append(list(contexts))
        return forward(encoder, contexts)

    monkeypatch.setattr(LatentModules, "ahead", listening)
    monkeypatch.setattr(SelfEncoder, "forward", reading)
    run(tmp_path, steps=3)
    assert sorted(announced) == sorted(context for contexts in read for context in contexts)


@pytest.mark.slow
def test_a_wires_training_measures_generated_answers_beside_the_text(tmp_path):
    """The text's are those of the readers as they were: they stay, whatever readers learn along the way."""
    how = {"generate_steps": 3, "generate_samples": 3, "best": ["f1", "first_token"], "steps": 6, "eval_steps": 3}
    done, _, _ = run(tmp_path / "run", **STAGE_B, **how)
    measured = [line for line in lines_of(tmp_path / "run") if "eval_f1" in line]
    assert [line["step"] for line in measured] == [0, 3, 6]
    assert {line["text_f1"] for line in measured} == {done.text["f1"]}
    assert all(0 <= line["eval_exact_match"] <= line["eval_f1"] <= 1 for line in measured)
    assert done.best_step == done.bests["f1"]["step"]
    for name in ("best", "best_first_token"):
        assert weights_of(tmp_path / "run", name)


def test_a_wire_that_meets_a_nan_names_its_contexts_and_keeps_its_best(tmp_path, monkeypatch):
    honest = Distill.loss

    def never_finite(self, evidence):
        return honest(self, evidence) * torch.inf

    monkeypatch.setattr(Distill, "loss", never_finite)
    with pytest.raises(NotFinite, match=r"step 1 of distill: found loss (inf|nan).*the batch holds"):
        run(tmp_path / "run", objectives=(AnswerCrossEntropy(), Distill()))
    assert weights_of(tmp_path / "run", "best")
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_a_kill_while_a_finished_trainings_snapshots_are_removed_leaves_nothing(tmp_path):
    run(tmp_path)
    places = tmp_path / "checkpoints"
    whole = sorted(path.relative_to(places) for path in places.rglob("*"))
    (places / "last").mkdir()
    (places / "last" / "optimizer.safetensors").write_bytes(b"what a removal has not come to yet")
    _, _, said = run(tmp_path)
    assert sorted(path.relative_to(places) for path in places.rglob("*")) == whole
    assert not any("set aside" in line for line in said)
