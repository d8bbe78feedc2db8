"""The least that a model must compute, read and keep, counted from its shape: benchmarks and estimates use it.

Multiplying N rows by a matrix of P numbers takes 2·N·P operations; a query that sees a key takes 4 operations
for each dimension of each head. In the backward pass a frozen matrix takes one product and a trained one two,
and attention twice its forward pass. Norms, rotations, softmaxes and the optimizer are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Counts:
    """Sizes of one decoder, as counts of numbers.

    Attributes:
        body: in the matrices of its layers.
        head: in the matrix over its vocabulary.
        heads: query heads × head dimension, all layers.
        column: keys and values of one column, all layers.
        lora: in low-rank adapters.
        layers: how many there are.
        kept: bytes that a layer keeps of one column for the backward pass, in 16 bits.
    """

    body: int
    head: int
    heads: int
    column: int
    lora: int = 0
    layers: int = 0
    kept: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, lora: int = 0) -> Counts:
        """The sizes of a model. lora: the rank of adapters on every linear layer; 0 for none."""
        config = model.config.get_text_config()
        linears = [each.shape for each in model.get_decoder().layers.parameters() if each.ndim == 2]
        layers = config.num_hidden_layers
        return cls(
            body=sum(rows * columns for rows, columns in linears),
            head=config.vocab_size * config.hidden_size,
            heads=layers * config.num_attention_heads * _head(config),
            column=2 * layers * _shared(config) * _head(config),
            lora=lora * sum(rows + columns for rows, columns in linears),
            layers=layers,
            kept=_kept(config),
        )

    @property
    def weights(self) -> int:
        """Numbers that a step of decoding reads: all matrices, the table of embeddings only as the head."""
        return self.body + self.head

    def step_bytes(self, rows: int, columns: int, size: int) -> int:
        """Bytes that a step of decoding reads: weights once, and keys and values of every row.

        Args:
            rows: how many texts are continued. columns: what each has before it. size: bytes of a number.
        """
        return size * (self.weights + rows * columns * self.column)

    def activations(self, columns: int) -> int:
        """Bytes kept for the backward pass of `columns`, all layers."""
        return self.layers * self.kept * columns

    def read(self, columns: int, pairs: float, rows: int = 0) -> float:
        """Operations of a forward pass over `columns` with `pairs` of query and key, and `rows` of logits."""
        return 2 * columns * (self.body + self.lora) + 4 * pairs * self.heads + 2 * rows * self.head

    def read_back(self, columns: int, pairs: float, rows: int = 0) -> float:
        """Operations of the backward pass of the same: through frozen matrices, and twice for trained adapters."""
        return 2 * columns * (self.body + 2 * self.lora) + 8 * pairs * self.heads + 2 * rows * self.head


def _kept(config: Any) -> int:
    """Of one layer and column: what norms, projections, attention and the gated MLP keep in 16 bits.

    The factors were fitted to one measured step (docs/estimates.md).
    """
    projected = 2 * (config.num_attention_heads + _shared(config)) * _head(config)
    return int(14 * config.hidden_size + 8 * config.intermediate_size + 2 * projected)


def _head(config: Any) -> int:
    """The width of a head, which not every configuration names."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _shared(config: Any) -> int:
    """How many key/value heads there are."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def causal(columns: int, behind: int = 0) -> float:
    """Pairs of query and key of columns that read causally, each also seeing `behind` earlier ones."""
    return columns * (columns + 1) / 2 + columns * behind
