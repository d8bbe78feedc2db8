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

from latentwire.errors import UserError
from latentwire.harness.arguments import load
from latentwire.harness.requests import AskedRequest, Delivered, Verbatim, alike, decoding, parts, scores
from latentwire.harness.truncation import shortened
from latentwire.lm.halving import Halving
from latentwire.lm.loading.load_settings import DeviceMap, Loading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompt_settings import PromptSettings, departure
from latentwire.lm.prompts import CAUSAL, Example, Prompt
from latentwire.lm.scoring.continuations import Score
from latentwire.lm.scoring.shared_scorer import BATCH_TOKENS, SharedScorer, Work
from latentwire.version import __version__
from latentwire.wires.latent.latent_wire import LatentWireBase
from latentwire.wires.text_wire import PlainText, TextWire

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
        dtype, device_map, bits, revision, max_memory, trust_remote_code: as `Loading.parse` takes them.
        wire: KIND or KIND,OPTION=VALUE, or a trained wire. Options may also be arguments of their own
            (`wire=text,mask=prefix`).
        text_from: with a wire that sends latents, the prompt from the last occurrence of this string on stays text
            and all text before it crosses the wire. By default the last line stays text, or of a single line its
            last word.
        run: a finetuning's run folder, in place of `model`; it brings the wire that it was trained with.
        checkpoint: which of the run's checkpoints: best or final.
        batch_tokens: the size of a forward pass, in tokens. lm-eval's `batch_size` counts rows and has no effect.

    Raises:
        UserError: an argument is wrong.

    Example:
        $ lm_eval --model latentwire --model_args model=embedded:heron,wire=nth,ratio=4 --tasks arc_easy
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
        device_map: str | DeviceMap | None = None,
        bits: int | None = None,
        revision: str | None = None,
        max_memory: str | dict[int | str, int | str] | None = None,
        trust_remote_code: bool = False,
        chat: bool = False,
        instruction: str | None = None,
        system: str | None = None,
        prompt_format: str | None = None,
        text_from: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        loading = Loading.parse(
            dtype=dtype,
            device_map=device_map,
            bits=bits,
            revision=revision,
            max_memory=max_memory,
            trust_remote_code=trust_remote_code,
        )
        asked = PromptSettings.asked(prompt_format, chat=chat, instruction=instruction, system=system)
        self.loaded = load(
            model,
            wire,
            run,
            checkpoint,
            adapter=adapter,
            loading=loading,
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
        self.wire = self.loaded.wire
        self.batch_tokens, self.text_from, self.cut = batch_tokens, text_from, 0
        self.work = Work()
        self.halving = Halving(log.warning)
        self.reader = copy(self.wire.reader(self.loaded.lm))
        self.reader.format = self._words()
        self._latents = isinstance(self.wire, LatentWireBase)
        if self._latents and not self.wire.trained:
            self.wire = self.wire.bind(self.reader)  # reads contexts as lm-eval words them
        if self.wire.delivery_changes:
            raise UserError(
                f"wire: found {self.wire.label}, expected a constant gain: lm-eval's loop has no steps."
            )
        if text_from is not None and not self._latents:
            raise UserError(f"text_from: found it beside {self.wire.label}, expected a wire that sends latents.")
        self.tokenizer = self.loaded.lm.tokenizer
        self._device = self.loaded.lm.device
        trained = self.loaded.lm.saved_format if self.loaded.run else None
        if sentence := departure(self.reader.format, trained, str(self.loaded.run)):
            log.warning(sentence)
        if self.wire.leaks:
            log.warning("LEAKS: under %s a scored token sees itself; its scores are no reading.", self.wire.label)

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
            context, question = self._divided(requests[group[0]].args[0])
            choices = tuple(self._answer(requests[n].args[1]) for n in group)
            name = repr((context + question)[-40:])
            example = Example(id=name, group="", context=context, question=question, choices=choices)
            prompt, answers = self.reader.format.encode(example, self.reader)
            prompts.append(prompt)
            continuations.append(answers)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc=self.wire.label, disable=disable_tqdm) as bar:
            for at, scores in self._scores(self._delivered(prompts, self.reader), continuations):
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
            for context, token in map(utils.make_disjoint_window, windows):
                rows.append(context)
                continuations.append([token])
                owners.append(n)
        text = self.wire if isinstance(self.wire, TextWire) else PlainText()
        inside = CAUSAL if text.mask == "causal" else 0
        delivered = (
            (
                Prefix.of_tokens(
                    [rows[n] for n in part],
                    [[inside] * len(rows[n]) for n in part],
                    device=self.reader.device,
                    layers=text.layers,
                    leaky=text.leaks,
                ),
                part,
            )
            for part in parts(range(len(rows)))
        )
        totals = [0.0] * len(requests)
        with tqdm(total=len(rows), desc=self.wire.label, disable=disable_tqdm) as bar:
            for at, (score,) in self._scores(delivered, continuations):
                totals[owners[at]] += score.logprob
                bar.update(1)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation, up to a stop string, the end of the text or `max_gen_toks` tokens."""
        reader = copy(self.reader)
        reader.format = self._words(Verbatim(template="raw", anchor=""))
        asked = []
        for n, request in enumerate(requests):
            context, question = self._divided(request.args[0])
            length = len(reader.format.tokens(context, question, reader).ids)
            prompt = Prompt(context=context, question=question, tokens=length)
            asked.append(AskedRequest(n, prompt, length, decoding(request.args[1])))
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc=self.wire.label, disable=disable_tqdm) as bar:
            for batch in alike(asked, self.batch_tokens):
                most = reader.max_positions - batch[0].how.max_new_tokens
                if most < 1:
                    raise UserError(
                        f"gen_kwargs: found max_gen_toks={batch[0].how.max_new_tokens}, expected less than "
                        f"{reader.max_positions:,}, which is what {self.loaded.lm.name} was built for."
                    )
                for prefix, rows in self._delivered([one.prompt for one in batch], reader):
                    seeds = [batch[row].at for row in rows]
                    generated = reader.generate(
                        reader.prefill(shortened(prefix, most, self._count_cut)), batch[0].how, seeds=seeds
                    )
                    for at, continuation in zip(seeds, generated, strict=True):
                        texts[at] = continuation.text
                bar.update(len(batch))
        return texts

    def _words(self, words: PromptFormat = RAW) -> PromptFormat:
        """How lm-eval's prompts are read: as they are, or as they are in a chat."""
        return self.loaded.lm.format.around(words) if self.chat else words

    def _answer(self, continuation: str) -> str:
        """A continuation; in a chat it begins the model's turn, where no blank stands before it."""
        return continuation.lstrip(" ") if self.chat else continuation

    def _delivered(self, prompts: Sequence[Prompt], reader: LM) -> Iterator[Delivered]:
        if not self._latents:
            for rows in parts(range(len(prompts))):
                yield self.wire([prompts[row] for row in rows], reader), rows
            return
        # Latents are read batch by batch, prompts of like length together.
        order = sorted(range(len(prompts)), key=lambda row: -prompts[row].tokens)
        size = max(1, self.batch_tokens // max(1, *(prompt.tokens for prompt in prompts)))
        for part in parts(order, size):
            # A prompt that has nothing to send is read as text.
            sent, empty = ([row for row in part if bool(prompts[row].context) is has] for has in (True, False))
            for wire, rows in ((self.wire, sent), (PlainText(), empty)):
                if rows:
                    yield wire([prompts[row] for row in rows], reader), rows

    def _divided(self, text: str) -> tuple[str, str]:
        """A prompt in two: what crosses the wire, and what follows it as text. Plain text crosses as a whole."""
        text = self._bare(text)
        if not self._latents:
            return text, ""
        if self.text_from is not None:
            at = text.rfind(self.text_from)
            if at < 0:
                raise UserError(f"text_from: found no {self.text_from!r} in a prompt that ends in {text[-40:]!r}.")
        else:
            stripped = text.rstrip()
            at = max(stripped.rfind("\n"), 0) or max(stripped.rfind(" "), 0)
        return text[:at], text[at:]

    def _scores(
        self, delivered: Iterator[Delivered], continuations: Sequence[Sequence[list[int]]]
    ) -> Iterator[tuple[int, list[Score]]]:
        layers = self.wire.layers if isinstance(self.wire, TextWire) else None
        scorer = SharedScorer(self.reader, layers, self.batch_tokens, self.work, self.halving)
        return scores(self.reader, scorer, delivered, continuations, self._count_cut)

    def _count_cut(self) -> None:
        """Count a prompt that is longer than the model, and say so at the first one."""
        if not self.cut:
            log.warning(
                "a prompt is longer than the %d tokens that %s takes: its beginning is cut off, as by hf in "
                "lm-eval; prompts_cut in the results' config says how many are.",
                self.loaded.lm.max_positions,
                self.loaded.lm.name,
            )
        self.cut += 1

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
                "prompts_cut": self.cut,
                "tokens_run": self.work.run,
                "fewest_tokens": self.work.least,
            },
        }


def _document(request: Any) -> tuple[str, str, str]:
    return str(request.task_name), str(request.doc_id), request.args[0]
