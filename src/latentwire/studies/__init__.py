"""Studies: stages in a YAML file, carried out and told."""

from __future__ import annotations

from importlib import resources


def templates() -> dict[str, str]:
    """The texts of the templates, by name."""
    folder = resources.files("latentwire.studies") / "templates"
    files = {file.name: file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): files[name].read_text("utf-8") for name in sorted(files)}
