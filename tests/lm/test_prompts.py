"""From an example to tokens, and where prompt and answer part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from latentwire import LM, Example, PromptFormat, UserError
from latentwire.lm.masks.reading import CAUSAL
from tests.support.models import tiny_model, tiny_tokenizer

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}[assistant] "
)
VERBATIM = CHAT.replace(" | trim", "")


def reader(tokenizer: PreTrainedTokenizerFast) -> LM:
    return LM(tiny_model(), tokenizer, name="tiny")


TOKENIZERS = {
    "plain": tiny_tokenizer(chat=VERBATIM),
    "bos": tiny_tokenizer(bos=True, chat=VERBATIM),
    "bos and eos": tiny_tokenizer(bos=True, eos=True, chat=VERBATIM),
    "merging": tiny_tokenizer(merge_blanks=True, chat=VERBATIM),
    "merging bos": tiny_tokenizer(merge_blanks=True, bos=True, chat=VERBATIM),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def lm(request: pytest.FixtureRequest) -> LM:
    return reader(TOKENIZERS[request.param])


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
def test_many_texts_at_once_are_the_tokens_of_each_alone(lm: LM, template: Any) -> None:
    padding = copy.deepcopy(lm.tokenizer)  # as a tokenizer file may say, for batches that a model reads at once
    padding.backend_tokenizer.enable_padding(direction="left", pad_id=3, pad_token="?")
    many, form = LM(lm.model, padding, name="tiny"), PromptFormat(template=template, delimiter=" ")
    examples = [
        Example(id="1", group="g", context="Ana has a cat.", question="What has Ana?", answers=("a cat",)),
        Example(id="2", group="g", context="", question="Who?", answers=("Bea, of whom nothing else is known",)),
        Example(
            id="3",
            group="g",
            context="Cid saw a dog and a long train.",
            question="What?",
            choices=("a dog", "rain"),
        ),
    ]
    for example, (prompt, answers) in zip(examples, form.encode_all(examples, many), strict=True):
        assert prompt.tokens == len(form.tokens(example.context, example.question, lm).ids)
        alone = [
            form.whole(example.context, example.question, each, lm) for each in example.choices or example.answers
        ]
        assert list(answers) == [each[prompt.tokens :] for each in alone]
    asked = [example.question for example in examples]
    assert form.after_all(asked, many) == [form.after(each, lm) for each in asked]
    pairs = [(f"{example.context} {n}".strip(), example.question) for n in range(30) for example in examples]
    assert form.tokens_all(pairs, many) == [form.tokens(context, question, lm) for context, question in pairs]


@pytest.fixture(scope="module")
def merging() -> LM:
    return reader(TOKENIZERS["merging"])


@pytest.fixture(scope="module")
def plain() -> LM:
    return reader(TOKENIZERS["plain"])


def example(context: str = "Ada has 12 apples.", question: str = "How many?", **more: Any) -> Example:
    return Example(id="1", group="g", context=context, question=question, **({"answers": ("12",)} | more))


def encode_pair(lm: LM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """What lm-eval's rule says: blanks move over, the whole is split after the context's own tokens."""
    stripped = context.rstrip()
    whole, alone = (ids_of(lm, text) for text in (context + continuation, stripped))
    return alone, whole[len(alone) :]


def ids_of(lm: LM, text: str, special: bool = True) -> list[int]:
    ids: list[int] = lm.tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[:-1] if ids[-1:] == [2] else ids


@pytest.mark.parametrize("question", ["How many?", "How many? ", "How many?   ", "How many?\n", "How many:\n\n "])
@pytest.mark.parametrize("answer", ["12", " in", "  twelve", "\n", "é"])
def test_a_raw_pair_is_split_as_lm_eval_splits_it(lm: LM, question: str, answer: str) -> None:
    form = PromptFormat(template="raw")
    item = example("Ada has 12 apples. ", question, answers=(), choices=(answer,), gold=0)
    prompt, (ids,) = form.encode(item, lm)
    alone, continuation = encode_pair(lm, item.context + item.question, answer)
    assert form.tokens(item.context, item.question, lm).ids == alone
    assert ids == continuation
    assert prompt.unstable == len(alone) - common(alone, ids_of(lm, item.context + question + answer))


def common(left: list[int], right: list[int]) -> int:
    at = 0
    while at < min(len(left), len(right)) and left[at] == right[at]:
        at += 1
    return at


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
def test_prompt_and_answer_are_the_text_tokenized_as_one(lm: LM, template: Any) -> None:
    form = PromptFormat(template=template)
    item = example()
    text, _ = form.render(item.context, item.question, lm)
    assert (
        text
        == {
            "question": "Ada has 12 apples.\nQuestion: How many?\nAnswer:",
            "raw": "Ada has 12 apples.How many?",
            "chat": "<s>[user] Ada has 12 apples.\nHow many?\n[assistant] Answer:",
        }[template]
    )
    prompt, (answer,) = form.encode(item, lm)
    ids = form.tokens(item.context, item.question, lm).ids
    whole = ids_of(lm, text + ("12" if template == "raw" else " 12"), template != "chat")
    assert answer == whole[len(ids) :]
    if common(ids, whole) == len(ids):
        assert ids + answer == whole
    assert ids.count(1) == int(template == "chat" or bool(ids_of(lm, "a")[0] == 1)), "one BOS at most"
    assert 2 not in ids + answer, "no EOS before anything follows"
    assert prompt.context == item.context
    assert prompt.question == item.question


def test_tokens_that_change_once_an_answer_follows_are_counted(merging: LM) -> None:
    """`Answer:` and ` in` share the token `: `: the prompt's last token is another one under the answer."""
    form = PromptFormat()
    asked = example(answers=(), choices=("in the town",), gold=0)
    prompt, (answer,) = form.encode(asked, merging)
    ids = form.tokens(prompt.context, prompt.question, merging).ids
    whole = ids_of(merging, "Ada has 12 apples.\nQuestion: How many?\nAnswer: in the town")
    assert prompt.unstable == 1
    assert ids[:-1] == whole[: len(ids) - 1]
    assert ids[-1] != whole[len(ids) - 1]
    assert answer == whole[len(ids) :]
    tokens = form.tokens(prompt.context, prompt.question, merging)
    assert tokens.blocks("prefix", prompt.unstable, 0) == [0] * (len(ids) - 1) + [CAUSAL]
    stable, _ = form.encode(example(), reader(TOKENIZERS["plain"]))
    assert stable.unstable == 0


def test_an_answer_that_is_generated_does_not_shape_its_prompt(merging: LM) -> None:
    """The label would be in the mask: what is generated cannot be known beforehand."""
    prompts = [PromptFormat().encode(example(answers=(a,)), merging)[0] for a in ("in the town", "12")]
    assert prompts[0] == prompts[1]


def test_unstable_tokens_are_those_that_any_choice_changes(merging: LM) -> None:
    form = PromptFormat(template="raw")
    choices = ("X", " in")
    alone = [
        form.encode(example("Question", ":", answers=(), choices=(c,), gold=0), merging)[0].unstable
        for c in choices
    ]
    assert alone == [0, 1]
    for together in (choices, choices[::-1]):
        item = example("Question", ":", answers=(), choices=together, gold=0)
        assert form.encode(item, merging)[0].unstable == 1


def test_an_answer_does_not_depend_on_its_siblings(lm: LM) -> None:
    choices = ("in the town", "12", "by the river", "in", "X")
    for template in ("question", "raw", "chat"):
        form = PromptFormat(template=template)  # type: ignore[arg-type]
        together = form.encode(example(answers=(), choices=choices, gold=1), lm)[1]
        assert len(together) == len(choices)
        for n, choice in enumerate(choices):
            (alone,) = form.encode(example(answers=(), choices=(choice,), gold=0), lm)[1]
            assert alone == together[n]
        assert form.encode(example(answers=(), choices=choices[::-1], gold=1), lm)[1] == together[::-1]


def test_the_first_answer_is_the_one_trained_on(plain: LM) -> None:
    form = PromptFormat()
    assert form.encode(example(answers=("12", "twelve")), plain) == form.encode(example(answers=("12",)), plain)
    assert form.encode(example(answers=()), plain)[1] == ()


def test_the_label_never_reaches_the_prompt(plain: LM) -> None:
    form = PromptFormat()
    one, other = (form.encode(example(answers=(a,)), plain)[0] for a in ("12", "7"))
    assert one == other


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
def test_segments_part_where_the_context_ends(lm: LM, template: Any) -> None:
    form = PromptFormat(template=template)
    context = "Ada has 12 apples.\n" if template == "raw" else "Ada has 12 apples."
    tokens = form.tokens(context, "How many?", lm)
    assert len(tokens.segments) == len(tokens.ids)
    assert tokens.segments == sorted(tokens.segments)
    first = lm.tokenizer.decode([i for i, s in zip(tokens.ids, tokens.segments, strict=True) if s == 0])
    second = lm.tokenizer.decode([i for i, s in zip(tokens.ids, tokens.segments, strict=True) if s == 1])
    assert first.endswith("Ada has 12 apples.\n")
    assert "How many?" in second
    assert "apples" not in second
    assert set(form.tokens("", "How many?", lm).segments) == {1}


@pytest.mark.parametrize("context", ["  Ada has 12 apples.", "\nAda has 12 apples.", "Ada has 12 apples."])
def test_a_chat_template_that_strips_keeps_the_segments_right(context: str) -> None:
    lm = reader(tiny_tokenizer(chat=CHAT))
    tokens = PromptFormat(template="chat").tokens(context, "How many?", lm)
    first = lm.tokenizer.decode([i for i, s in zip(tokens.ids, tokens.segments, strict=True) if s == 0])
    assert first == "<s>[user] Ada has 12 apples.\n"


def test_a_chat_template_that_rewrites_or_is_missing_is_refused() -> None:
    form = PromptFormat(template="chat")
    for chat, said in ((CHAT.replace("trim", "upper"), "changes the words"), (None, "no chat template")):
        with pytest.raises(UserError, match=said) as error:
            form.tokens("Ada has 12 apples.", "How many?", reader(tiny_tokenizer(chat=chat)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("anchor", ["Answer:", "The answer is", "A: "])
def test_the_anchor_can_stand_outside_the_block(lm: LM, anchor: str) -> None:
    for template in ("question", "chat"):
        inside = PromptFormat(template=template, anchor=anchor)  # type: ignore[arg-type]
        causal = PromptFormat(template=template, anchor=anchor, anchor_block="causal")  # type: ignore[arg-type]
        tokens = causal.tokens("Ada has 12 apples.", "How many?", lm)
        assert tokens == inside.tokens("Ada has 12 apples.", "How many?", lm)
        outside = causal.outside(tokens)
        assert inside.outside(tokens) == 0
        text = lm.tokenizer.decode(tokens.ids[len(tokens.ids) - outside :])
        assert text.strip().endswith(anchor.strip())
        assert "many" not in text
        blocks = tokens.blocks("prefix", 0, outside)
        assert blocks == [0] * (len(tokens.ids) - outside) + [CAUSAL] * outside


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
def test_without_an_anchor_nothing_is_outside(lm: LM, template: Any) -> None:
    form = PromptFormat(template=template, anchor="", anchor_block="causal")
    tokens = form.tokens("Ada has 12 apples.", "How many?", lm)
    assert form.outside(tokens) == 0
    assert set(tokens.blocks("prefix", 0, form.outside(tokens))) == {0}


def test_blocks_of_a_prompt(plain: LM) -> None:
    tokens = PromptFormat().tokens("Ada has 12 apples.", "How many?", plain)
    count, context = len(tokens.ids), tokens.segments.count(0)
    assert 0 < tokens.anchor < count - context
    assert tokens.blocks("causal", 0, 0) == [CAUSAL] * count
    assert tokens.blocks("prefix", 0, 0) == [0] * count
    assert tokens.blocks("segments", 0, 0) == [0] * context + [1] * (count - context)
    assert tokens.blocks("segments", 2, 1) == [0] * context + [1] * (count - context - 2) + [CAUSAL] * 2
    assert tokens.blocks("prefix", 1, 3) == [0] * (count - 3) + [CAUSAL] * 3


def test_nothing_to_ask_or_to_answer_is_refused(plain: LM) -> None:
    with pytest.raises(UserError, match="found no token"):
        PromptFormat(template="raw").tokens("", "  ", plain)
    with pytest.raises(UserError, match="1: the answer '' adds no token"):
        PromptFormat(template="raw").encode(example(answers=("",)), plain)


def test_a_format_is_one_of_three_and_has_no_other_fields() -> None:
    for wrong in ({"template": "poem"}, {"few_shot": 3}, {"anchor_block": "outside"}):
        with pytest.raises(ValueError, match="validation error"):
            PromptFormat(**wrong)  # type: ignore[arg-type]
