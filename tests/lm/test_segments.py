"""Many texts are tokenized as each one is."""

import pytest

from latentwire.lm.segments import FEWEST, splits_at_blanks, token_ids
from tests.support.models import tiny_tokenizer

TEXTS = [
    f"<s>The heron stood. {n}</s>one two <pad></s> three{' ' * (n % 3)}</s>\nAnswer: {n}" for n in range(FEWEST)
]


@pytest.mark.parametrize("merge_blanks", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_texts_with_special_tokens_are_tokenized_together_as_alone(merge_blanks, special):
    tokenizer = tiny_tokenizer(bos=True, merge_blanks=merge_blanks)
    alone = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in TEXTS]
    assert token_ids(TEXTS, tokenizer, special=special) == alone
    assert token_ids(["", *TEXTS], tokenizer, special=special)[1:] == alone


def test_a_special_token_that_takes_the_blanks_around_it_is_not_cut_out():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": []})
    tokenizer.backend_tokenizer.add_special_tokens([_greedy("<turn>")])
    texts = [f"one <turn>  two {n} </s>" for n in range(FEWEST)]
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert token_ids(texts, tokenizer, special=False) == alone


def _greedy(content):
    from tokenizers import AddedToken

    return AddedToken(content, lstrip=True, rstrip=True, special=True)


def test_a_tokenizer_without_words_is_known():
    assert splits_at_blanks(tiny_tokenizer())
    assert not splits_at_blanks(tiny_tokenizer(merge_blanks=True))
