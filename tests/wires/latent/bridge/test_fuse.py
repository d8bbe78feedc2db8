"""A fuser whose gates are shut, or that hears nothing, leaves its reader exactly what it was."""

from copy import copy
from dataclasses import replace

import pytest
import torch

from latentwire import wires
from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Tap
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.scoring.questions import Shared
from latentwire.training.objectives import AnswerCrossEntropy, Contrast, Distill, Reconstruct
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.wire.part import collate
from latentwire.training.wire.passages import passages
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_step import WireStep
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.adapters import FuseConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import zero
from latentwire.wires.latent.modules import LatentModules, fingerprint
from latentwire.wires.latent.reader_text import OwnText, asking
from latentwire.wires.latent.trained_readers import ReaderConfig, attach
from tests.support.fused_bridges import PROMPTS, bound, fused_config, modules_of, source, stored, translated
from tests.support.models import tiny_lm
from tests.support.wire_training import DATA

FAMILIES = ("llama", "qwen3", "mistral")
ANSWERS = [[[5, 6, 7], [8, 9]], [[10], [11, 12, 13]], [[14, 15], [16]]]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Mistral's tokens run across blanks and begin with BOS."""
    how = {"mistral": {"bos": True, "merge_blanks": True}, "qwen3": {}, "llama": {"bos": True}}
    return {name: stored(tmp_path_factory.mktemp(name), name, **how[name]) for name in FAMILIES}


def said(wire, lm):
    prefilled = lm.prefill(wire(PROMPTS, lm))
    texts = [each.ids for each in lm.generate(prefilled, Decoding(max_new_tokens=12))]
    scores = [score.logprob for row in lm.score(prefilled, ANSWERS) for score in row]
    return texts, torch.tensor(scores)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("gate", "control"), [(0.0, None), (0.9, "zero"), (0.0, "zero")])
def test_shut_gates_or_a_message_of_zeros_read_as_the_target_alone(targets, family, gate, control):
    lm = targets[family]
    modules = modules_of(fused_config(lm, gate=gate), lm)
    texts, scores = said(bound(modules, lm, control), lm)
    alone, expected = said(wires.parse("text"), lm)
    assert texts == alone
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_the_same_kernel_shut_gates_change_no_bit(targets, family):
    lm = targets[family]
    texts, asked = asking(fused_config(lm), [(each.context, each.question) for each in PROMPTS], lm)
    own = OwnText.of(texts, lm)
    memory = lm.memorize(Prefix(ids=own.tokens.content, columns=own.tokens.columns))[1]
    plain = lm.prefill(Shared(own.tokens.end, memory).ask(asked, lm)).logits
    for gate in (0.0, 0.9):
        modules = modules_of(fused_config(lm, gate=gate), lm)
        message = modules([each.context for each in PROMPTS])
        silent = modules.deliver(zero(message), lm.name, own)
        assert torch.equal(lm.prefill(silent.ask(asked, lm)).logits, plain)
        heard = lm.prefill(modules.deliver(message, lm.name, own).ask(asked, lm)).logits
        assert torch.equal(heard, plain) is (gate == 0.0)


@torch.no_grad()
def test_sixteen_bit_keys_survive_rotation_and_back():
    lm = tiny_lm("llama")
    lm.model.to(torch.bfloat16)
    prefix = Prefix.of_tokens([list(range(5, 90))])
    tap = Tap()
    lm.run(prefix.ids, prefix.columns, replace(lm._reading(prefix), tap=tap))
    kept = lm.rotary.memory(lm.memorize(prefix, torch.float32)[1])
    for layer, key in enumerate(kept.keys):
        assert torch.equal(key.to(torch.bfloat16), tap.keys[layer])


@torch.no_grad()
def test_a_row_reads_the_same_alone_and_in_a_batch(targets):
    lm = targets["mistral"]
    wire = bound(modules_of(fused_config(lm, gate=0.9), lm), lm)
    together = lm.forced(wire(PROMPTS, lm), pad_rows([[5, 6, 7]] * 3, -100)).hidden
    for row, prompt in enumerate(PROMPTS):
        alone = lm.forced(wire([prompt], lm), torch.tensor([[5, 6, 7]])).hidden[0]
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_contexts_message_is_cut_or_padded_to_the_text(targets):
    lm = targets["llama"]
    modules = modules_of(fused_config(lm, gate=0.9), lm)
    texts, _ = asking(modules.config, [(each.context, each.question) for each in PROMPTS[:2]], lm)
    long, short = (len(each) for each in texts)
    assert long > short
    own = OwnText.of(texts, lm)
    swapped = modules([each.context for each in PROMPTS[:2]]).select(torch.tensor([1, 0]))
    found = modules.deliver(swapped, lm.name, own).memory
    bare = modules.deliver(zero(swapped), lm.name, own).memory
    changed = (found.keys[-1] != bare.keys[-1]).any(-1).any(1)
    assert changed[0].tolist() == [True] * short + [False] * (long - short)
    assert changed[1, :short].all()
    # Much longer and much shorter than the whole batch's text, too.
    for context in ("a", "Ada lives by the river. " * 9):
        modules.deliver(modules([context] * 2), lm.name, own)


def test_the_message_counts_the_sources_keys_and_values(targets):
    lm = targets["llama"]
    message = bound(modules_of(fused_config(lm), lm), lm).encode([each.context for each in PROMPTS])
    tokens = [len(lm.format.before(each.context, lm)) for each in PROMPTS]
    layers, heads, width = 2, 2, 8
    assert message.nbytes() == [2 * layers * 2 * heads * width * count for count in tokens]


def test_layers_are_matched_from_the_last_one_backwards():
    assert FuseConfig().pairs(3, 2) == {1: 0, 2: 1}
    assert FuseConfig().pairs(2, 5) == {0: 3, 1: 4}
    assert FuseConfig(layers={0: 1}).pairs(3, 2) == {0: 1}
    with pytest.raises(UserError, match="found layers 3: 0"):
        FuseConfig(layers={3: 0}).pairs(3, 2)


def test_only_the_layers_of_the_map_are_changed(targets):
    lm = targets["llama"]
    modules = modules_of(fused_config(lm, gate=0.9, layers={0: 1}), lm)
    texts, _ = asking(modules.config, [(each.context, each.question) for each in PROMPTS], lm)
    with torch.no_grad():
        message = modules([each.context for each in PROMPTS])
        heard, silent = (
            modules.deliver(each, lm.name, OwnText.of(texts, lm)).memory for each in (message, zero(message))
        )
    assert [torch.equal(a, b) for a, b in zip(heard.values, silent.values, strict=True)] == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("carry", ["context", "prompt"])
def test_a_fuse_adapter_learns_and_its_readers_do_not_change(targets, tmp_path, carry):
    lm, before = targets["qwen3"], fingerprint(targets["qwen3"])
    wire = fused_config(lm).model_copy(update={"carry": carry})
    objectives = (AnswerCrossEntropy(), Distill(), Contrast())
    settings = WireTraining(
        wire=wire, data=DATA, objectives=objectives, steps=3, passages=3, questions=2, contexts=6
    )
    settings = settings.model_copy(update={"eval_samples": 2, "eval_steps": 3, "samples": 1, "warmup_steps": 1})
    train_wire({lm.name: lm}, source(), settings, tmp_path, log=lambda told: None)
    assert fingerprint(lm) == before
    trained = modules_of(wire, lm)
    assert trained.adapters[next(iter(trained.adapters))].gates.abs().sum() == 0
    trained.restore(tmp_path / "checkpoints" / "final")
    assert trained.adapters[next(iter(trained.adapters))].gates.abs().sum() > 0


def test_before_the_first_step_the_student_equals_its_teacher(targets):
    lm = targets["mistral"]
    config = fused_config(lm)
    modules, found = modules_of(config, lm), passages(DATA, {lm.name: lm}, "train", 3, config)
    part = collate(found, [range(2)] * 3, {lm.name: lm.device}, [str(n) for n in range(3)])
    terms = (AnswerCrossEntropy(),)
    step = WireStep(modules, {lm.name: lm}, {lm.name: Teacher(lm, print)}, terms, Adapting(terms))
    one = step.evidence(part)[0]
    torch.testing.assert_close(one.student.hidden, one.teacher.hidden, atol=1e-4, rtol=0)
    assert one.deranged.hidden.shape == one.student.hidden.shape
    with pytest.raises(UserError, match="fuse without a text"):
        Reconstruct().loss(one)


def test_a_reader_with_a_learned_prefix_is_fused_at_the_positions_of_its_text(targets):
    lm = targets["llama"]
    modules = modules_of(fused_config(lm), lm)
    torch.manual_seed(3)
    reader = attach(modules, {lm.name: lm}, ReaderConfig(prefix=3))[lm.name]
    texts, scores = said(bound(modules, lm), reader)
    alone, expected = said(wires.parse("text"), reader)
    assert texts == alone
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layout": "question"}, "fuse under layout question"),
        ({"layout": None}, "fuse under layout question"),
        ({"encoder": translated()}, "fuse cannot follow"),
    ],
)
def test_what_a_fuser_cannot_follow_is_refused(targets, changes, told):
    config = fused_config(targets["llama"])
    with pytest.raises(ValueError, match=told):
        LatentConfig(**{**dict(config), **changes})


def test_vectors_and_other_prompt_formats_are_refused(targets):
    lm = targets["llama"]
    config = fused_config(lm)
    with pytest.raises(UserError, match="fuse for latents that are vectors"):
        LatentModules(config.model_copy(update={"width": 8}), {lm.name: lm}, source())
    wire = bound(modules_of(config, lm), lm)
    chatty = copy(lm)
    chatty.tokenizer = copy(lm.tokenizer)
    chatty.tokenizer.chat_template = "{% for m in messages %}U {{ m['content'] }} {% endfor %}A "
    chatty.format = PromptFormat(template="chat")
    with pytest.raises(UserError, match="begin in another way"):
        wire(PROMPTS, chatty)
