"""The commands: parse, call, print. The work is done by the packages below."""

from latentwire.cli import evaluating, machine, runs_commands, schema_command, studying  # noqa: F401  (each adds its commands)
from latentwire.cli.application import app
from latentwire.cli.entry import main

__all__ = ["app", "main"]
