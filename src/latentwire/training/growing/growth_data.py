"""What an embedded model is grown on: its recipe, its tokenizer, and rows of training text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latentwire.models import folder
from latentwire.tasks.world.sums import draw_problem, draw_story
from latentwire.tasks.world.tiers import Tier, ask, ask_tags, draw_passage
from latentwire.training.jobs import spread

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TOKENIZER_ROWS = 20_000
ROWS_PER_JOB = 2_000

IntArray = npt.NDArray[np.int16]
BoolArray = npt.NDArray[np.bool_]
Turn = tuple[str, str]
"""A prompt (or what continues one) and the answer that follows it."""


@dataclass(frozen=True)
class Recipe:
    """How one embedded model is grown; read from `models/NAME/recipe.json`.

    `passages` gives the share of rows about a direct passage, a tagged one, or sums; `tiers` the
    share of each tier among the questions about a direct passage, and `tags` the share of questions
    about the tags themselves among those about a tagged one. `shared_colours` says whether two tags of
    a passage may have the same colour, as they may in the tasks. The learning rate falls linearly over
    the last `cool_down` of the steps.
    """

    architecture: dict[str, Any]
    vocabulary: int
    split_digits: bool
    row_tokens: int
    rows: int
    questions: int
    passages: dict[str, float]
    tiers: dict[Tier, float]
    tags: float
    shared_colours: bool
    people: list[int]
    sums_steps: list[int]
    batch_rows: int
    steps: int
    warm_up_steps: int
    learning_rate: float
    cool_down: float


def recipe_of(name: str) -> Recipe:
    """The recipe of an embedded model. Raises `UserError` for an unknown name."""
    return Recipe(**json.loads((folder(name) / "recipe.json").read_text()))


def row_turns(recipe: Recipe, index: int) -> list[Turn]:
    """Training row number `index` as text: a passage with several questions, or several sums.

    Only names and problems of the train split occur.
    """
    random_ = random.Random(f"growth/{index}")
    kind = random_.choices(list(recipe.passages), list(recipe.passages.values()))[0]
    if kind == "sums":
        return [_sum(random_, recipe) for _ in range(4)]
    passage = draw_passage(
        random_,
        "train",
        "later" if kind == "tagged" else "two_hop",
        random_.choice(recipe.people),
        shared_colours=recipe.shared_colours,
    )
    if kind == "tagged":
        asked = [ask(passage, "later"), ask_tags(passage)]
        shares = [1 - recipe.tags, recipe.tags]
    else:
        asked = [ask(passage, tier) for tier in recipe.tiers]
        shares = list(recipe.tiers.values())
    for questions in asked:
        random_.shuffle(questions)
    turns: list[Turn] = []
    opening = f"{passage.text}\n"
    for questions in random_.choices(asked, shares, k=recipe.questions):
        if questions:
            question = questions.pop()
            turns.append((f"{opening}Question: {question.text}\nAnswer:", f" {question.answer}"))
            opening = "\n"
    return turns


def _sum(random_: random.Random, recipe: Recipe) -> Turn:
    problem = draw_problem(random_, "train", recipe.sums_steps)
    story, question = draw_story(random_, "train", problem)
    return f"{story}\nQuestion: {question}\nAnswer:", f" {problem.solution}"


def grow_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on train rows; it puts `<bos>` in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if recipe.split_digits
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for index in range(TOKENIZER_ROWS) for turn in row_turns(recipe, index) for text in turn)
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=recipe.architecture["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def encode_turns(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn], length: int
) -> tuple[list[int], list[bool]]:
    """Token ids of a row, at most `length`, and which of them are answers (with their `<eos>`).

    A turn that does not fit is left out whole: a cut answer would teach the wrong ending.
    """
    pieces = [piece for turn in turns for piece in turn]
    encoded: list[list[int]] = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    is_answer: list[bool] = []
    for (prompt_text, _), prompt, answer in zip(turns, encoded[::2], encoded[1::2], strict=True):
        # A follow-up question starts with a line break; whatever else begins a text gets `<bos>`.
        prompt = prompt if prompt_text.startswith("\n") else [tokenizer.bos_token_id, *prompt]
        answer = [*answer, tokenizer.eos_token_id]
        if len(ids) + len(prompt) + len(answer) > length:
            break
        ids += prompt + answer
        is_answer += [False] * len(prompt) + [True] * len(answer)
    return ids, is_answer


def pad_turns(
    tokenizer: PreTrainedTokenizerFast, rows: Iterable[list[Turn]], length: int
) -> tuple[IntArray, BoolArray]:
    """Rows of turns as arrays `(rows, length)`: ids, padded on the right, and the answers' places."""
    encoded = [encode_turns(tokenizer, turns, length) for turns in rows]
    ids = np.full((len(encoded), length), tokenizer.pad_token_id, dtype=np.int16)
    answers = np.zeros((len(encoded), length), dtype=np.bool_)
    for at, (row, is_answer) in enumerate(encoded):
        ids[at, : len(row)] = row
        answers[at, : len(row)] = is_answer
    return ids, answers


def _block(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, first: int) -> tuple[IntArray, BoolArray]:
    numbers = range(first, min(first + ROWS_PER_JOB, recipe.rows))
    return pad_turns(tokenizer, (row_turns(recipe, number) for number in numbers), recipe.row_tokens)


def growth_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """All training rows: ids `(rows, row_tokens)` int16, padded, and the answers' places as booleans."""
    starts = range(0, recipe.rows, ROWS_PER_JOB)
    blocks = spread(partial(_block, recipe, tokenizer), starts)
    ids, answers = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return torch.from_numpy(ids), torch.from_numpy(answers)


def batches(rows: int, batch_rows: int, seed: int) -> Iterator[Tensor]:
    """Row numbers, batch by batch without end; each pass over the rows is shuffled anew from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from order[: rows - rows % batch_rows].view(-1, batch_rows)
