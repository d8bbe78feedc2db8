"""GGUF files: the tokens are those of the file's own vocabulary, and the file is parsed once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from latentwire import LM, UserError
from latentwire.lm.loading import gguf_files, gguf_tokenizer
from latentwire.lm.loading.tokenizing import Tokenizing
from tests.support.checkpoints import write_gguf
from tests.support.models import tiny_tokenizer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")

REAL = Path(__file__).parents[3] / "weights"
EIFFEL = (
    "The capital of France is Paris. The Eiffel Tower is one of the most famous landmarks in the world, "
    "and millions of people visit it every year."
)


def tokens(file: Path, text: str) -> list[str]:
    tokenizer = Tokenizing.load(str(file)).tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_a_sentencepiece_file_is_tokenized_by_its_scores(tmp_path: Path) -> None:
    """Of neighbours that form a piece, the one with the best score merges first, whatever is longer."""
    write_gguf(tmp_path / "m.gguf", tokenizer="llama", add_space_prefix=False)
    assert tokens(tmp_path / "m.gguf", "the heron") == ["<s>", "th", "e", "▁heron"]


def test_bytes_runs_of_spaces_and_lines_are_the_files_own_tokens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tokenizer="llama", add_space_prefix=False)
    text = "a  b\n\nc é"
    found = tokens(tmp_path / "m.gguf", text)
    assert found == ["<s>", "a", "  ", "b", "\n\n", "c", "▁", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizing.load(str(tmp_path / "m.gguf")).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("bos", "eos"), [(None, False), (True, True), (False, False)])
def test_a_file_says_what_stands_around_a_text(prefix: bool, bos: bool | None, eos: bool, tmp_path: Path) -> None:
    added = {"add_bos_token": bos} if bos is not None else {}
    write_gguf(tmp_path / "m.gguf", tokenizer="llama", add_space_prefix=prefix, add_eos_token=eos, **added)
    begin = [] if bos is False else ["<s>"]  # SentencePiece files without the key mean yes
    end = ["</s>"] if eos else []
    space = ["▁"] if prefix else []
    assert tokens(tmp_path / "m.gguf", "ab") == [*begin, *space, "a", "b", *end]


@pytest.mark.parametrize("tokenizer", ["llama", "gpt2"])
def test_a_saved_gguf_model_has_the_same_tokens(tokenizer: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tokenizer=tokenizer)
    lm = LM.load(tmp_path / "m.gguf", device="cpu")
    lm.save(tmp_path / "saved")
    for text in ("the heron in 12 é", "a  b\n\nc"):
        want = lm.tokenizer(text)["input_ids"]
        assert LM.load(tmp_path / "saved", device="cpu").tokenizer(text)["input_ids"] == want
        assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == want
    special = (lm.tokenizer.bos_token, lm.tokenizer.eos_token, lm.tokenizer.pad_token)
    assert special == ("<s>", "</s>", "<pad>")


def test_digits_are_split_off_where_the_file_says_so(tmp_path: Path) -> None:
    """By GPT-2's pattern a space and the digits after it are one word; SmolLM's takes every digit for one."""
    words = {}
    for split in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        write_gguf(tmp_path / f"{split}.gguf", pre=split)
        core = Tokenizing.load(str(tmp_path / f"{split}.gguf")).tokenizer.backend_tokenizer
        words[split] = [word for word, _ in core.pre_tokenizer.pre_tokenize_str("in 1234")]
    assert words == {
        "gpt-2": ["in", "Ġ1234"],
        "smollm": ["in", "Ġ", "1", "2", "3", "4"],
        "llama-bpe": ["in", "Ġ", "123", "4"],
        "qwen2": ["in", "Ġ", "1", "2", "3", "4"],
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tokenizer": "rwkv"}, r"found a tokenizer of kind 'rwkv' in .*, expected llama or gpt2"),
        ({"pre": "never-heard-of"}, r"found texts split as 'never-heard-of' .*put the model's own tokenizer.json"),
    ],
)
def test_a_vocabulary_of_another_kind_is_refused_unless_its_tokenizer_lies_beside_it(
    keys: dict[str, str], said: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", **keys)
    with pytest.raises(UserError, match=said):
        LM.load(tmp_path / "m.gguf", device="cpu")
    tiny_tokenizer(merge_blanks=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected the tokenizer of that very model"):
        LM.load(tmp_path / "m.gguf", device="cpu")
    full = tiny_tokenizer()
    full.add_tokens([f"<unused{at}>" for at in range(len(full), 320)])
    full.save_pretrained(tmp_path)
    assert (
        LM.load(tmp_path / "m.gguf", device="cpu").tokenizer("Ada has")["input_ids"]
        == full("Ada has")["input_ids"]
    )


def test_a_tokenizer_that_does_not_follow_the_file_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", tokenizer="llama", add_space_prefix=False)
    monkeypatch.setattr(gguf_tokenizer, "_merges", lambda scores: [])
    with pytest.raises(UserError, match=r"becomes \d+ tokens, and by the vocabulary of .* \d+ others"):
        LM.load(tmp_path / "m.gguf", device="cpu")


def test_a_file_is_parsed_once_for_configuration_tokenizer_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    import gguf

    parsed = []
    build = gguf.GGUFReader._build_fields

    def counted(self: object, *args: object) -> object:
        parsed.append(self)
        return build(self, *args)

    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", counted)
    honest = gguf.GGUFReader
    LM.load(tmp_path / "m.gguf", device="cpu")
    assert len(parsed) == 1
    assert gguf.GGUFReader is honest


def test_metadata_is_what_the_librarys_own_reader_gives(tmp_path: Path) -> None:
    import gguf

    write_gguf(tmp_path / "m.gguf", tokenizer="llama")
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    with gguf_files.parsed_once(tmp_path / "m.gguf") as ours:
        assert list(ours.fields) == list(theirs.fields)
        for key in theirs.fields:
            assert gguf_files.metadata(ours, key) == theirs.fields[key].contents()
        assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
        assert all((a.data == b.data).all() for a, b in zip(ours.tensors, theirs.tensors, strict=True))


def test_without_the_package_the_refusal_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else honest(name, *rest)
    )
    with pytest.raises(UserError, match=r"pip install 'latentwire\[gguf\]'"):
        LM.load(tmp_path / "m.gguf", device="cpu")


def test_a_folder_with_a_gguf_file_names_the_file_to_write(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"expected the .gguf file itself: .*m.gguf"):
        LM.load(tmp_path, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "gemma3-270m.gguf").exists(), reason="needs the real weights")
def test_gemma_3_has_eighteen_tokens_and_bos_where_it_had_thirty(tmp_path: Path) -> None:
    text = "The capital of France is Paris, and 1,234 people came."
    tokenizer = Tokenizing.load(str(REAL / "gemma3-270m.gguf")).tokenizer
    ids = tokenizer(EIFFEL)["input_ids"]
    assert ids[0] == 2
    with gguf_files.parsed_once(REAL / "gemma3-270m.gguf") as reader:
        for sample in (EIFFEL, text):
            assert tokenizer(sample)["input_ids"] == [2, *gguf_tokenizer.by_scores(sample, reader)]
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(EIFFEL)["input_ids"] == ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen-0.5b"])
def test_a_real_byte_level_file_reads_digits_one_by_one(name: str) -> None:
    if not (REAL / f"{name}.gguf").exists():
        pytest.skip("needs the real weights")
    tokenizer = Tokenizing.load(str(REAL / f"{name}.gguf")).tokenizer
    text = "In 1234 she had 56,7."
    ids = tokenizer(text)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("1234567")
    assert tokenizer.decode(ids) == text
