"""Grow an embedded model from random weights: its tokenizer, its rows, its weights.

The loss is the cross-entropy of the answers plus half that of all tokens of a row. The model is always grown
causally; what other masks do to it is for the project's studies to find out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from latentwire.tasks.world import world_tasks
from latentwire.training.growing.growth_data import (
    Recipe,
    batches,
    grow_tokenizer,
    growth_rows,
    pad_turns,
    recipe_of,
)

REPORT_EVERY = 500
WATCHED = ("one_hop", "reverse", "two_hop", "later", "sums")
NO_CONTEXT = "no_context"
WATCHED_EXAMPLES = 500
LM_WEIGHT = 0.5

Report = Callable[[dict[str, float]], None]
Checks = dict[str, tuple[Tensor, Tensor]]


def grow(name: str, seed: int, out: Path, device: str, report: Report) -> dict[str, float]:
    """Grow an embedded model and save it as a Hugging Face model folder.

    Args:
        name: The embedded model.
        seed: Decides the first weights and the order of the rows.
        out: The folder to write.
        device: `cpu` or `cuda`.
        report: Called every 500 steps with the step, the seconds, the loss and the accuracies on validation
            examples (teacher-forced exact match, which equals that of greedy decoding).

    Returns:
        What was reported for the last step, measured on all validation examples, with the number of tokens seen.

    Raises:
        UserError: There is no such model.
    """
    return grow_recipe(recipe_of(name), seed, out, device, report)


def grow_recipe(recipe: Recipe, seed: int, out: Path, device: str, report: Report) -> dict[str, float]:
    """`grow`, for a recipe that need not be an embedded model's."""
    start = time.monotonic()
    tokenizer = grow_tokenizer(recipe)
    rows, answers = growth_rows(recipe, tokenizer)
    tokens_seen = int((rows != tokenizer.pad_token_id).sum()) / len(rows) * recipe.batch_rows * recipe.steps
    rows, answers = rows.to(device), answers.to(device)
    checks = _checks(tokenizer, device)
    watched = {name: (ids[:WATCHED_EXAMPLES], at[:WATCHED_EXAMPLES]) for name, (ids, at) in checks.items()}
    order = batches(len(rows), recipe.batch_rows, seed)

    torch.manual_seed(seed)
    model = _new_model(recipe.architecture, tokenizer).to(device)
    loss_of = torch.compile(_loss) if device.startswith("cuda") else _loss
    optimizers = _optimizers(model, recipe)
    for step in range(1, recipe.steps + 1):
        numbers = next(order).to(device)
        ids = rows[numbers].long()
        loss = loss_of(model, ids, answers[numbers], ids != tokenizer.pad_token_id, device)
        model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in optimizers:
            optimizer.step()
            schedule.step()
        if step % REPORT_EVERY == 0:
            report(_progress(step, start, loss, model, watched, device))
    _save(model, tokenizer, out)
    return {**_progress(recipe.steps, start, loss, model, checks, device), "tokens_seen": tokens_seen}


def _new_model(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    config = AutoConfig.for_model(
        **architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    make: Any = AutoModelForCausalLM
    return make.from_config(config, dtype=torch.float32)


def _loss(model: Any, ids: Tensor, is_answer: Tensor, is_real: Tensor, device: str) -> Tensor:
    """Answer cross-entropy + 0.5 · cross-entropy of every token; all arguments are `(B, T)`."""
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    answer, real = is_answer[:, 1:].flatten().float(), is_real[:, 1:].flatten().float()
    return (each * answer).sum() / answer.sum() + LM_WEIGHT * (each * real).sum() / real.sum()


def _optimizers(model: Any, recipe: Recipe) -> list[tuple[Optimizer, LRScheduler]]:
    """Muon for the layers' matrices, AdamW for embedding and norms, each with its schedule.

    Under AdamW alone it depends on the seed when, and whether, a model gets beyond naming any value of the right
    kind and begins to attend to the person in question; under Muon every seed that was tried soon does.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    # Muon: Keller Jordan, 2024. Its steps are scaled to the size of AdamW's: Moonshot AI, 2025.
    muon = torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    return [(optimizer, LambdaLR(optimizer, partial(_share_of_peak, recipe))) for optimizer in (muon, adamw)]


def _share_of_peak(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then the peak learning rate, then a linear way down."""
    up = (step + 1) / recipe.warm_up_steps
    down = (recipe.steps - step) / (recipe.steps * recipe.cool_down)
    return min(1.0, up, down)


def _checks(tokenizer: PreTrainedTokenizerFast, device: str) -> Checks:
    """Validation examples as padded ids and answer places; `no_context` asks one-hop questions blindly."""
    tasks = world_tasks()
    checks: Checks = {}
    for name in (*WATCHED, NO_CONTEXT):
        examples = tasks["one_hop" if name == NO_CONTEXT else name].examples("validation")
        turns = []
        for example in examples:
            context = "" if name == NO_CONTEXT else f"{example.context}\n"
            prompt = f"{context}Question: {example.question}\nAnswer:"
            turns.append([(prompt, f" {example.answers[0]}")])
        ids, answers = pad_turns(tokenizer, turns, tokenizer.model_max_length)
        longest = int((ids != tokenizer.pad_token_id).sum(axis=1).max())
        checks[name] = (
            torch.from_numpy(ids[:, :longest]).long().to(device),
            torch.from_numpy(answers[:, :longest]).to(device),
        )
    return checks


def _progress(step: int, start: float, loss: Tensor, model: Any, checks: Checks, device: str) -> dict[str, float]:
    accuracies = {name: _exact_match(model, ids, answers, device) for name, (ids, answers) in checks.items()}
    return {"step": step, "seconds": time.monotonic() - start, "loss": loss.item(), **accuracies}


@torch.inference_mode()
def _exact_match(model: Any, ids: Tensor, answers: Tensor, device: str) -> float:
    """The share of rows whose whole answer, `<eos>` included, is each time the likeliest next token."""
    right = 0
    for first in range(0, len(ids), 500):
        some, at = ids[first : first + 500], answers[first : first + 500]
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            guessed = model(input_ids=some, use_cache=False).logits[:, :-1].argmax(-1)
        right += int(((guessed == some[:, 1:]) | ~at[:, 1:]).all(1).sum())
    return right / len(ids)


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    make: Any = GenerationConfig
    model.generation_config = make(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
