"""The least that a latent wire must compute and read, counted from the shape of its model.

Multiplying N rows by a matrix of P numbers takes 2·N·P operations; a query that sees a key takes 4 operations
for each dimension of each head. In the backward pass a frozen matrix takes one product and a trained one two,
and attention twice its forward pass. Norms, rotations, softmaxes and the optimizer are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    body: int
    head: int
    heads: int
    column: int
    lora: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, lora: int = 0) -> Counts:
        """The sizes of a model. lora: the rank of adapters on every linear layer; 0 for none."""
        config = model.config
        linears = [each.shape for each in model.get_decoder().layers.parameters() if each.ndim == 2]
        layers = config.num_hidden_layers
        return cls(
            body=sum(rows * columns for rows, columns in linears),
            head=config.vocab_size * config.hidden_size,
            heads=layers * config.num_attention_heads * config.head_dim,
            column=2 * layers * config.num_key_value_heads * config.head_dim,
            lora=lora * sum(rows + columns for rows, columns in linears),
        )

    def read(self, columns: int, pairs: float, rows: int = 0) -> float:
        """Operations of a forward pass over `columns` with `pairs` of query and key, and `rows` of logits."""
        return 2 * columns * (self.body + self.lora) + 4 * pairs * self.heads + 2 * rows * self.head

    def read_back(self, columns: int, pairs: float, rows: int = 0) -> float:
        """Operations of the backward pass of the same: through frozen matrices, and twice for trained adapters."""
        return 2 * columns * (self.body + 2 * self.lora) + 8 * pairs * self.heads + 2 * rows * self.head


def causal(columns: int, behind: int = 0) -> float:
    """Pairs of query and key of columns that read causally, each also seeing `behind` earlier ones."""
    return columns * (columns + 1) / 2 + columns * behind
