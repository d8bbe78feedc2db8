"""Datasets of the Hugging Face hub by name, read through the `datasets` package and its cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from latentwire.errors import UserError
from latentwire.tasks.rows import Row


@dataclass(frozen=True)
class Dataset:
    """A dataset of the hub.

    Attributes:
        id: its name on the hub, or a local folder that `datasets` can read.
        config: one of its configurations; None for the only or default one.
        split: which split; slices such as `train[:1000]` work.
        revision: a branch, tag or commit of its repository.
        fields: what its columns are called, as `tasks.records.record` takes it.
    """

    id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


SHORT_NAMES = {
    "squad": Dataset("rajpurkar/squad", "plain_text"),
    "hotpotqa": Dataset("hotpotqa/hotpot_qa", "distractor"),
    "gsm8k": Dataset("openai/gsm8k", "main"),
    "natural_questions": Dataset("google-research-datasets/nq_open", "nq_open"),
    "alpaca": Dataset("tatsu-lab/alpaca"),
    "dolly": Dataset("databricks/databricks-dolly-15k"),
    "tulu": Dataset("allenai/tulu-3-sft-mixture"),
}
"""Datasets that can be named in one word, one line each."""


def named(
    name: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    fields: Mapping[str, str] | None = None,
) -> Dataset:
    """The dataset that `name` stands for: a short name, a hub id or a local folder.

    Args:
        config, split, revision, fields: override what the short name stands for.
    """
    known = SHORT_NAMES.get(name, Dataset(name))
    return Dataset(known.id, config or known.config, split, revision, {**known.fields, **(fields or {})})


def hub_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a dataset, in its order.

    Example:
        >>> rows = hub_rows(named("squad", split="validation"))

    Raises:
        UserError: the `datasets` package is missing, or it cannot load the dataset: no such name, configuration,
            split or revision, or no network and no copy in the cache.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            "data: a dataset of the hub needs the `datasets` package; pip install 'latentwire[harness]'."
        ) from error
    try:
        table = load_dataset(dataset.id, dataset.config, split=dataset.split, revision=dataset.revision)
    except Exception as error:  # its errors have no common class, and all of them mean the same here
        where = " ".join(filter(None, [dataset.id, dataset.config, dataset.split, dataset.revision]))
        raise UserError(f"data: {where} cannot be loaded from the hub: {' '.join(str(error).split())}") from error
    return (Row(number, f"{dataset.id}, row {number}", fields) for number, fields in enumerate(table, start=1))
