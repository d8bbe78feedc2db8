"""Broken set-ups: each is caught with its own sentence, and nothing of the kind is said of the whole one."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rich.table import Table
from tokenizers import processors
from transformers import AutoTokenizer

from latentwire import UserError, wires
from latentwire.evaluation.audit import audit
from latentwire.evaluation.eval_report import audited
from latentwire.lm.masks import attention, blocks
from latentwire.lm.masks.reading import SHARED, Columns, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Example
from tests.support.models import tiny_lm, tiny_tokenizer

Breaks = Callable[[pytest.MonkeyPatch], LM]
HONEST, BOTH_WAYS, BUILD = Reading.visible, Reading.both_ways, Reading._build


def _see(monkeypatch: pytest.MonkeyPatch, lm: LM, visible: Callable[..., torch.Tensor]) -> LM:
    monkeypatch.setattr(Reading, "visible", visible)
    return lm


def _counting(monkeypatch: pytest.MonkeyPatch, counts: Callable[[int], bool]) -> LM:
    monkeypatch.setattr(Reading, "both_ways", lambda self, layer: counts(layer) and BOTH_WAYS(self, layer))
    return tiny_lm()


def leak_beyond_100_tokens(monkeypatch):
    def visible(self, queries, keys, layer, window):
        see = HONEST(self, queries, keys, layer, window)
        far = torch.arange(see.shape[2]) > 100
        return see | far[:, None] if keys > 110 else see

    return _see(monkeypatch, tiny_lm(max_position_embeddings=512), visible)


def one_layer_leaks_labels(monkeypatch):
    lm, honest = tiny_lm(), attention._made_once

    def made(reading, query, keys, layer, *args):  # what is added to scores: nothing hides a column
        mask = honest(reading, query, keys, layer, *args)
        return torch.zeros_like(mask) if layer == 2 and query.shape[2] > 1 else mask

    monkeypatch.setattr(attention, "_made_once", made)
    return lm


def one_layer_stays_causal(monkeypatch):
    return _counting(monkeypatch, lambda layer: layer != 1)


def all_layers_but_one_stay_causal(monkeypatch):
    return _counting(monkeypatch, lambda layer: layer == 0)


def layer_range_ignored(monkeypatch):
    monkeypatch.setattr(Reading, "both_ways", lambda self, layer: True)
    return tiny_lm()


def window_one_token_short_beside_full_layers(monkeypatch):
    def visible(self, queries, keys, layer, window):
        return HONEST(self, queries, keys, layer, window and window - 1)

    return _see(monkeypatch, tiny_lm("gemma3"), visible)


def window_of_512_one_token_long(monkeypatch):
    def visible(self, queries, keys, layer, window):
        return HONEST(self, queries, keys, layer, window and window + 1)

    return _see(monkeypatch, tiny_lm("mistral", sliding_window=512, max_position_embeddings=2048), visible)


def window_that_is_not_the_configurations(monkeypatch):
    lm = tiny_lm("gemma3")
    for layer in lm.model.get_decoder().layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 3
    return lm


def window_forgotten_while_decoding(monkeypatch):
    def visible(self, queries, keys, layer, window):
        return HONEST(self, queries, keys, layer, None if queries == 1 and keys > 80 else window)

    return _see(monkeypatch, tiny_lm("gemma3"), visible)


def documents_ignored_in_causal_rows(monkeypatch):
    def build(self, *args):
        columns = self.columns
        one = Columns(columns.valid, columns.positions, columns.blocks, torch.full_like(columns.documents, SHARED))
        return BUILD(replace(self, columns=one), *args)

    monkeypatch.setattr(Reading, "_build", build)
    return tiny_lm()


def documents_lost_under_padding_in_blocks(monkeypatch):
    layout = blocks._Mask._layout

    def lost(self, valid, position_ids, past):
        positions, documents = layout(self, valid, position_ids, past)
        return positions, documents if bool(valid.all()) else torch.full_like(positions, SHARED)

    monkeypatch.setattr(blocks._Mask, "_layout", lost)
    return tiny_lm()


def bos_from_the_tokenizer_twice(monkeypatch):
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(bos=True)
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 1)]
    )
    return lm


def bos_missing_from_a_chat(monkeypatch):
    lm = tiny_lm()
    chat = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    lm.tokenizer, lm.format = tiny_tokenizer(bos=True, chat=chat), PromptFormat(template="chat")
    monkeypatch.setattr("latentwire.lm.chat_template.with_one_bos", lambda ids, lm, begins: (list(ids), 0))
    return lm


def tokenizer_that_cuts(monkeypatch):
    lm = tiny_lm()
    call = type(lm.tokenizer).__call__

    def cut(self, *args, **kwargs):
        found = call(self, *args, **kwargs)
        rows = found["input_ids"]
        found["input_ids"] = [row[:512] for row in rows] if rows and isinstance(rows[0], list) else rows[:512]
        return found

    monkeypatch.setattr(type(lm.tokenizer), "__call__", cut)
    return lm


def saved_tokenizer_that_differs(monkeypatch):
    lm = tiny_lm()
    other = tiny_tokenizer(merge_blanks=True)
    monkeypatch.setattr(type(lm.tokenizer), "save_pretrained", lambda self, *a, **k: SAVE(other, *a, **k))
    return lm


SAVE = type(tiny_tokenizer()).save_pretrained
BROKEN: dict[Breaks, tuple[str, str]] = {
    leak_beyond_100_tokens: ("text", r"LEAK \(sdpa, padding none, \d{3} tokens\): layers 0, 1, 2 of 3 layers see"),
    one_layer_leaks_labels: ("text", r"LEAK \(.*\): layer 2 of 3 layers see \d+ pairs that the mask hides"),
    one_layer_stays_causal: ("text,mask=prefix", r"layer 1 of 3 layers miss \d+ pairs that the mask shows"),
    all_layers_but_one_stay_causal: ("text,mask=prefix", r"layers 1, 2 of 3 layers miss \d+ pairs"),
    layer_range_ignored: ("text,mask=prefix,layers=0-0", r"layers 1, 2 of 3 layers see \d+ pairs"),
    window_one_token_short_beside_full_layers: ("text", r"layers 0, 2 of 3 layers miss \d+ pairs"),
    window_of_512_one_token_long: ("text", r"1,?\d{3} tokens\): layers 0, 1, 2 of 3 layers see \d+ pairs"),
    window_that_is_not_the_configurations: ("text", r"differ from those of the model's own forward by"),
    window_forgotten_while_decoding: ("text", r"differs from one full pass by \S+ after 1\d\d tokens"),
    documents_ignored_in_causal_rows: ("text", r"packed rows: a document beside others has other states"),
    documents_lost_under_padding_in_blocks: (
        "text",
        r"latentwire.blocks: a document in a packed row with padding",
    ),
    bos_from_the_tokenizer_twice: ("text", r"found 2 BOS tokens at the beginning of audit/sample, expected one"),
    bos_missing_from_a_chat: ("text", r"found no BOS token at the beginning of audit/sample, expected one"),
    tokenizer_that_cuts: ("text", r"tokenizer: cuts texts at 512 tokens without a word"),
    saved_tokenizer_that_differs: ("text", r"tokenizer: a saved copy makes \d+ tokens of a text of \d+"),
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_set_up_is_caught_with_its_sentence(breaks, monkeypatch):
    spec, sentence = BROKEN[breaks]
    found = audit(breaks(monkeypatch), wires.parse(spec), kernels=["sdpa"])
    assert any(re.search(sentence, problem) for problem in found.problems), found.problems
    assert all("\n" not in problem for problem in found.problems)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["text", "text,mask=prefix", "text,mask=prefix,layers=0-0"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_the_same_set_ups_unbroken_are_clean(family, spec):
    size = {"sliding_window": 512, "max_position_embeddings": 2048} if family == "mistral" else {}
    found = audit(tiny_lm(family, **size), wires.parse(spec), kernels=["sdpa"])
    assert found.problems == []
    assert len({sight.layer for sight in found.layers}) == 3


def test_a_chat_inside_a_prompt_that_begins_with_bos_is_caught_in_the_users_data():
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(bos=True)
    own = Example(id="mine/1", group="g", context="<s>[user] Ada has a cat.", question="Who?", answers=("Ada",))
    found = audit(lm, wires.parse("text"), [own], kernels=["sdpa"])
    assert any("found 2 BOS tokens at the beginning of mine/1" in problem for problem in found.problems)


def test_another_tokenizer_in_memory_than_in_the_models_files_is_caught(tmp_path):
    tiny_lm().save(tmp_path / "model")
    lm = LM.load(tmp_path / "model")
    assert audit(lm, wires.parse("text"), kernels=["sdpa"]).problems == []
    lm.tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    (problem,) = audit(lm, wires.parse("text"), kernels=["sdpa"]).problems
    assert re.search(
        r"tokenizer: the one in .*model makes \d+ tokens of a text of \d+, others from token 0 on", problem
    )


def test_a_template_that_differs_from_trainings_is_a_warning():
    lm = tiny_lm(max_position_embeddings=512)
    lm.saved_format = PromptFormat(anchor="So:")
    found = audit(lm, wires.parse("text"), kernels=["sdpa"])
    assert found.problems == []
    assert found.warnings == [
        "llama is read with another prompt format than it was trained with: anchor 'Answer:' and not 'So:'."
    ]
    assert f"WARNING: {found.warnings[0]}" in list(audited(found))


def test_a_clean_report_says_in_numbers_what_was_looked_at_and_what_was_not():
    lm = tiny_lm("gemma3", max_position_embeddings=512)
    found = audit(lm, wires.parse("text,mask=prefix"), kernels=["sdpa", "eager"])
    lines = [line for line in audited(found) if not isinstance(line, Table)]
    pairs, lengths = sum(sight.pairs for sight in found.layers), sorted({sight.tokens for sight in found.layers})
    assert lengths[-1] == found.long_tokens > 250
    assert (
        f"looked at: {pairs:,} pairs of a state and a position over 3 layers, in rows of {lengths[0]} and "
        f"{lengths[1]} tokens" in lines
    )
    (line,) = [line for line in lines if line.startswith("not looked at: ")]
    assert f"rows of more than {found.long_tokens} tokens; the model takes 512" in line
    assert "the tokenizer's own files, since gemma3 is no local folder" in line
    assert lines[-1].startswith("passed")


def test_a_window_that_the_length_does_not_reach_is_said():
    lm = tiny_lm("mistral", sliding_window=512, max_position_embeddings=2048)
    found = audit(lm, wires.parse("text"), kernels=["sdpa"], length=64)
    assert any("longer than the sliding window of 512 tokens" in each for each in found.not_looked_at)
    with pytest.raises(UserError, match="length: found 5,000, expected 8 to 2,034"):
        audit(lm, wires.parse("text"), kernels=["sdpa"], length=5000)


VOCABULARY, ANSWER = 48, 12


def fit_random_tokens(spec, steps=150):
    """Train on uniform random tokens, fresh ones every step: nothing can be learned but to read the labels."""
    torch.manual_seed(0)
    lm = tiny_lm("llama", seed=1, initializer_range=0.02, vocab_size=VOCABULARY, tie_word_embeddings=True)
    wire = wires.parse(spec)
    lm.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        length = int(torch.randint(8, 64, (), generator=draw))
        tokens = torch.randint(VOCABULARY, (16, length + ANSWER), generator=draw)
        blocks = [[0 if wire.mask == "prefix" else -1] * length] * 16
        prefix = Prefix.of_tokens(tokens[:, :length].tolist(), blocks, leaky=wire.leaks)
        forced = lm.forced(prefix, pad_rows(tokens[:, length:].tolist(), -100))
        loss = torch.nn.functional.cross_entropy(lm.head(forced.hidden).flatten(0, 1), forced.labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    lm.model.requires_grad_(False)
    return lm, sum(losses[-20:]) / 20


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["text", "text,mask=prefix"])
def test_nothing_can_be_learned_from_random_tokens_over_an_honest_wire(spec):
    _, loss = fit_random_tokens(spec)
    assert loss > math.log(VOCABULARY) - 0.02


@pytest.mark.slow
def test_leaky_learns_random_tokens_and_the_audit_catches_it():
    lm, loss = fit_random_tokens("leaky")
    assert loss < 0.5 * math.log(VOCABULARY)
    lm.tokenizer = _Modulo(lm.tokenizer)
    found = audit(lm, wires.parse("leaky"), kernels=["sdpa"])
    assert any("random labels" in problem for problem in found.problems)
    plain = audit(lm, wires.parse("text"), kernels=["sdpa"]).problems
    # The stand-in of a tokenizer is saved as what it stands in for.
    assert [problem for problem in plain if not problem.startswith("tokenizer: a saved copy")] == []


class _Modulo:
    """A tokenizer whose ids fit the small vocabulary; only ids matter here."""

    is_fast = False  # so that it is called, and not the fast tokenizer inside it

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        found = self._tokenizer(text, **options)
        rows = found["input_ids"] if isinstance(text, list) else [found["input_ids"]]
        ids = [[token % VOCABULARY for token in row] for row in rows]
        return {**found, "input_ids": ids if isinstance(text, list) else ids[0]}
