"""Grows an embedded model from nothing: its tokenizer, its rows, its weights.

The loss is the cross-entropy of the answers plus half that of all tokens of a row. The model is
always grown causally; what other masks do to it is what the project is there to find out.
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
from latentwire.training.growth_data import (
    Recipe,
    batches,
    grow_tokenizer,
    growth_rows,
    pad_turns,
    recipe_of,
)

REPORT_EVERY = 500
WATCHED = ("one_hop", "reverse", "two_hop", "later", "sums")
WATCHED_EXAMPLES = 500
LM_WEIGHT = 0.5
COOL_DOWN = 0.3

Report = Callable[[dict[str, float]], None]
Checks = dict[str, tuple[Tensor, Tensor]]


def grow(name: str, seed: int, out: Path, device: str, report: Report) -> dict[str, float]:
    """Grow the embedded model `name` and save it in `out` as a Hugging Face model folder.

    `seed` decides the first weights and the order of the rows. `report` is called every 500 steps
    with the step, the seconds, the loss and the accuracies on validation examples (teacher-forced
    exact match, which is what greedy decoding gets). Returns the same for the last step, measured
    on all validation examples, with the number of tokens seen. Raises `UserError` for an unknown name.
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

    def take_steps(model: Any, steps: range) -> Tensor:
        """Train on the next rows with a fresh optimizer; returns the last loss."""
        loss_of = torch.compile(_loss) if device.startswith("cuda") else _loss
        optimizers = _optimizers(model, recipe, steps.start)
        for step in steps:
            numbers = next(order).to(device)
            ids = rows[numbers].long()
            loss = loss_of(model, ids, answers[numbers], ids != tokenizer.pad_token_id, device)
            model.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in optimizers:
                optimizer.step()
                schedule.step()
            if (step + 1) % REPORT_EVERY == 0:
                report(_progress(step + 1, start, loss, model, watched, device))
        return loss

    torch.manual_seed(seed)
    model = _new_model(recipe.architecture, tokenizer).to(device)
    if recipe.normed_steps:
        normed = _new_model({**recipe.architecture, "model_type": "qwen3"}, tokenizer).to(device)
        take_steps(normed, range(recipe.normed_steps))
        fold_norms(normed, model, rows[next(order).to(device)].long(), int(tokenizer.pad_token_id))
    loss = take_steps(model, range(recipe.normed_steps, recipe.steps))
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


def _optimizers(model: Any, recipe: Recipe, first: int) -> list[tuple[Optimizer, LRScheduler]]:
    """Muon for the matrices between the layers, AdamW for embedding and norms, each with its schedule.

    Under AdamW alone the models stay for very long at naming any of the four values of the right
    kind, before they learn to look at whom the question is about; under Muon they soon do.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    # Muon: Keller Jordan, 2024. Its steps are scaled to the size of AdamW's: Moonshot AI, 2025.
    muon = torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    share = partial(_share_of_peak, recipe, first)
    return [(optimizer, LambdaLR(optimizer, share)) for optimizer in (muon, adamw)]


def _share_of_peak(recipe: Recipe, first: int, step: int) -> float:
    """Linear warm-up, then the peak learning rate, then a linear way down; `step` counts from `first`."""
    up = (step + 1) / recipe.warm_up_steps
    down = (recipe.steps - first - step) / (recipe.steps * COOL_DOWN)
    return min(1.0, up, down)


@torch.no_grad()
def fold_norms(normed: Any, plain: Any, ids: Tensor, pad: int) -> None:
    """Copy a Qwen3 model into a Llama model of the same sizes, which has no query and key norms.

    Each norm becomes a constant: its gain over the mean root mean square that its head shows on
    `ids` `(B, T)`. That costs some accuracy, which a few hundred steps of training win back (as
    with removing LayerNorm: Heimersheim, 2024). It is worth the trouble because a model without
    these norms does not get off the plateau that `_optimizers` tells of.
    """
    weights = normed.state_dict()
    scales: dict[str, Tensor] = {}
    hooks = []
    for at, layer in enumerate(normed.model.layers):
        for kind in ("q", "k"):
            norm = getattr(layer.self_attn, f"{kind}_norm")
            key = f"model.layers.{at}.self_attn.{kind}"
            hooks.append(norm.register_forward_hook(partial(_measure, scales, key, ids != pad)))
    normed(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    for key, scale in scales.items():
        gain = weights.pop(f"{key}_norm.weight")
        rows_scale = (scale[:, None] * gain[None, :]).flatten()
        weights[f"{key}_proj.weight"] = weights[f"{key}_proj.weight"] * rows_scale[:, None]
    plain.load_state_dict(weights)


def _measure(
    scales: dict[str, Tensor], key: str, real: Tensor, norm: nn.Module, inputs: tuple[Tensor], _: Tensor
) -> None:
    """Forward hook of a norm over `(B, T, heads, width)`: the mean of 1 / rms over real tokens, by head."""
    scales[key] = inputs[0][real].pow(2).mean(-1).rsqrt().mean(0)


def _checks(tokenizer: PreTrainedTokenizerFast, device: str) -> Checks:
    """Validation examples as padded ids and answer places; `no_context` asks one-hop questions blindly."""
    tasks = world_tasks()
    checks: Checks = {}
    for name in (*WATCHED, "no_context"):
        examples = tasks["one_hop" if name == "no_context" else name].examples("validation")
        turns = []
        for example in examples:
            context = "" if name == "no_context" else f"{example.context}\n"
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
