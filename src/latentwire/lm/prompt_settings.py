"""What a user says about prompts: in a study's YAML, on the command line, or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from latentwire.errors import UserError
from latentwire.lm import chat_template
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.reader import Tokenizes


class PromptSettings(BaseModel):
    """Changes to the prompt format that is saved beside a model; what is None stays as it is there.

    Attributes:
        template: `question`, `raw` or `chat`; see `PromptFormat` for this and the rest.
        instruction: a line between context and question that says how to answer.
        system: the text of a chat's system turn.
        anchor: the text that the answer follows.
        anchor_block: whether the anchor belongs to a bidirectional block.
        delimiter: what stands between prompt and answer under `raw`.
        thinking: whether a chat lets the model think first. Off by default.
        verbatim: as `PromptFormat` has it, so that a saved format can be read back.

    Example:
        >>> settings = PromptSettings(template="chat", instruction="Answer with a few words from the passage.")
        >>> lm = LM.load("Qwen/Qwen2.5-7B-Instruct", prompts=settings)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Literal["question", "raw", "chat"] | None = None
    instruction: str | None = None
    system: str | None = None
    anchor: str | None = None
    anchor_block: Literal["inside", "causal"] | None = None
    delimiter: str | None = None
    thinking: bool | None = None
    verbatim: bool | None = None

    @classmethod
    def asked(
        cls,
        file: str | Path | None = None,
        *,
        chat: bool = False,
        instruction: str | None = None,
        system: str | None = None,
    ) -> PromptSettings | None:
        """What the options of a command say, a file's fields first; None where nothing is said.

        Raises:
            UserError: a file that cannot be read, or holds something else than these fields.
        """
        fields: dict[str, Any] = {} if file is None else cls.read(Path(file)).model_dump(exclude_none=True)
        options = {"template": "chat" if chat else None, "instruction": instruction, "system": system}
        fields |= {name: value for name, value in options.items() if value is not None}
        return cls(**fields) if fields else None

    @classmethod
    def read(cls, file: Path) -> PromptSettings:
        """From a JSON or YAML file, such as the `prompt_format.json` of a saved model.

        Raises:
            UserError: the file cannot be read, or holds something else than these fields.
        """
        try:
            fields = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"prompt-format: {file} cannot be read ({reason}); expected JSON or YAML.") from error
        known = ", ".join(cls.model_fields)
        if not isinstance(fields, dict):
            shown = "nothing" if fields is None else type(fields).__name__
            raise UserError(f"prompt-format: found {shown} in {file}, expected a mapping with some of {known}.")
        fields.pop("trained", None)  # of a saved model; see `latentwire.lm.loading.saving.write_format`
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            what = f"expected some of {known}" if first["type"] == "extra_forbidden" else first["msg"]
            shown = "" if first["type"] == "extra_forbidden" else f"found {first['input']!r}; "
            raise UserError(f"prompt-format: {file}, {where}: {shown}{what}.") from error

    def over(self, saved: PromptFormat, lm: Tokenizes) -> PromptFormat:
        """The saved format of a model with these changes.

        Raises:
            UserError: the fields do not go together, the tokenizer has no chat template, or that template refuses
                a system text or leaves it out.
        """
        changes = self.model_dump(exclude_none=True)
        if self.template not in (None, "chat"):  # what belongs to a chat ends with it
            changes = {"system": None, "thinking": False, "verbatim": False} | changes
        try:
            made = PromptFormat.model_validate(saved.model_dump() | changes)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise UserError(f"prompts: {lm.name}: {reason}.") from error
        if made.template == "chat":
            text = made.render("", "?", lm)[0]
            if made.system and made.system.strip() not in text:
                raise UserError(
                    f"prompts: found a system text for {lm.name}, whose chat template leaves it out; expected "
                    "none, or the text as instruction."
                )
            chat_template.around_answer(lm, thinking=made.thinking)
        return made


def departure(now: PromptFormat, trained: PromptFormat | None, what: str) -> str | None:
    """One sentence where a checkpoint is read with another prompt format than it was trained with.

    Args:
        trained: None where it is not known.
        what: the checkpoint, as the sentence names it.
    """
    if trained is None or now == trained:
        return None
    old, new = trained.model_dump(), now.model_dump()
    fields = ", ".join(f"{name} {new[name]!r} and not {old[name]!r}" for name in old if old[name] != new[name])
    return f"{what} is read with another prompt format than it was trained with: {fields}."
