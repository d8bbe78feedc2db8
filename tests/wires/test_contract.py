"""What every wire promises, whichever it is."""

import gc
from copy import copy
from pathlib import Path
from weakref import ref

import pytest
import torch

from latentwire import models, wires
from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import CAUSAL, Prompt
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import ConstantConfig, SelfConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.latent.select import Anchors
from tests.support.models import tiny_lm

SPECS = [
    "text",
    "text,mask=prefix",
    "text,mask=segments",
    "text,mask=prefix,layers=1-2",
    "none",
    "none,mask=prefix",
    "budget,tokens=4",
    "repeat",
    "budget,ratio=2",
    "prune,tokens=4",
    "prune,ratio=2",
    "leaky",
    "relay,ratio=2,source=SOURCE",
    "relay,tokens=4,source=SOURCE,question=true",
]
LATENT = [
    "nth,ratio=1",
    "nth,ratio=3",
    "nth,tokens=3",
    "evict,ratio=3",
    "evict,tokens=3",
    "evict,ratio=3,budget=head",
    "nth,ratio=3:zero",
    "nth,ratio=3:mean",
    "evict,ratio=3:4bit",
    "FOLDER",
    "FOLDER:mean",
    "FOLDER:8bit",
    "CONSTANT",
]
"""FOLDER stands for a trained wire's, CONSTANT for that of a learned prefix, SOURCE for another model's folder."""
ALL = SPECS + LATENT
HONEST = [spec for spec in ALL if spec != "leaky"]
PROMPTS = [
    Prompt(context="Ada lives in the old town by the river.", question="Where does Ada live?"),
    Prompt(context="The heron stood in the shallow water.", question="Who stood?"),
    Prompt(context="", question="What is left of nothing?"),
]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def named(lm, tmp_path_factory):
    """A wire by its name, with FOLDER, CONSTANT and SOURCE as folders."""
    encoders = {"FOLDER": SelfConfig(select=Anchors(ratio=3), rank=2), "CONSTANT": ConstantConfig(tokens=3)}
    folders = {}
    for name, encoder in encoders.items():
        torch.manual_seed(0)
        config = LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()})
        modules = LatentModules(config, {lm.name: lm}, lm)
        for each in modules.trained().values():
            each.data += 0.1 * torch.randn_like(each)
        folders[name] = tmp_path_factory.mktemp(name)
        modules.save(folders[name])
    folders["SOURCE"] = tmp_path_factory.mktemp("SOURCE") / "qwen3"
    tiny_lm("qwen3", max_position_embeddings=512).save(folders["SOURCE"])

    def of(spec):
        for name, folder in folders.items():
            spec = spec.replace(name, str(folder))
        return spec

    return of


@pytest.fixture(scope="module")
def bound(lm, named):
    return lambda spec: wires.parse(named(spec)).bind(lm).sampled([*(p.context for p in PROMPTS), "Ada has 12."])


def states(lm, prefix, answers):
    with torch.no_grad():
        return lm.forced(prefix, pad_rows(answers, -100)).hidden


def test_every_kind_is_tested():
    kinds = {each.split(",")[0] for each in ALL}
    assert {each for each in kinds if each.islower() and ":" not in each} == set(wires.KINDS)


@pytest.mark.parametrize("spec", ALL)
def test_a_label_names_its_wire(named, spec):
    spec = named(spec)
    assert wires.parse(spec).label == spec
    assert wires.parse(wires.parse(spec).label) == wires.parse(spec)


@pytest.mark.parametrize("spec", ALL)
def test_a_prompt_reads_the_same_alone_in_a_batch_and_in_another_order(lm, bound, spec):
    wire = bound(spec)
    answers = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    together = states(lm, wire(PROMPTS, lm), answers)
    for n, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(states(lm, wire([prompt], lm), [answers[n]])[0], together[n], atol=1e-5, rtol=0)
    backwards = states(lm, wire(PROMPTS[::-1], lm), answers[::-1])
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", ALL)
def test_padding_columns_change_nothing(lm, bound, spec):
    wire = bound(spec)
    prefix = wire(PROMPTS[:1], lm)
    longer = wire([PROMPTS[0], Prompt(context=PROMPTS[0].context * 2, question="Where? " * 9)], lm)
    padded = longer.select(torch.tensor([0]))
    assert padded.columns.width > prefix.columns.width
    torch.testing.assert_close(states(lm, padded, [[5, 6]]), states(lm, prefix, [[5, 6]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", ALL)
def test_the_context_comes_from_the_message_alone(lm, bound, spec):
    """A wire that looked past its message at the prompt's context could not be a control."""
    wire = bound(spec)
    message = wire.send(PROMPTS[:1], lm)
    elsewhere = Prompt(context="something else entirely", question=PROMPTS[0].question)
    delivered = wire.deliver(message, [elsewhere], lm)
    assert torch.equal(states(lm, delivered, [[5, 6]]), states(lm, wire(PROMPTS[:1], lm), [[5, 6]]))


@pytest.mark.parametrize("spec", ALL)
def test_the_message_is_counted_in_bytes(lm, bound, spec):
    wire = bound(spec)
    message = wire.send(PROMPTS, lm)
    if isinstance(message, Latents):
        *texts, nothing = message.nbytes()
        assert all(each > nothing or spec == "CONSTANT" for each in texts)
    elif spec.startswith("relay"):
        assert message.nbytes() == [len(text.encode()) for text in message.texts]
    else:
        assert all(0 <= n <= len(p.context.encode()) for n, p in zip(message.nbytes(), PROMPTS, strict=True))
    if spec.startswith("none"):
        assert message.nbytes() == [0, 0, 0]


@pytest.mark.parametrize("spec", HONEST)
def test_no_answer_token_changes_what_stands_before_it(lm, bound, spec):
    prefix = bound(spec)(PROMPTS, lm)
    one = states(lm, prefix, [[5, 6, 7, 8]] * 3)
    two = states(lm, prefix, [[5, 6, 99, 8]] * 3)
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.equal(one[:, 3], two[:, 3])


def test_leaky_sees_its_own_label_and_says_so(lm):
    wire = wires.parse("leaky")
    prefix = wire(PROMPTS, lm)
    one, two = states(lm, prefix, [[5, 6]] * 3), states(lm, prefix, [[5, 99]] * 3)
    assert not torch.equal(one[:, 1], two[:, 1])
    assert not torch.equal(one[:, 0], two[:, 0])
    assert wire.leaks
    with pytest.raises(UserError, match="see itself"):
        wire.refuse_training()
    wire.refuse_training(force=True)


@pytest.mark.parametrize("spec", HONEST)
def test_prefill_and_scoring_equal_one_pass(lm, bound, spec):
    prefix = bound(spec)(PROMPTS, lm)
    answers = [[5, 6, 7]] * 3
    full = lm.head(states(lm, prefix, answers)).log_softmax(-1)
    expected = full.gather(-1, torch.tensor(answers)[..., None]).sum((1, 2))
    scored = lm.score(lm.prefill(prefix), [[answer, [9]] for answer in answers])
    torch.testing.assert_close(
        torch.tensor([row[0].logprob for row in scored]), expected.float(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_text_without_a_mask_is_the_untouched_model(family):
    lm = tiny_lm(family)
    prefix = wires.parse("text")(PROMPTS[:1], lm)
    generated = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=8))[0]
    stock = lm.model.generate(prefix.ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[
        0, prefix.ids.shape[1] :
    ]
    ids = [token for token in stock.tolist() if token not in lm.eos_ids]
    assert list(generated.ids) == ids[: len(generated.ids)]


def test_prefix_is_one_block_segments_are_two_and_repeat_is_twice(lm):
    text = wires.parse("text")(PROMPTS[:1], lm)
    prefix = wires.parse("text,mask=prefix")(PROMPTS[:1], lm)
    segments = wires.parse("text,mask=segments")(PROMPTS[:1], lm)
    repeat = wires.parse("repeat")(PROMPTS[:1], lm)
    assert set(text.columns.blocks[0].tolist()) == {CAUSAL}
    assert set(prefix.columns.blocks[0].tolist()) == {0}
    assert sorted(set(segments.columns.blocks[0].tolist())) == [0, 1]
    question = segments.columns.blocks[0].tolist().index(1)
    assert lm.decode(segments.ids[0, question:].tolist()).startswith("Question")
    assert lm.decode(repeat.ids[0].tolist()).count(PROMPTS[0].context) == 2


def test_budget_keeps_the_first_tokens_of_the_context(lm):
    whole = lm.tokenizer(PROMPTS[0].context, add_special_tokens=False)["input_ids"]
    message = wires.parse("budget,tokens=6").bind(lm).encode([PROMPTS[0].context])
    assert lm.tokenizer(message.texts[0], add_special_tokens=False)["input_ids"] == whole[:6]
    assert wires.parse("budget,tokens=9999").bind(lm).encode([PROMPTS[0].context]).texts == (PROMPTS[0].context,)


@pytest.mark.parametrize("size", ["ratio=2", "ratio=5", "tokens=3"])
def test_a_relay_is_the_sources_text_and_no_longer_than_what_budget_keeps(lm, named, bound, size):
    spec = f"relay,{size},source=SOURCE"
    contexts = [prompt.context for prompt in PROMPTS]
    said, kept = bound(spec).encode(contexts).texts, bound(f"budget,{size}").encode(contexts).texts
    for ours, theirs in zip(said, kept, strict=True):
        counts = [len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (ours, theirs)]
        assert counts[0] <= counts[1]
    source = LM.load(named("SOURCE"))
    ids = source.tokenizer(f"{contexts[0]}\nIn short:")["input_ids"]
    free = source.generate(source.prefill(Prefix.of_tokens([ids])), Decoding(max_new_tokens=60))[0].text.strip()
    assert said[0]
    assert free.startswith(said[0])
    assert said[2] == ""


def test_arms_of_one_source_load_it_once_and_give_its_memory_back(lm, named, monkeypatch):
    gc.collect()
    loads, load = [], LM.load
    monkeypatch.setattr(LM, "load", lambda spec, **how: loads.append(spec) or load(spec, **how))
    arms = [wires.parse(named(f"relay,tokens={count},source=SOURCE")).bind(lm) for count in (2, 3)]
    assert arms[0]._source is arms[1]._source
    assert loads == [named("SOURCE")]
    reader = copy(lm)
    reader.name = named("SOURCE")
    assert wires.parse(named("relay,tokens=2,source=SOURCE")).bind(reader)._source is reader
    held = ref(arms[0]._source)
    del arms
    gc.collect()
    assert held() is None


def test_a_relays_question_is_seen_only_where_it_is_asked_for(lm, bound):
    other = [Prompt(context=PROMPTS[0].context, question="How many fish are there in the town?")]
    blind, seeing = (bound(f"relay,tokens=9,source=SOURCE{more}") for more in ("", ",question=true"))
    assert blind.send(PROMPTS[:1], lm).texts == blind.send(other, lm).texts
    assert seeing.send(PROMPTS[:1], lm).texts != seeing.send(other, lm).texts
    assert [blind.question_aware, seeing.question_aware] == [False, True]
    with pytest.raises(ValueError, match="send"):
        seeing.encode([PROMPTS[0].context])


@pytest.mark.parametrize("spec", ["nth,ratio=3", "FOLDER", "CONSTANT"])
def test_keys_and_values_without_a_question_are_refused(lm, bound, spec):
    """No column would be left whose state says what comes next: an answer would be that of padding."""
    reader = copy(lm)
    reader.format = PromptFormat(template="raw", anchor="")
    with pytest.raises(UserError, match="nothing after a context"):
        bound(spec)([Prompt(context=PROMPTS[0].context, question="")], reader)


def test_the_tail_that_an_answer_would_change_stays_causal(lm):
    prompt = Prompt(context="Ada", question="Who?", unstable=2)
    blocks = wires.parse("text,mask=prefix")([prompt], lm).columns.blocks[0].tolist()
    assert blocks[-2:] == [CAUSAL, CAUSAL]
    assert set(blocks[:-2]) == {0}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("txt", "nearest: text"),
        ("text,msk=prefix", "nearest: mask"),
        ("text,mask=prefixx", "'causal', 'prefix' or 'segments'"),
        ("text,mask", "OPTION=VALUE"),
        ("text,mask=prefix,mask=causal", "OPTION=VALUE"),
        ("budget", "required"),
        ("budget,tokens=0", "greater than or equal to 1"),
        ("budget,tokens=many", "valid integer"),
        ("text,layers=5-2", "range"),
        ("", "expected one of"),
        ("text,layers=0-1", "without a mask"),
        ("nth,ratio=4,tokens=4", "only one of the two"),
        ("evict", "required"),
        ("nth,ratio=4:zeros", "nearest: zero"),
        ("text:4bit", "sends no latents"),
        ("nth,ratio=4,control=zero", "expected OPTION=VALUE"),
        ("/tmp", "wire.json"),
        ("embedded:no-such-wire", "embedded:no-such-wire"),
        ("relay,ratio=4", "found nothing, expected source=VALUE"),
        ("relay,source=embedded:wren", "ratio or tokens"),
        ("relay,ratio=4,source=embedded:wren:zero", "sends no latents"),
        ("relay,ratio=4,source=embedded:wren,question=true,cue=Hm", "without question"),
    ],
)
def test_a_wrong_wire_is_refused_in_one_sentence(text, part):
    with pytest.raises(UserError) as error:
        wires.parse(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_folder_names_its_best_wire(lm, named, tmp_path):
    best = tmp_path / "checkpoints" / "best"
    best.parent.mkdir()
    best.symlink_to(named("FOLDER"))
    run, folder = (wires.parse(path).bind(lm) for path in (str(tmp_path), named("FOLDER")))
    assert run.label == str(tmp_path)
    contexts = [PROMPTS[0].context]
    assert torch.equal(run.encode(contexts).flat(), folder.encode(contexts).flat())


def test_an_embedded_wire_is_found_by_its_name(monkeypatch, named):
    monkeypatch.setattr(models, "WIRES", ("heron-4x",))
    monkeypatch.setattr(models, "__file__", str(Path(named("FOLDER")).parent / "__init__.py"))
    link = Path(named("FOLDER")).parent / "heron-4x"
    link.symlink_to(named("FOLDER"))
    assert wires.parse("embedded:heron-4x:4bit").label == "embedded:heron-4x:4bit"
    with pytest.raises(UserError, match="nearest: heron-4x"):
        wires.parse("embedded:heron-4")
    link.unlink()


def test_layers_that_the_model_has_not_are_refused(lm):
    with pytest.raises(UserError, match="0-2"):
        wires.parse("text,mask=prefix,layers=0-9").bind(lm)


def test_a_prefix_needs_content():
    with pytest.raises(ValueError, match="either"):
        Prefix(columns=Prefix.of_tokens([[1]]).columns)
