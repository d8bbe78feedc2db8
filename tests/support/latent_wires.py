"""Tiny wires of every make, for the tests of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, T5Config

from latentwire.lm.model import LM
from latentwire.lm.scoring.questions import Questions
from latentwire.wires.latent.adapters import (
    AdapterKind,
    BothConfig,
    DeepPrefixConfig,
    EmbeddingsConfig,
    NativeConfig,
)
from latentwire.wires.latent.encoders import BytesConfig, EncoderKind, SelfConfig, SentenceConfig, TokensConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import LearnedSlots, Mean
from tests.support.models import VOCABULARY, tiny_lm, tiny_model, tiny_tokenizer

CONTEXTS = ["Ada lives in the old town by the river.", "The heron stood.", "one two three four five six seven"]
QUESTIONS = ["Where does Ada live?", "Who stood?", "What follows?"]
ANSWERS = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]

ENCODERS = (
    "anchors",
    "mean",
    "slots",
    "copied",
    "vectors",
    "both",
    "tokens",
    "decoder",
    "seq2seq",
    "bytes",
    "sentence",
)
ADAPTERS: dict[str, AdapterKind] = {
    "native": NativeConfig(),
    "embeddings": EmbeddingsConfig(hidden=12, film=True),
    "deep_prefix": DeepPrefixConfig(hidden=12, film=True),
    "both": BothConfig(embeddings=EmbeddingsConfig(hidden=12), prefix=DeepPrefixConfig(hidden=12)),
    "native_both": BothConfig(embeddings=EmbeddingsConfig(hidden=12), prefix=NativeConfig()),
}

KEYED = ("anchors", "mean", "slots", "copied", "both")
PAIRS = [(e, a) for e in ENCODERS for a in ADAPTERS if "native" not in a or e in KEYED]
"""Encoders with the adapters that can read what they give."""
PAIRS.remove(("both", "native"))  # it leaves the vectors unread, and what makes them unreached


def text_models(folder: Path) -> Path:
    """A folder with a random `encoder` (BERT's shape), `seq2seq` (T5's) and `decoder`, each with a tokenizer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = AutoModel.from_config(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape))
    small = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    t5 = AutoModel.from_config(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **small))
    for name, model in {"encoder": bert, "seq2seq": t5, "decoder": tiny_model("llama", seed=5)}.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer(bos=True).save_pretrained(folder / name)
    return folder


def encoder(name: str, models: Path) -> EncoderKind:
    pooled = {"latents": 6, "width": 16, "heads": 2}
    return {
        "anchors": lambda: SelfConfig(rank=2),
        "mean": lambda: SelfConfig(rank=2, select=Mean(ratio=3)),
        "slots": lambda: SelfConfig(rank=2, select=LearnedSlots(slots=6)),
        "copied": lambda: SelfConfig(copied=True),
        "vectors": lambda: SelfConfig(rank=2, gives="vectors"),
        "both": lambda: SelfConfig(rank=2, gives="both"),
        "tokens": lambda: TokensConfig(model=str(models / "encoder"), **pooled),
        "decoder": lambda: TokensConfig(model=str(models / "decoder"), **pooled),
        "seq2seq": lambda: TokensConfig(model=str(models / "seq2seq"), **pooled),
        "bytes": lambda: BytesConfig(layers=1, **pooled),
        "sentence": lambda: SentenceConfig(model=str(models / "encoder"), latents=6, width=16, hidden=24),
    }[name]()


def wire(lm: LM, *others: LM, adapter: AdapterKind, **config: object) -> LatentModules:
    """A wire read by models, all through adapters of one kind, with every piece away from where it began.

    Much begins at zero, where nothing would be noticed.
    """
    readers = {each.name: each for each in (lm, *others)}
    torch.manual_seed(0)
    built = LatentConfig(source=lm.name, adapters=dict.fromkeys(readers, adapter), **config)
    return shaken(LatentModules(built, readers, lm))


def shaken(modules: LatentModules) -> LatentModules:
    with torch.no_grad():
        for each in modules.pieces().values():
            each += 0.05 * torch.randn_like(each)
    return modules.eval()


def loss(modules: LatentModules, lm: LM, contexts: Sequence[str] = CONTEXTS) -> torch.Tensor:
    """Cross-entropy of the answers after the latents."""
    pairs = [[(lm.format.after(q, lm), a)] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    found = Questions.of(pairs, "cpu").forced(modules.deliver(modules(contexts), lm.name), lm)
    return torch.nn.functional.cross_entropy(lm.head(found.hidden).float(), found.labels)


def one_by_one(modules: LatentModules, contexts: Sequence[str] = CONTEXTS) -> Latents:
    """The latents of contexts, which must be those of each alone, whatever stands beside it and in any order."""
    together, turned = modules(contexts), modules(contexts[::-1])
    for row, context in enumerate(contexts):
        alone = modules([context])
        for batch, at in ((together, row), (turned, len(contexts) - 1 - row)):
            here, there = batch.valid[at], alone.valid[0]
            assert batch.length[at] == alone.length[0]
            assert batch.positions[at][here].tolist() == alone.positions[0][there].tolist()
            torch.testing.assert_close(batch.flat()[at][here], alone.flat()[0][there], atol=2e-5, rtol=1e-4)
    return together


def delivered(modules: LatentModules, reader: str, contexts: list[str] = CONTEXTS) -> list[torch.Tensor]:
    """Everything that a reader gets, as tensors."""
    with torch.no_grad():
        shared = modules.deliver(modules(contexts), reader)
    memory = [] if shared.memory is None else [*shared.memory.keys, *shared.memory.values]
    columns = shared.columns or shared.memory.columns
    return [
        shared.end,
        columns.valid,
        columns.positions,
        *memory,
        *([shared.content] * (shared.content is not None)),
    ]


def named_lm(family: str, name: str, **changes: object) -> LM:
    lm = tiny_lm(family, **changes)
    lm.name = name
    return lm
