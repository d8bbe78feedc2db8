"""The tokenizer of a `.gguf` file, built from the file's own vocabulary and checked against it.

Transformers' conversion gives other tokens than the file for several models: it takes SentencePiece vocabularies
for unigram models, exchanges BOS and EOS, adds no BOS, and splits digits as GPT-2 does whatever the file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latentwire.errors import UserError, one_of
from latentwire.lm.loading.gguf_files import metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in `tokenizer.ggml.token_type`."""
_BLANK = "\u2581"
"""What SentencePiece writes for a space."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_DIGITS = r"\p{N}"
_SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (_DIGITS, _GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (_QWEN2,)),
}
"""By `tokenizer.ggml.pre`, the patterns that split a text one after the other, before merges are applied."""
_LLAMA3_LIKE = ("llama3", "llama-v3", "llama-bpe", "falcon3")
"""Whole words of the vocabulary come before merges, and texts begin with BOS unless the file says otherwise."""


def read(reader: Any, name: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a `.gguf` file describes, checked against the file's vocabulary.

    Args:
        reader: of `gguf_files.parsed_once`.
        name: the file, for error messages.
        folder: where the file is. A `tokenizer.json` there is taken for a vocabulary of a kind not known here.

    Raises:
        UserError: the file holds no vocabulary, or one of a kind that is not known here; or the tokenizer gives
            other tokens than the file.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = build(reader, name)
    except UserError:
        if not (folder / "tokenizer.json").exists() or not metadata(reader, "tokenizer.ggml.tokens"):
            raise
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check(tokenizer, reader, name)
    return tokenizer


def build(reader: Any, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer that a `.gguf` file describes. Raises as `read` does."""
    pieces: list[str] | None = metadata(reader, "tokenizer.ggml.tokens")
    kind = metadata(reader, "tokenizer.ggml.model")
    if not pieces or kind is None:
        raise UserError(
            f"model: found no tokenizer in {name}, expected one; put its tokenizer.json beside the file."
        )
    types = metadata(reader, "tokenizer.ggml.token_type") or [NORMAL] * len(pieces)
    if kind == "llama":
        core = _sentencepiece(reader, pieces, types)
    elif kind == "gpt2":
        core = _byte_level(reader, pieces, types, name)
    else:
        raise UserError(
            f"model: found a tokenizer of kind {kind!r} in {name}, expected llama or gpt2; "
            "put the model's own tokenizer.json beside the file."
        )
    added = [
        AddedToken(piece, normalized=False, special=type_ in (CONTROL, UNKNOWN))
        for piece, type_ in zip(pieces, types, strict=True)
        if type_ in (CONTROL, UNKNOWN, USER_DEFINED) and piece
    ]
    core.add_tokens(added)
    special = {key: _special(reader, pieces, key) for key in ("bos", "eos", "unknown", "padding")}
    begins, ends = _adds(reader)
    core.post_processor = _around(
        special["bos"] if begins else None, special["eos"] if ends else None, core.token_to_id
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=special["bos"],
        eos_token=special["eos"],
        unk_token=special["unknown"],
        pad_token=special["padding"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = metadata(reader, "tokenizer.chat_template")
    return tokenizer


def check(tokenizer: PreTrainedTokenizerBase, reader: Any, name: str) -> None:
    """Compare a tokenizer with the vocabulary of a file, and its tokens of a few texts with those of the file.

    Raises:
        UserError: a token has another id, special tokens differ, or a text is split into other tokens.
    """
    pieces: list[str] = metadata(reader, "tokenizer.ggml.tokens")
    vocabulary = tokenizer.get_vocab()
    for number, piece in enumerate(pieces):
        if vocabulary.get(piece, vocabulary.get(piece.replace(" ", _BLANK))) != number:
            if pieces.count(piece) > 1 or not piece:
                continue
            raise UserError(
                f"tokenizer: {piece!r} has the id {vocabulary.get(piece)} but {number} in {name}; "
                "expected the tokenizer of that very model."
            )
    begins, ends = _adds(reader)
    for key, added, at in (("bos", begins, 0), ("eos", ends, -1)):
        wanted = metadata(reader, f"tokenizer.ggml.{key}_token_id")
        if wanted is not None and added != (tokenizer("a b")["input_ids"][at] == wanted):
            what = "no" if added else "a"
            raise UserError(f"tokenizer: a text gets {what} {key.upper()} token, and {name} says otherwise.")
    if metadata(reader, "tokenizer.ggml.model") != "llama":
        return
    for text in _TEXTS:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = by_scores(text, reader)
        if ours != theirs:
            raise UserError(
                f"tokenizer: {text[:40]!r} becomes {len(ours)} tokens, and by the vocabulary of {name} "
                f"{len(theirs)} others; expected the same, so this file cannot be read right."
            )


_TEXTS = (
    "The capital of France is Paris, and 1,234 people came.",
    "Question: Where does Ada live?\nAnswer: in Delft\n\n  two  spaces",
    "naïve café Łódź 北京市 \U0001f600\tend",
)
"""Words, digits, runs of spaces and lines, other scripts, characters outside of every vocabulary."""


def by_scores(text: str, reader: Any) -> list[int]:
    """Token ids as SentencePiece's BPE defines them: of neighbours that form a piece, the best score merges first.

    A slow reference: it looks at every pair again after each merge.
    """
    pieces: list[str] = metadata(reader, "tokenizer.ggml.tokens")
    scores: list[float] = metadata(reader, "tokenizer.ggml.scores")
    types = metadata(reader, "tokenizer.ggml.token_type") or [NORMAL] * len(pieces)
    index = {piece: number for number, piece in enumerate(pieces) if types[number] not in (UNUSED,)}
    whole = {piece for number, piece in enumerate(pieces) if types[number] in (USER_DEFINED, CONTROL) and piece}
    longest = max(map(len, whole), default=0)
    if metadata(reader, "tokenizer.ggml.add_space_prefix", True) and text:
        text = " " + text
    ids: list[int] = []
    start = at = 0
    while at <= len(text):
        match = next((n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in whole), 0)
        if match or at == len(text):
            ids += _merged(text[start:at].replace(" ", _BLANK), index, scores)
        if match:
            ids.append(index[text[at : at + match]])
            start = at + match
        at += match or 1
    return ids


def _merged(text: str, index: dict[str, int], scores: Sequence[float]) -> list[int]:
    parts = list(text)
    while True:
        pairs = enumerate(pairwise(parts))
        best = max(((scores[index[a + b]], -at) for at, (a, b) in pairs if a + b in index), default=None)
        if best is None:
            break
        at = -best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    unknown = index.get("<unk>", 0)
    ids = []
    for part in parts:
        if part in index:
            ids.append(index[part])
        else:
            ids += [index.get(f"<0x{byte:02X}>", unknown) for byte in part.encode()]
    return ids


def _sentencepiece(reader: Any, pieces: list[str], types: list[int]) -> Tokenizer:
    """A SentencePiece BPE model: merges follow from pieces and scores, spaces are written as U+2581."""
    scores: list[float] = metadata(reader, "tokenizer.ggml.scores")
    normal = {piece: scores[at] for at, piece in enumerate(pieces) if types[at] in (NORMAL, BYTE)}
    unknown = _special(reader, pieces, "unknown")
    core = Tokenizer(
        BPE(
            {piece: at for at, piece in enumerate(pieces)},
            _merges(normal),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    strip = []
    if metadata(reader, "tokenizer.ggml.add_space_prefix", True):
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_BLANK, prepend_scheme="first", split=False)
        strip = [decoders.Strip(content=" ", left=1)]
    else:
        core.normalizer = normalizers.Replace(" ", _BLANK)
    core.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return core


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score of the whole first."""
    merges = [
        (score, -number, left, right)
        for number, (piece, score) in enumerate(scores.items())
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in scores and (right := piece[cut:]) in scores
    ]
    merges.sort(key=lambda merge: (merge[0], merge[1], scores[merge[2]], scores[merge[3]]), reverse=True)
    return [(left, right) for _, _, left, right in merges]


def _byte_level(reader: Any, pieces: list[str], types: list[int], name: str) -> Tokenizer:
    """A byte-level BPE model with the merges of the file; `tokenizer.ggml.pre` says how a text is split first."""
    split = metadata(reader, "tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise UserError(
            f"model: found texts split as {split!r} in {name} (tokenizer.ggml.pre), "
            f"expected {one_of(str(split), _SPLITS)}; put the model's own tokenizer.json beside the file."
        )
    pairs = [tuple(merge.split(" ")) for merge in metadata(reader, "tokenizer.ggml.merges") or []]
    core = Tokenizer(
        BPE(
            {piece: at for at, piece in enumerate(pieces)},
            [(left, right) for left, right in pairs],
            ignore_merges=split in _LLAMA3_LIKE,
        )
    )
    if split == "qwen2":
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _SPLITS[split]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core


def _special(reader: Any, pieces: list[str], key: str) -> str | None:
    number = metadata(reader, f"tokenizer.ggml.{key}_token_id")
    return pieces[number] if number is not None and number < len(pieces) else None


def _adds(reader: Any) -> tuple[bool, bool]:
    """Whether every text begins with BOS and ends with EOS."""
    split = metadata(reader, "tokenizer.ggml.pre")
    usual = metadata(reader, "tokenizer.ggml.model") == "llama" or split in _LLAMA3_LIKE
    return (
        bool(metadata(reader, "tokenizer.ggml.add_bos_token", usual)),
        bool(metadata(reader, "tokenizer.ggml.add_eos_token", False)),
    )


def _around(begin: str | None, end: str | None, number: Any) -> Any:
    """The post-processor that puts BOS before and EOS after a text; None where neither is wanted."""
    if begin is None and end is None:
        return None
    single = [*([begin] if begin else []), "$A", *([end] if end else [])]
    pair = [*single, *([f"{begin}:1"] if begin else []), "$B:1", *([f"{end}:1"] if end else [])]
    special = [(token, number(token)) for token in {begin, end} if token]
    return processors.TemplateProcessing(single=" ".join(single), pair=" ".join(pair), special_tokens=special)
