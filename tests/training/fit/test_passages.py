"""A wire is trained on the answer tokens that an evaluation scores."""

import pytest
from tokenizers import Tokenizer, decoders, normalizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from latentwire.errors import UserError
from latentwire.lm.prompt_format import PromptFormat
from latentwire.tasks.world.reading import TIERS, ask_all
from latentwire.training.fit.passages import Tokenizing
from tests.models import CORPUS, tiny_tokenizer

EXAMPLES = ask_all(TIERS, 3)


def metaspace():
    """As SentencePiece cuts: every text gets a blank in front, whether it has one or not."""
    core = Tokenizer(BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Metaspace()
    letters = sorted({"▁", *"".join(e.context + e.question for e in EXAMPLES)} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def tokenizing(tokenizer, **how):
    return Tokenizing(tokenizer, PromptFormat(**how), "tiny", frozenset([tokenizer.eos_token_id]))


@pytest.mark.parametrize(
    ("reader", "alone"),
    [
        (tokenizing(metaspace()), False),
        (tokenizing(tiny_tokenizer(merge_blanks=True)), False),
        (tokenizing(tiny_tokenizer(), template="raw", delimiter="\n"), False),
        (tokenizing(tiny_tokenizer(bos=True)), True),
    ],
    ids=["metaspace", "merging", "delimiter", "byte-level"],
)
def test_answers_are_trained_as_the_tokens_that_they_are_scored_by(reader, alone):
    pairs = reader.pairs(EXAMPLES)
    ends = sorted(reader.eos_ids)
    for example, (behind, answer) in zip(EXAMPLES, pairs, strict=True):
        assert answer == [*reader.format.encode(example, reader)[1][0], *ends]
        assert behind == reader.format.behind(example.question, reader)
    bare = [
        reader.tokenizer(f" {example.answers[0]}", add_special_tokens=False)["input_ids"] for example in EXAMPLES
    ]
    assert ([answer[:-1] for _, answer in pairs] == bare) is alone


class Strides:
    """Three characters a token, counted from the text's beginning: what stands before changes every token."""

    eos_token_id = -1

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int.from_bytes(text[at : at + 3].encode()) for at in range(0, len(text), 3)]}


def test_a_context_that_changes_the_answers_tokens_is_refused():
    example = EXAMPLES[0]
    assert len(example.context) % 3 != 2  # with its line break no whole number of tokens
    with pytest.raises(UserError, match=f"tiny cuts the answer to {example.id} in another way"):
        tokenizing(Strides()).pairs(EXAMPLES)
