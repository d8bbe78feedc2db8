"""What is exported gives the same logits in stock Transformers as it does here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from latentwire import models
from latentwire.errors import UserError
from latentwire.exports.exported_models import write as write_model
from latentwire.exports.exported_wires import dynamic_cache
from latentwire.exports.exporting import export
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prompts import Prompt
from latentwire.wires import parse
from latentwire.wires.latent.adapters import EmbeddingsConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules
from tests.support.latent_wires import shaken
from tests.support.models import tiny_lm

LINES = [
    {"context": "Ada Brown was born in 1957. Ada Brown lives in Tarn.", "question": "When was Ada Brown born?"},
    {"context": "Mira Stone works as a baker.", "question": "What does Mira Stone do?"},
]


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    path = tmp_path / "contexts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(scope="module")
def heron() -> LM:
    return LM.load("embedded:heron", dtype=torch.float32)


def ours(lm: LM, wire: str, line: dict[str, str]) -> torch.Tensor:
    """Logits of the first token of the answer."""
    bound, prompts = parse(wire).bind(lm), [Prompt(**line)]
    return lm.prefill(bound.deliver(bound.send(prompts, lm), prompts, lm)).logits[0]


def stock(name: str) -> Any:
    """The model as Transformers loads it, without this package's attention."""
    return AutoModelForCausalLM.from_pretrained(models.folder(name), dtype=torch.float32).eval()


@pytest.mark.parametrize(("wire", "reader"), [("embedded:heron-4x", "heron"), ("embedded:heron-to-wren", "wren")])
def test_keys_and_values_give_the_same_logits_as_a_cache_of_transformers(
    wire: str, reader: str, contexts: Path, tmp_path: Path
) -> None:
    told = export(wire, tmp_path / "out", contexts=contexts, dtype="float32")
    assert told["kind"] == "caches"
    lm, model = LM.load(f"embedded:{reader}", dtype=torch.float32), stock(reader)
    for at, line in enumerate(LINES):
        file = tmp_path / f"out/caches/{at:06d}.safetensors"
        cache, ids, positions = dynamic_cache(file, model.config)
        with torch.no_grad():
            theirs = model(input_ids=ids, position_ids=positions, past_key_values=cache).logits[0, -1]
        torch.testing.assert_close(theirs, ours(lm, wire, line), atol=2e-4, rtol=1e-4)
    assert "NOT servable" in told["remarks"][0]  # its latents are spread over the passage


@pytest.mark.parametrize("positions", ["contiguous", "spread"])
def test_soft_tokens_give_the_same_logits_as_prompt_embeddings(
    positions: str, heron: LM, contexts: Path, tmp_path: Path
) -> None:
    config = LatentConfig(
        source=heron.name,
        encoder=SelfConfig(rank=2, gives="vectors"),
        adapters={heron.name: EmbeddingsConfig(hidden=8)},
        positions=positions,
    )
    shaken(LatentModules(config, {heron.name: heron}, heron)).save(tmp_path / "wire")
    told = export(str(tmp_path / "wire"), tmp_path / "out", contexts=contexts, dtype="float32")
    assert (told["kind"], told["contiguous"]) == ("prompts", positions == "contiguous")
    model = stock("heron")
    for at, line in enumerate(LINES):
        tensors = load_file(tmp_path / f"out/prompts/{at:06d}.safetensors")
        # A server is given nothing but the rows, and counts positions itself.
        own = {} if told["contiguous"] else {"position_ids": tensors["position_ids"][None]}
        with torch.no_grad():
            theirs = model(inputs_embeds=tensors["prompt_embeds"][None], **own).logits[0, -1]
        torch.testing.assert_close(theirs, ours(heron, str(tmp_path / "wire"), line), atol=2e-4, rtol=1e-4)


def test_a_prefix_model_reads_its_prompt_in_both_directions_in_stock_transformers(
    heron: LM, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    told = write_model(models.folder("heron"), "text,mask=prefix", tmp_path / "out")
    assert told["reads"] == "bidirectional"
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    wire = parse("text,mask=prefix")
    prompts = [Prompt(**line) for line in LINES]
    prefix = wire(prompts, heron)
    assert prefix.ids is not None
    prefilled = heron.prefill(prefix)
    said = [text.ids for text in heron.generate(prefilled, Decoding(max_new_tokens=6))]
    rows = [ids[valid] for ids, valid in zip(prefix.ids, prefix.columns.valid, strict=True)]
    for at, ids in enumerate(rows):
        with torch.no_grad():
            torch.testing.assert_close(model(ids[None]).logits[0, -1], prefilled.logits[at], atol=2e-4, rtol=1e-4)
            causal = stock("heron")(ids[None]).logits[0, -1]
        assert not torch.allclose(causal, prefilled.logits[at], atol=0.1)
    # A batch padded on the left, as generate wants it: the first tokens are ours.
    width = max(map(len, rows))
    padded = torch.stack([torch.cat([ids.new_zeros(width - len(ids)), ids]) for ids in rows])
    mask = torch.stack([torch.arange(width) >= width - len(ids) for ids in rows]).long()
    out = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for at, text in enumerate(said):
        assert out[at, width : width + len(text)].tolist() == list(text)


@pytest.mark.parametrize(
    ("family", "label", "reason"),
    [
        ("llama", "text,mask=segments", "no setting for the wire"),
        ("llama", "text,mask=prefix,layers=0-1", "only some of them"),
        ("gemma3", "text,mask=prefix", "sliding window"),
    ],
)
def test_where_transformers_cannot_read_so_the_folder_is_causal_and_says_why(
    family: str, label: str, reason: str, tmp_path: Path
) -> None:
    tiny_lm(family).save(tmp_path / "model")
    (tmp_path / "out").mkdir()
    told = write_model(tmp_path / "model", label, tmp_path / "out")
    assert told["reads"] == "causal"
    assert reason in told["remarks"][0]
    assert "is_causal" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_wire_is_not_exported_without_contexts_nor_over_what_is_there(contexts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contexts: found none for a wire"):
        export("embedded:heron-4x", tmp_path / "out")
    with pytest.raises(UserError, match="there already"):
        export("embedded:heron-4x", tmp_path, contexts=contexts)
    contexts.write_text('{"question": "Who?"}\n')
    with pytest.raises(UserError, match="line 1"):
        export("embedded:heron-4x", tmp_path / "out", contexts=contexts)
    assert not (tmp_path / "out").exists()
