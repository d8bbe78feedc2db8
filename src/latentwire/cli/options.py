"""The options that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="embedded:heron, embedded:wren, a local folder, a .gguf file or a hub id.")
]
Adapter = Annotated[Path | None, typer.Option(help="The folder of a PEFT adapter: LoRA or prefix tuning.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template.")]
Instruction = Annotated[
    str | None, typer.Option(help="A line before each question, such as: Answer with a few words of the passage.")
]
System = Annotated[str | None, typer.Option(help="The text of the chat's system turn.")]
FormatFile = Annotated[
    Path | None,
    typer.Option("--prompt-format", help="A JSON or YAML file of prompt settings; the options above go over it."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. [default: float32 on a CPU, bfloat16 on an accelerator]"),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help='Where modules go: auto, or a JSON mapping of module names to devices such as {"": 1}.'),
]
Bits = Annotated[
    int | None, typer.Option(help="Round the weights to 4 or 8 bits while loading; needs bitsandbytes and a GPU.")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub; MODEL@REVISION says the same.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="The most memory to use, such as 40GiB for each accelerator, or 0=40GiB+cpu=100GiB."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Runs = Annotated[Path, typer.Option(help="The folder of all runs.")]
