"""No code that comes with a model runs unless the user asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from latentwire import LM, UserError
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.loading.tokenizing import Tokenizing
from tests.support.checkpoints import write_lora, write_plain
from tests.support.models import tiny_model

_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({ran!r}).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "own-{name}"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def own_code(folder: Path, *, config: bool = True, tokenizer: bool = False) -> Path:
    """A Llama with Python files of its own; returns the file that this code writes when it runs."""
    ran = folder.parent / f"{folder.name}-ran"
    write_plain(tiny_model(), folder)
    (folder / "own.py").write_text(_CODE.format(ran=str(ran), name=folder.name))
    if config:
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"model_type": f"own-{folder.name}", "architectures": ["OwnModel"]}
        settings["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        (folder / "config.json").write_text(json.dumps(settings))
    if tokenizer:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ran


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`yes |` on the terminal would answer Transformers' question: it must never come."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether code may run"))


@pytest.mark.parametrize(
    "load", [lambda path: LM.load(path, device="cpu"), lambda path: Tokenizing.load(str(path))]
)
def test_code_of_a_model_folder_is_refused_with_the_option_that_trusts_it(
    load: Callable[[Path], object], tmp_path: Path
) -> None:
    ran = own_code(tmp_path / "model")
    with pytest.raises(UserError, match=r"comes with Python code of its own, .* add --trust-remote-code"):
        load(tmp_path / "model")
    assert not ran.exists()


def test_code_of_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    ran = own_code(tmp_path / "model", config=False, tokenizer=True)
    with suppress(UserError):  # refused, or read as a class that Transformers has itself
        LM.load(tmp_path / "model", device="cpu")
    assert not ran.exists()


def test_code_runs_once_it_is_trusted(tmp_path: Path) -> None:
    ran = own_code(tmp_path / "trusted")
    lm = LM.load(tmp_path / "trusted", Loading(trust_remote_code=True), device="cpu")
    assert type(lm.model).__name__ == "OwnModel"
    assert ran.read_text() == "ran"


def test_code_beside_an_adapter_is_not_run(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path / "m")
    write_lora(tiny_model(), tmp_path / "lora")
    ran = own_code(tmp_path / "code", config=False, tokenizer=True)
    for name in ("own.py", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "lora" / name).write_text((tmp_path / "code" / name).read_text())
    with suppress(UserError):
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")
    assert not ran.exists()


@pytest.mark.parametrize(
    "named", ["someone/attention-kernel", "kernels-community/flash-attn", "flash_attention_2"]
)
def test_an_attention_kernel_named_by_a_configuration_is_not_fetched(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils as modeling

    def fetched(*_: object, **__: object) -> object:
        pytest.fail("an attention kernel was fetched")

    monkeypatch.setattr(modeling, "lazy_import_flash_attention", fetched)
    write_plain(tiny_model(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for key in ("attn_implementation", "_attn_implementation"):
        (tmp_path / "config.json").write_text(json.dumps({**settings, key: named}))
        lm = LM.load(tmp_path, device="cpu")
        assert lm.model.config._attn_implementation == "latentwire_sdpa"
    ids = torch.arange(3, 12)[None]
    plain = AutoModelForCausalLM.from_pretrained(write_plain(tiny_model(), tmp_path / "plain"))
    torch.testing.assert_close(lm.model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=0)
