"""`latentwire bench train`: forward and backward of prefix-LM finetuning, ours beside what one would run else.

The peers are a stock Transformers model with a dense mask, document by document or as a padded batch, and the
packed rows read causally without any mask: stock sdpa's flash kernel, which lets documents see each other, so it
is no prefix-LM but the ceiling of one. All are trained on documents of one stream, with full-vocabulary logits as
stock models make them; ours makes logits of labelled tokens only.

Model FLOP utilisation counts 6 operations a parameter and real token, those of the head only where it was executed
(6 · body · tokens + 6 · V · D · head rows), over the measured peak; attention itself and padding are not counted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from latentwire.bench.packed_documents import Regime, padded
from latentwire.bench.setup import SHAPES, BenchRow, Setup, Timing
from latentwire.errors import UserError
from latentwire.lm.masks import attention
from latentwire.lm.masks.kernel_choice import choose
from latentwire.lm.model import LM
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.finetuning.documents import Document
from latentwire.training.finetuning.packing import Rows, collate, pack
from latentwire.training.finetuning.row_step import RowStep
from latentwire.training.objectives import AnswerCrossEntropy

REGIMES = {
    "cuda": (Regime(16, 1024, 32, 8), Regime(2, 8192, 4, 2, long=True)),
    "cpu": (Regime(2, 1024, 8, 2), Regime(1, 4096, 1, 1, long=True)),
}
SWEEP = {
    "cuda": tuple(Regime(rows, 1024, 2 * rows, 2) for rows in (4, 8, 16, 32)),
    "cpu": tuple(Regime(rows, 1024, 4, 1) for rows in (1, 2, 4)),
}
SWEEP_SHAPES: dict[str, tuple[str, ...]] = {"cuda": ("1b", "8b"), "cpu": ()}
PADDED, ALONE, CEILING = (
    "padded, dense mask",
    "batch 1, dense mask, checkpointing",
    "packed, causal flash, no documents",
)
PARTS = ("short", "long")
"""Documents of about 194 tokens, of 2,000 to 4,000."""
RATIOS = {"over_padded": PADDED, "over_batch_1": ALONE, "over_causal": CEILING}


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Peers and ours on short and on long documents; with `sweep` the fastest of ours also on other shapes."""
    kind = setup.device.type if setup.device.type in REGIMES else "cpu"
    regimes = tuple(each for each in REGIMES[kind] if setup.wants(PARTS[each.long]))
    if regimes:
        yield from _shape(setup, regimes, peers=True)
    if setup.wants("sweep"):
        yield from _shape(setup, SWEEP[kind], peers=False)
        for shape in SWEEP_SHAPES[kind]:
            yield from _shape(replace(setup, shape=shape), REGIMES[kind][:1], peers=False)


def _shape(setup: Setup, regimes: tuple[Regime, ...], *, peers: bool) -> Iterator[BenchRow]:
    try:
        bench = _Bench(setup, setup.model(), peers)
    except RuntimeError as error:
        yield BenchRow("load", {}, {"shape": setup.shape}, failure(error))
        return
    for regime in regimes:
        yield from bench.run(regime)
    del bench
    release_memory()


@dataclass
class _Bench:
    """One model and what is run on it."""

    setup: Setup
    model: PreTrainedModel
    peers: bool

    def __post_init__(self) -> None:
        config = SHAPES[self.setup.shape].config
        self.vocabulary: int = config["vocab_size"]
        self.head = self.vocabulary * config["hidden_size"]
        matrices = 1 if config["tie_word_embeddings"] else 2
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.body = self.parameters - matrices * self.head
        self.model.train()
        self.speeds: dict[str, float] = {}

    def run(self, regime: Regime) -> Iterator[BenchRow]:
        self.speeds = {}
        packed = regime.documents(self.vocabulary, packed=True)
        rows = [[packed[i] for i in row] for row in pack([len(d.ids) for d in packed], regime.width)]
        shape = (regime.rows, regime.width)
        prefix, causal = (collate(each, shape=shape).to(self.setup.device) for each in (rows, _causal(rows)))
        self.model.set_attn_implementation("sdpa")
        if self.peers:
            documents = regime.documents(self.vocabulary, packed=False)
            yield self._peer(PADDED, documents, regime.padded, checkpointing=False)
            yield self._peer("padded, dense mask, checkpointing", documents, regime.padded, checkpointing=True)
            yield self._peer(ALONE, documents[: regime.alone], 1, checkpointing=True)
        yield self._timed(
            CEILING, self._stock(causal), packed, self._real(packed), f"{regime.rows}×{regime.width}"
        )
        for name, kernel, given in (
            ("ours, sdpa dense", "sdpa", prefix),
            ("ours, split", "split", prefix),
            ("ours, flex", "flex", prefix),
            ("ours, split, causal documents", "split", causal),
        ):
            if self.peers or name == "ours, " + ("flex" if self.setup.device.type == "cuda" else "split"):
                yield self._ours(name, kernel, given, packed)

    def _peer(self, name: str, documents: list[Document], size: int, *, checkpointing: bool) -> BenchRow:
        """Batches of `size` documents on the stock model, gradients summed over them."""

        def run() -> None:
            for at in range(0, len(documents), size):
                batch = padded(documents[at : at + size], self.setup.device, self.setup.dtype)
                self.model(**batch, use_cache=False).loss.backward()

        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        row = self._timed(name, run, documents, self._real(documents), f"{size} documents")
        self.model.gradient_checkpointing_disable()
        return row

    def _stock(self, rows: Rows) -> Callable[[], None]:
        def run() -> None:
            self.model(input_ids=rows.ids, labels=rows.labels, use_cache=False).loss.backward()

        return run

    def _ours(self, name: str, kernel: str, rows: Rows, documents: list[Document]) -> BenchRow:
        """Through the module that a finetuning trains."""
        at = self._place(documents, f"{rows.ids.shape[0]}×{rows.ids.shape[1]}")
        try:
            attention.install(self.model, "sdpa")
            choose(self.model, kernel, dtype=self.setup.dtype)
            lm = LM(self.model, no_tokenizer(), name=self.setup.shape, attention_kernel=kernel)
        except UserError as error:
            return BenchRow(name, {}, at, str(error))
        step = RowStep(lm, [AnswerCrossEntropy()])
        labels = sum(label != IGNORE for each in documents for label in each.labels)

        def run() -> None:
            losses = step(rows)
            (losses.total / losses.labels).backward()

        # FlexAttention compiles its backward kernel after its first forward pass.
        return self._timed(name, run, documents, labels, str(at["batch"]), warm=2)

    def _timed(
        self,
        name: str,
        run: Callable[[], None],
        documents: list[Document],
        head: int,
        batch: str,
        warm: int = 1,
    ) -> BenchRow:
        at = self._place(documents, batch)
        real = self._real(documents)
        release_memory()

        def step() -> None:
            self.model.zero_grad(set_to_none=True)
            run()

        try:
            timing = self.setup.timed(step, repeats=3, warm=warm)
        except RuntimeError as error:  # a kernel that does not compile must not hide the others' figures
            return BenchRow(name, {}, at, failure(error))
        finally:
            self.model.zero_grad(set_to_none=True)
        self.speeds[name] = real / timing.seconds
        return BenchRow(name, self._figures(name, timing, real, head), at)

    def _figures(self, name: str, timing: Timing, real: int, head: int) -> dict[str, float | None]:
        operations = 6 * (self.body * real + self.head * head)
        ratios = {
            key: self.speeds[name] / self.speeds[peer] if peer in self.speeds else None
            for key, peer in RATIOS.items()
        }
        return {
            "seconds": timing.seconds,
            "tokens_per_second": real / timing.seconds,
            "mfu": operations / timing.seconds / self.setup.flops,
            "peak_gib": timing.peak_gib if self.setup.device.type == "cuda" else None,
            **ratios,
        }

    def _real(self, documents: list[Document]) -> int:
        return sum(len(each.ids) for each in documents)

    def _place(self, documents: list[Document], batch: str) -> dict[str, str | int | float]:
        mean = round(self._real(documents) / len(documents))
        billions = round(self.parameters / 1e9, 4)
        tokens = self._real(documents)
        return {
            "shape": self.setup.shape,
            "billions": billions,
            "batch": batch,
            "tokens": tokens,
            "mean_tokens": mean,
            "documents": PARTS[mean > 1024],
        }


def failure(error: RuntimeError) -> str:
    """Why a row has no figures, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _causal(rows: list[list[Document]]) -> list[list[Document]]:
    return [[replace(each, blocks=[CAUSAL] * len(each.ids)) for each in row] for row in rows]


def no_tokenizer() -> PreTrainedTokenizerFast:
    """The benchmark's documents are token ids already."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")))


def release_memory() -> None:
    """Give back memory that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
