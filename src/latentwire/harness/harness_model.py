"""`HarnessModel`: lm-eval's three kinds of request, answered over a wire.

Prompt and continuation are split as lm-eval splits them and read as `evaluate` reads them: the choices of one
document together decide how far its bidirectional block goes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import groupby
from typing import Any

from lm_eval import utils
from lm_eval.api.model import LM as HarnessLM
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from latentwire import __version__
from latentwire.errors import UserError
from latentwire.harness.arguments import load
from latentwire.harness.requests import Asked, Verbatim, alike, decoding, parts, scores
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.lm.prompts import CAUSAL, Example, Prompt
from latentwire.lm.scoring.continuations import Score
from latentwire.lm.scoring.together import BATCH_TOKENS, Together, Work
from latentwire.wires.text_wire import TextWire

log = logging.getLogger(__name__)
RAW = PromptFormat(template="raw", anchor="")
"""lm-eval's prompts as they are."""


class HarnessModel(HarnessLM):  # type: ignore[misc]
    """A decoder read over a wire, as a model of lm-eval: `--model latentwire`.

    Args:
        model: what `LM.load` takes, or a loaded model.
        chat, instruction, system, prompt_format: as the options of `latentwire eval`: lm-eval's prompts word for
            word in a user turn of the model's chat template, after the instruction. They replace lm-eval's own
            `--apply_chat_template`.
        wire: KIND or KIND,OPTION=VALUE. Options may also be arguments of their own (`wire=text,mask=prefix`).
        run: a finetuning's run folder, in place of `model`; it brings the wire that it was trained with.
        checkpoint: which of the run's checkpoints: best or final.
        batch_tokens: the size of a forward pass, in tokens. lm-eval's `batch_size` counts rows and has no effect.

    Raises:
        UserError: an argument is wrong, or the wire does not deliver tokens.
    """

    def __init__(
        self,
        model: str | LM | None = None,
        wire: str | None = None,
        run: str | None = None,
        checkpoint: str = "best",
        adapter: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        chat: bool = False,
        instruction: str | None = None,
        system: str | None = None,
        prompt_format: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        asked = PromptSettings.asked(prompt_format, chat=chat, instruction=instruction, system=system)
        self.loaded = load(
            model,
            wire,
            run,
            checkpoint,
            adapter=adapter,
            dtype=dtype,
            device=device,
            prompts=asked,
            options=options,
        )
        self.chat = asked is not None and self.loaded.lm.format.template == "chat"
        if asked is not None and not self.chat:
            raise UserError(
                f"model_args: found {', '.join(asked.model_dump(exclude_none=True))} without a chat, expected "
                "chat=true too: lm-eval words its prompts itself, and only a chat has a place for more."
            )
        if not isinstance(self.loaded.wire, TextWire):
            raise UserError(f"wire: {self.loaded.wire.label} delivers no text, which is all that lm-eval has.")
        self.batch_tokens = batch_tokens
        self.work = Work()
        self.reader = copy(self.loaded.lm)
        self.reader.format = self._words()
        self.tokenizer = self.loaded.lm.tokenizer
        self._device = self.loaded.lm.device
        if self.loaded.wire.leaks:
            log.warning("LEAKS: under %s a scored token sees itself; its scores are no reading.", self.wire.label)

    @property
    def wire(self) -> TextWire:
        """The wire, bound to the model."""
        wire = self.loaded.wire
        assert isinstance(wire, TextWire)
        return wire

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse `use_cache`: its key is the request alone, so it would return another model's answers.

        Raises:
            UserError: the hook has a cache.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise UserError(
                "use_cache: lm-eval's cache stores neither the model nor the wire of an answer, and would return "
                "one's answers for another; expected no cache."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Each continuation's log-probability in nats, and whether greedy decoding would give it."""
        # The choices of one document are one prompt: together they say where its block ends.
        order = sorted(range(len(requests)), key=lambda n: _document(requests[n]))
        groups = [list(group) for _, group in groupby(order, key=lambda n: _document(requests[n]))]
        prompts, continuations = [], []
        for group in groups:
            context = self._bare(requests[group[0]].args[0])
            choices = tuple(self._answer(requests[n].args[1]) for n in group)
            example = Example(id=repr(context[-40:]), group="", context=context, question="", choices=choices)
            prompt, answers = self.reader.format.encode(example, self.reader)
            prompts.append(prompt)
            continuations.append(answers)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc=self.wire.label, disable=disable_tqdm) as bar:
            for at, scores in self._scores(self._delivered(prompts), continuations):
                for n, score in zip(groups[at], scores, strict=True):
                    results[n] = (score.logprob, score.greedy)
                bar.update(len(scores))
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in lm-eval's windows.

        A text is all continuation, so nothing of it crosses the wire; the mask applies to what a window repeats.
        """
        rows, continuations, owners = [], [], []
        for n, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=RAW.whole("", "", self._bare(request.args[0]), self.reader),
                prefix_token=self.prefix_token_id,
                # Under a wire that leaks, the last token is read as well.
                max_seq_len=self.loaded.lm.max_positions - int(self.wire.leaks),
                context_len=1,
            )
            for context, text in map(utils.make_disjoint_window, windows):
                rows.append(context)
                continuations.append([text])
                owners.append(n)
        inside = CAUSAL if self.wire.mask == "causal" else 0
        prefixes = (
            Prefix.of_tokens(
                part,
                [[inside] * len(row) for row in part],
                device=self.reader.device,
                layers=self.wire.layers,
                leaky=self.wire.leaks,
            )
            for part in parts(rows)
        )
        totals = [0.0] * len(requests)
        with tqdm(total=len(rows), desc=self.wire.label, disable=disable_tqdm) as bar:
            for at, (score,) in self._scores(prefixes, continuations):
                totals[owners[at]] += score.logprob
                bar.update(1)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation, up to a stop string, the end of the text or `max_gen_toks` tokens."""
        reader = copy(self.reader)
        reader.format = self._words(Verbatim(template="raw", anchor=""))
        asked = []
        for n, request in enumerate(requests):
            prompt = Prompt(context=self._bare(request.args[0]), question="")
            length = len(reader.format.tokens(prompt.context, "", reader).ids)
            asked.append(Asked(n, prompt, length, decoding(request.args[1])))
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc=self.wire.label, disable=disable_tqdm) as bar:
            for batch in alike(asked, self.batch_tokens):
                prefilled = reader.prefill(self.wire([one.prompt for one in batch], reader))
                generated = reader.generate(prefilled, batch[0].how, seeds=[one.at for one in batch])
                for one, continuation in zip(batch, generated, strict=True):
                    texts[one.at] = continuation.text
                bar.update(len(batch))
        return texts

    def _words(self, words: PromptFormat = RAW) -> PromptFormat:
        """How lm-eval's prompts are read: as they are, or as they are in a chat."""
        return self.loaded.lm.format.around(words) if self.chat else words

    def _answer(self, continuation: str) -> str:
        """A continuation; in a chat it begins the model's turn, where no blank stands before it."""
        return continuation.lstrip(" ") if self.chat else continuation

    def _delivered(self, prompts: Sequence[Prompt]) -> Iterator[Prefix]:
        for part in parts(prompts):
            yield self.wire(part, self.reader)

    def _scores(
        self, prefixes: Iterator[Prefix], continuations: Sequence[Sequence[list[int]]]
    ) -> Iterator[tuple[int, list[Score]]]:
        return scores(
            Together(self.reader, self.wire.layers, self.batch_tokens, self.work), prefixes, continuations
        )

    def _bare(self, text: str) -> str:
        """The text without a leading BOS that the tokenizer would add again."""
        begins = self.tokenizer.bos_token
        adds = begins is not None and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return text.removeprefix(begins) if adds else text

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context is read as: BOS, or EOS for a tokenizer without BOS."""
        begins = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if begins is None else begins)

    @property
    def tokenizer_name(self) -> str:
        """Under which lm-eval files requests that a chat template has changed."""
        return str(self.tokenizer.name_or_path or self.loaded.source).replace("/", "__")

    chat_template = TemplateLM.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns as the tokenizer's chat template writes them, for `--apply_chat_template`.

        Raises:
            UserError: with chat=true, which would put a chat into a chat.
        """
        if self.chat:
            raise UserError("apply_chat_template: found it beside chat=true, expected one of the two.")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `config` of its results."""
        lm = self.loaded.lm
        return {
            "model_num_parameters": lm.model.num_parameters(),
            "model_dtype": str(lm.model.dtype),
            "latentwire": {
                "version": __version__,
                "model": self.loaded.source,
                "run": self.loaded.run,
                "wire": self.wire.label,
                "leaks": self.wire.leaks,
                "batch_tokens": self.batch_tokens,
                "tokens_run": self.work.run,
                "fewest_tokens": self.work.least,
            },
        }


def _document(request: Any) -> tuple[str, str, str]:
    return str(request.task_name), str(request.doc_id), request.args[0]
