"""What a latent wire has to compute and to read at the least, counted from the shape of its model.

A product of N rows with a matrix of P numbers is 2·N·P operations; a query that sees a key is 4 operations a
number of its head, all heads. A frozen matrix costs its backward pass one product, a trained one two; attention
costs it twice its forward pass. Norms, rotations, softmaxes and the optimizer are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Counts:
    """Of one decoder. body: numbers in its layers' matrices. head: of its vocabulary. lora: of adapters in it.

    heads: query heads × their width, all layers. column: keys and values of one column, all layers.
    """

    body: int
    head: int
    heads: int
    column: int
    lora: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, lora: int = 0) -> Counts:
        """Args: lora: rank of adapters on every linear layer; 0 for none."""
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
        """A forward pass over columns that make so many pairs of query and key, and rows of logits."""
        return 2 * columns * (self.body + self.lora) + 4 * pairs * self.heads + 2 * rows * self.head

    def read_back(self, columns: int, pairs: float, rows: int = 0) -> float:
        """The backward pass of the same: through frozen matrices and, twice, trained adapters."""
        return 2 * columns * (self.body + 2 * self.lora) + 8 * pairs * self.heads + 2 * rows * self.head


def causal(columns: int, behind: int = 0) -> float:
    """Pairs of columns that read causally, each also seeing as many that stand before all of them."""
    return columns * (columns + 1) / 2 + columns * behind
