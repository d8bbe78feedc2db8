"""The help of `bench` is written by hand, so that it loads nothing; it names what there is."""

import re

from latentwire.bench import NAMES
from tests.support.command_line import command


def test_help_names_every_benchmark(monkeypatch, capsys):
    status, out, _ = command(monkeypatch, capsys)("bench", "--help")
    assert status == 0
    assert set(NAMES) <= set(re.findall(r"\w+", out.partition("Options:")[0]))
