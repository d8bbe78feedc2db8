"""Every causal family of Transformers as a tiny random model, and what this project makes of it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from latentwire import LM, UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.loading import weights
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.prefix import Prefix
from tests.support.models import VOCABULARY, tiny_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "d_ff": 48,
    "ffn_hidden_size": 48,
    "n_inner": 48,
    "dff": 48,
    "q_lora_rank": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "query_pre_attn_scalar": 8,
    "is_decoder": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "laurel_rank": 8,
}
"""Sizes by the names that configurations have for them; each family takes those it knows."""
_SPECIAL = tuple(_SIZES)[5:7] + tuple(_SIZES)[12:]
"""All but vocabulary, width, layers, heads, positions and special tokens."""
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "num_layers": 3},
    "persimmon": {"num_key_value_heads": None},
}
NAMES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


@dataclass(frozen=True)
class Family:
    """What became of one family.

    Attributes:
        name: its `model_type`.
        state: `read`, `refused`, `unbuilt` (no tiny model of it could be made here) or `wrong`.
        because: the reason, where it is not read.
    """

    name: str
    state: str
    because: str = ""


def tiny(name: str) -> PreTrainedModel:
    """A random model of a family, in float32 and evaluation mode, with all sizes that it knows or with fewer."""
    problem = Exception()
    whole = {key: value for key, value in _SIZES.items() if key != "head_dim"} | {"num_key_value_heads": 4}
    few = {key: value for key, value in _SIZES.items() if key not in _SPECIAL} | {"num_key_value_heads": 4}
    for sizes in (_SIZES, whole, few):
        try:
            model = _tiny(name, sizes)
            model(input_ids=torch.arange(3, 14)[None], use_cache=False)
            return model
        except Exception as error:
            problem = error
    raise problem


def _tiny(name: str, sizes: dict[str, Any]) -> PreTrainedModel:
    kind = CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters) | set(vars(kind())) | set(kind.attribute_map)
    config = kind(**{key: value for key, value in {**sizes, **_OF_FAMILY.get(name, {})}.items() if key in known})
    if sum(parameter.numel() for parameter in _meta(config).parameters()) > 20_000_000:
        raise ValueError("its configuration keeps sizes of its own, too large for a test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(std=0.15)
            elif parameter.is_floating_point():
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def _meta(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@torch.no_grad()
def look(name: str, folder: Path) -> Family:
    """Build a family, load it as a user would, and compare everything with plain Transformers."""
    try:
        plain = tiny(name)
        ids = torch.arange(3, 14)[None]
        finite = bool(torch.isfinite(plain(input_ids=ids, use_cache=False).logits).all())
    except Exception as error:
        return Family(name, "unbuilt", _line(error))
    if not finite:
        return Family(name, "unbuilt", "a tiny random model of it gives no finite numbers")
    try:
        plain.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except Exception as error:
        return Family(name, "unbuilt", _line(error))
    try:
        lm = LM.load(folder, device="cpu")
    except UserError as error:
        return Family(name, "refused", _line(error).replace(str(folder), "it"))
    except Exception as error:
        return Family(name, "wrong", f"loading: {type(error).__name__}: {_line(error)}")
    for check in (_prefill, _prefix_mask, _generation, _saving):
        try:
            problem = check(lm, plain, folder)
        except Exception as error:
            problem = f"{type(error).__name__}: {_line(error)}"
        if problem:
            return Family(name, "wrong", f"{check.__name__.strip('_')}: {problem}")
    return Family(name, "read")


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in (11, 7)]


def _prefill(lm: LM, plain: PreTrainedModel, folder: Path) -> str:
    """Two prompts of different lengths in one batch, each as the plain model reads it alone."""
    ours = lm.prefill(Prefix.of_tokens(_prompts())).logits
    theirs = torch.cat([plain(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1] for ids in _prompts()])
    return _gap(ours, theirs)


def _prefix_mask(lm: LM, plain: PreTrainedModel, folder: Path) -> str:
    """A bidirectional prompt, as the plain model reads it under a mask given by hand."""
    (prompt, _), answer = _prompts(), [5, 9, 17]
    width, block = len(prompt) + len(answer), len(prompt)
    see = torch.ones(width, width).tril().bool()
    see[:block, :block] = True
    mask = torch.where(see, 0.0, torch.finfo(torch.float32).min)[None, None]
    before = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    ids = torch.tensor([prompt + answer])
    try:
        # Some count positions by a mask of two dimensions unless they are given.
        counted = "position_ids" in inspect.signature(plain.forward).parameters
        positions = {"position_ids": torch.arange(width)[None]} if counted else {}
        theirs = plain(input_ids=ids, attention_mask=mask, use_cache=False, **positions).logits[0, block - 1 : -1]
    finally:
        plain.set_attn_implementation(before)
    prefix = Prefix.of_tokens([prompt], [[0] * block])
    ours = lm.head(lm.forced(prefix, torch.tensor([answer])).hidden)[0]
    return _gap(ours, theirs) or _gap(lm.prefill(prefix).logits[0], theirs[0])


def _generation(lm: LM, plain: PreTrainedModel, folder: Path) -> str:
    """Greedy tokens, as whole passes of the plain model without a cache choose them."""
    ours = lm.generate(lm.prefill(Prefix.of_tokens(_prompts())), Decoding(max_new_tokens=6, min_new_tokens=6))
    for row, ids in zip(ours, _prompts(), strict=True):
        wanted = list(ids)
        for _ in range(6):
            logits = plain(input_ids=torch.tensor([wanted]), use_cache=False).logits[0, -1]
            logits[list(lm.eos_ids)] = -torch.inf
            wanted.append(int(logits.argmax()))
        if list(row.ids) != wanted[len(ids) :]:
            return f"other tokens: {list(row.ids)} for {wanted[len(ids) :]}"
    return ""


def _saving(lm: LM, plain: PreTrainedModel, folder: Path) -> str:
    """Saved and loaded again it has the same tensors and gives the same logits."""
    lm.save(folder / "saved")
    back = weights.load(str(folder / "saved"), Loading(), device="cpu").model
    state, again = lm.model.state_dict(), back.state_dict()
    if odd := sorted(state.keys() ^ again.keys()):
        return f"{odd[0]} in one of them only"
    changed = [name for name, tensor in state.items() if not torch.equal(tensor, again[name])]
    return f"{changed[0]} has changed" if changed else ""


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    gap = float((ours - theirs).abs().max())
    return "" if gap <= 2e-4 * max(1.0, float(theirs.abs().max())) else f"logits off by {gap:.2g}"


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


# The page in the docs that lists them.

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_STATES = {"read": "Read right", "refused": "Refused on loading", "unbuilt": "Not tried"}
_INTRO = """# Which models are read

Every causal family of Transformers {version} was made as a tiny random model and loaded as a user would load it.
**Read right** means: prefill under padding, a bidirectional prompt, greedy generation, and saving and loading
again all equal plain Transformers. A family that would be read wrongly is refused on loading, with the sentence
in the table. Some could not be made small enough here; the probe that runs at every loading judges them all the
same.

This page is generated: `python -m tests.support.families`. A slow test (`tests/lm/test_families.py`) checks it.
"""


def page(found: list[Family]) -> str:
    """The page of a sweep."""
    import transformers

    lines = [_INTRO.format(version=transformers.__version__)]
    for state, title in _STATES.items():
        rows = [family for family in found if family.state == state]
        lines.append(f"## {title} ({len(rows)})\n")
        if state == "read":
            lines.append(", ".join(f"`{family.name}`" for family in rows) + "\n")
        else:
            lines.append("| family | why |\n| --- | --- |")
            lines += [f"| `{family.name}` | {family.because.replace('|', '/')} |" for family in rows]
            lines.append("")
    return "\n".join(lines)


def listed() -> dict[str, str]:
    """By family the state that the page gives it."""
    states, state = {}, ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            state = next(key for key, title in _STATES.items() if line.startswith(f"## {title}"))
        elif state == "read" or line.startswith("| `"):
            names = line.split("|")[1] if line.startswith("|") else line
            states |= dict.fromkeys(re.findall(r"`([^`]+)`", names), state)
    return states


def main() -> None:
    """Sweep all families and write the page."""
    import tempfile

    found = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(look(name, Path(folder) / "model"))
            print(*found[-1].__dict__.values(), flush=True)
    if wrong := [family for family in found if family.state == "wrong"]:
        raise SystemExit(f"{len(wrong)} families are read wrongly and not refused: {wrong[0]}")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
