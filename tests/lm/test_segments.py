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


@pytest.mark.parametrize("merge_blanks", [False, True])
@pytest.mark.parametrize("shared", ["\nCopy a phrase.\n", "\nCopy a phrase ", "\nWrite it as 1", "\n"])
def test_what_all_texts_begin_with_changes_no_token(shared, merge_blanks):
    tokenizer = tiny_tokenizer(merge_blanks=merge_blanks)
    rests = ["Who?", "2 of them?", "'s it", " Who?", "\nWho?", "", "a", "été", "8"]
    texts = [f"{shared}{rest}{end}" for rest in rests for end in ("", "</s>", f"</s>{shared}a", "</s>none")]
    texts += [f"{shared}Who was the number {n}?" for n in range(FEWEST)]
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert token_ids(texts, tokenizer, special=False, shared=shared) == alone


def test_what_all_texts_begin_with_is_tokenized_once(monkeypatch):
    tokenizer, shared = tiny_tokenizer(), "\nCopy the shortest phrase.\n"
    seen = []
    whole = tokenizer.backend_tokenizer.encode_batch_fast

    class Counted:
        padding = truncation = None
        pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer

        def encode_batch_fast(self, texts, **options):
            seen.extend(texts)
            return whole(texts, **options)

    texts = [f"{shared}Who was the number {n}?" for n in range(FEWEST)]
    expected = token_ids(texts, tokenizer, special=False)
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", Counted())
    assert token_ids(texts, tokenizer, special=False, shared=shared) == expected
    assert sum(text.startswith(shared) for text in seen) < len(texts) / 4  # one for each first letter, and probes


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
