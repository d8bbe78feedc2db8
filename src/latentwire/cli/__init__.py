"""The commands: parse, call, print. The work is done by the packages below."""

from latentwire.cli import (  # noqa: F401  (each adds its commands)
    estimate_command,
    evaluating,
    export_command,
    launch_commands,
    machine,
    publish_commands,
    runs_commands,
    runs_keeping,
    schema_command,
    studying,
)
from latentwire.cli.application import app
from latentwire.cli.entry import main

__all__ = ["app", "main"]
