"""On two GPUs: a source and its readers may stand apart, and nothing but rounding changes.

Float32 on GPUs of one kind: losses agree to 1e-3 of themselves over the steps of a training, latents of one
wire to 1e-5. On one GPU: weights of 4 bits are read, and a wire is trained over them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.training.data.world import WorldPassages
from latentwire.training.objectives import (
    AnswerCrossEntropy,
    Contrast,
    Distill,
    FlowMatching,
    Imitate,
    Objective,
)
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.adapters import AdapterKind, DeepPrefixConfig, EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.encoders import EncoderKind, SelfConfig
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import Control, Latent, share
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors
from latentwire.wires.latent.translators import CrossConfig
from tests.support.bridges import LONG, SMALL, reader_lm, saved, source_lm
from tests.support.models import tiny_model, tiny_tokenizer
from tests.support.studies import small_study, written

FIRST, SECOND = "cuda:0", "cuda:1"
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

PROMPTS = [
    Prompt(context="Ada lives in the old town by the river.", question="Where does Ada live?"),
    Prompt(context="The heron stood.", question="Who stood in the shallow water?"),
]
EVERY = Anchors(ratio=3)
DEEP = DeepPrefixConfig(hidden=12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LM]:
    """On a CPU: a source and two readers that know their folders by name, where `align` finds a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    other = LM(tiny_model("llama", seed=2, **LONG), tiny_tokenizer(), name="other")
    made = {"source": source_lm(), "reader": saved(reader_lm(), folder), "other": saved(other, folder)}
    for lm in made.values():
        lm.model.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def followed(models: dict[str, LM], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A wire of the first reader's own, to be imitated."""
    lm, folder = models["reader"], tmp_path_factory.mktemp("followed") / "wire"
    torch.manual_seed(3)
    encoder = SelfConfig(rank=2, select=EVERY)
    config = LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()})
    LatentModules(config, {lm.name: lm}, lm).save(folder)
    return str(folder)


def placed(lm: LM, device: str) -> LM:
    return LM(copy.deepcopy(lm.model).to(torch.device(device)), lm.tokenizer, name=lm.name)


def on(devices: Mapping[str, str], models: Mapping[str, LM]) -> tuple[LM, dict[str, LM]]:
    """The source and the readers on their devices, readers by name."""
    put = {name: placed(models[name], device) for name, device in devices.items()}
    source = put.pop("source")
    return source, {lm.name: lm for lm in put.values()}


def trained(
    folder: Path,
    source: LM,
    readers: Mapping[str, LM],
    encoder: EncoderKind,
    objectives: tuple[Objective, ...],
    adapter: AdapterKind = DEEP,
    **changes: Any,
) -> list[float]:
    """Every loss that a training of some steps logs, evaluations and gradient norms included."""
    folder.mkdir(parents=True, exist_ok=True)
    wire = LatentConfig(source=source.name, encoder=encoder, adapters=dict.fromkeys(readers, adapter))
    few = {"passages": 4, "questions": 2, "contexts": 8, "eval_samples": 4, "eval_steps": 2, "samples": 1}
    rate = {"steps": 4, "log_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3}
    data = WorldPassages(tiers=("one_hop",))
    settings = WireTraining(**{"wire": wire, "data": data, "objectives": objectives, **few, **rate, **changes})
    train_wire(readers, source, settings, folder, log=lambda told: None)
    found: list[float] = []
    for line in map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines()):
        if "eval_loss" in line:
            found.append(line["eval_loss"])
        else:
            found += [line["loss"], line["gradient_norm"], *line["objectives"].values()]
            found += line["objective_gradient_norms"].values()
    assert len(found) > 4 * len(objectives)
    return found


def alike(apart: list[float], together: list[float]) -> None:
    assert torch.isfinite(torch.tensor(apart)).all()
    assert apart == pytest.approx(together, rel=1e-3, abs=1e-5)


def made(kind: str, reader: LM) -> EncoderKind:
    if kind == "self":
        return SelfConfig(rank=2, align=reader.name, gives="both", select=EVERY)
    cross = CrossConfig(layers=1, heads=2, gate=0.1)
    return SourceConfig(width=16, align=reader.name, select=EVERY, translator=cross)


TOGETHER = {"source": FIRST, "reader": FIRST}
APART = {"source": SECOND, "reader": FIRST}


@two_gpus
@pytest.mark.parametrize("kind", ["self", "source"])
def test_a_source_on_another_gpu_trains_like_one_on_its_readers(
    kind: str, models: dict[str, LM], followed: str, tmp_path: Path
) -> None:
    objectives = (
        AnswerCrossEntropy(weight=0.5),
        Distill(),
        Imitate(wire=followed),
        Contrast(weight=0.1, auto=True),
    )
    encoder = made(kind, models["reader"])
    losses = [
        trained(tmp_path / name, *on(devices, models), encoder, objectives, keep_prob={"start": 0.8})
        for name, devices in (("together", TOGETHER), ("apart", APART), ("else", dict.fromkeys(APART, SECOND)))
    ]
    alike(losses[1], losses[0])
    alike(losses[2], losses[0])


@two_gpus
@pytest.mark.parametrize("kind", ["self", "source"])
def test_two_readers_on_two_gpus_train_as_on_one(
    kind: str, models: dict[str, LM], followed: str, tmp_path: Path
) -> None:
    reader = models["reader"].name
    objectives = (AnswerCrossEntropy(weight=0.5), Distill(), Imitate(wire=followed, reader=reader))
    encoder = made(kind, models["reader"])
    losses = [
        trained(tmp_path / name, *on(devices, models), encoder, objectives, text_steps=None)
        for name, devices in (
            ("together", TOGETHER | {"other": FIRST}),
            ("apart", {"source": SECOND, "reader": FIRST, "other": SECOND}),
            ("first", {"source": FIRST, "reader": SECOND, "other": FIRST}),
        )
    ]
    alike(losses[1], losses[0])
    alike(losses[2], losses[0])


@two_gpus
@pytest.mark.parametrize("teacher", ["answer", "prompt"])
def test_a_flow_follows_aims_on_another_gpu(teacher: str, models: dict[str, LM], tmp_path: Path) -> None:
    encoder = SourceConfig(width=24, select=EVERY, translator=SMALL)
    objectives = (AnswerCrossEntropy(), FlowMatching(teacher=teacher))
    apart, together = (
        trained(tmp_path / name, *on(devices, models), encoder, objectives, EmbeddingsConfig(hidden=12))
        for name, devices in (("apart", APART), ("together", TOGETHER))
    )
    alike(apart, together)


@two_gpus
def test_a_training_with_its_source_on_another_gpu_resumes(
    models: dict[str, LM], followed: str, tmp_path: Path
) -> None:
    """Weights and the optimizer's state come back to where each belongs; learned readers are twins of theirs."""
    encoder = made("self", models["reader"])
    objectives = (AnswerCrossEntropy(), Imitate(wire=followed))
    learns: dict[str, Any] = {"reader_lora": {"rank": 2}, "schedule": "constant"}
    whole = trained(tmp_path / "whole", *on(APART, models), encoder, objectives, **learns)
    trained(tmp_path / "parts", *on(APART, models), encoder, objectives, **learns, steps=2)
    alike(trained(tmp_path / "parts", *on(APART, models), encoder, objectives, **learns), whole)


@two_gpus
@pytest.mark.parametrize("control", [None, "mean", "8bit"])
@pytest.mark.parametrize("kind", ["self", "source"])
def test_a_bound_wire_gives_the_same_result_across_gpus(
    kind: str, control: Control | None, models: dict[str, LM], tmp_path: Path
) -> None:
    encoder, folder = made(kind, models["reader"]), tmp_path / "wire"
    torch.manual_seed(1)
    config = LatentConfig(source="source", encoder=encoder, adapters={models["reader"].name: DEEP})
    LatentModules(config, {models["reader"].name: models["reader"]}, models["source"]).save(folder)
    found = []
    for devices in (TOGETHER, APART):
        source, readers = on(devices, models)
        (lm,) = readers.values()
        share(source, lm)
        contexts = [each.context for each in PROMPTS]
        wire = Latent(path=str(folder), control=control).bind(lm).sampled(contexts)
        message = wire.send(PROMPTS, lm)
        assert isinstance(message, Latents)
        assert message.valid.device == source.device
        prefilled = lm.prefill(wire.deliver(message, PROMPTS, lm))
        texts = [each.text for each in lm.generate(prefilled, Decoding(max_new_tokens=8))]
        found.append((message.to(torch.device("cpu")), prefilled.logits.cpu(), texts))
    (one, logits, texts), (other, other_logits, other_texts) = found
    tensors: list[tuple[Tensor, Tensor]] = list(zip(one.tensors, other.tensors, strict=True))
    for ours, theirs in [*tensors, (logits, other_logits)]:
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert torch.equal(one.valid, other.valid)
    assert torch.equal(one.positions, other.positions)
    assert texts == other_texts


@two_gpus
def test_a_reader_on_another_gpu_writes_the_same_text(models: dict[str, LM]) -> None:
    """A graph that is captured on the current GPU would replay nothing of another's."""
    wrote = []
    for device, mode in ((FIRST, "plain"), (SECOND, "plain"), (SECOND, "graph")):
        lm = placed(models["other"], device)
        lm.engine.mode = mode  # type: ignore[assignment]
        prefilled = lm.prefill(Prefix.of_tokens([[5, 6, 7], [8, 9]], device=device))
        wrote.append(lm.generate(prefilled, Decoding(max_new_tokens=20, min_new_tokens=20)))
        assert mode == "plain" or lm.engine.refused is None, lm.engine.refused
    assert wrote[0] == wrote[1] == wrote[2]


WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, **LONG}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model wide enough for blocks of 64 weights, in a folder."""
    pytest.importorskip("bitsandbytes")
    LM(tiny_model("llama", **WIDE), tiny_tokenizer(), name="wide").save(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="4 bits need a GPU")
@pytest.mark.parametrize("kind", ["self", "source"])
def test_a_wire_is_trained_over_a_source_of_four_bits(
    kind: str, wide: Path, models: dict[str, LM], tmp_path: Path
) -> None:
    source = LM.load(wide, bits=4)
    assert any(each.dtype == torch.uint8 for each in source.model.parameters())
    readers = {models["reader"].name: placed(models["reader"], FIRST)}
    losses = trained(tmp_path / "run", source, readers, made(kind, models["reader"]), (AnswerCrossEntropy(),))
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="4 bits need a GPU")
def test_a_study_reads_over_a_source_of_four_bits(wide: Path, tmp_path: Path) -> None:
    only = {"only": {"kind": "evaluate", "arms": {"relay": f"relay,tokens=2,source={wide}"}}}
    raw = small_study(stages=only, effects=None, comparisons=[], gates=[], limit=2)
    study = loading.load(str(written(tmp_path, raw | {"loading": {str(wide): {"bits": 4}}})))
    assert runner.run(study, tmp_path / "runs", Log()).runs["only"]
