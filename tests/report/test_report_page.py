"""A report holds what the study's files say, claims no more, and cannot be made to do anything else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from latentwire import cli
from latentwire.errors import UserError
from latentwire.evaluation.audit import Audit
from latentwire.evaluation.audit_file import write_audits
from latentwire.report import page
from latentwire.report.across_studies import across
from latentwire.report.findings import findings
from latentwire.report.gathered import Gathered
from latentwire.report.plain_words import evidence
from latentwire.report.stage_diagram import diagram
from tests.support.report_studies import HOSTILE, TASKS, report_study

Studies = dict[str, Path]


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def column(text: str) -> list[float | None]:
    """A column of the samples, as the page's script reads it."""
    if text.startswith("b"):
        return [None if digit == "-" else float(digit) for digit in text[1:]]
    return [float(number) if number else None for number in text.split(",")]


@pytest.fixture(scope="module")
def text(studies: Studies) -> str:
    return page.page([Gathered.read(studies["demo"], "s1")])


@pytest.fixture
def changed(studies: Studies, tmp_path: Path) -> Callable[..., Gathered]:
    """The study `demo` with another `summary.json`."""

    def call(change: Callable[[dict[str, Any]], None]) -> Gathered:
        folder = tmp_path / "demo"
        shutil.copytree(studies["demo"], folder, dirs_exist_ok=True)
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))
        return Gathered.read(folder, "s1")

    return call


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere(text: str) -> None:
    tags = Tags(text).tags
    loaded = [
        value for _, names in tags for key, value in names.items() if key in ("src", "srcset", "data", "poster")
    ]
    assert loaded == []
    assert {names.get("href") for tag, names in tags if tag == "link"} == {"data:,"}
    assert all(names["href"].startswith("#") for tag, names in tags if tag == "a" and names["href"])
    policy = next(names["content"] for tag, names in tags if names.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    scripts = [script for script in Tags(text).scripts if not script.startswith("{")]
    assert len(hashes) == len(scripts) == len(page.SCRIPTS)


def test_a_hostile_answer_stays_data(text: str) -> None:
    parsed = Tags(text)
    assert len(parsed.scripts) == 1 + len(page.SCRIPTS)
    assert not any(tag == "img" for tag, _ in parsed.tags)
    data = json.loads(parsed.scripts[0])
    assert HOSTILE in data["samples"]["texts"]
    assert "<b>minus</b>" not in text
    assert "&lt;b&gt;minus&lt;/b&gt;" in text


def test_every_outcome_is_in_the_samples(text: str, studies: Studies) -> None:
    samples = json.loads(Tags(text).scripts[0])["samples"]
    assert samples["sampled"] == {"kept": 160, "of": 160, "disagreements": samples["sampled"]["disagreements"]}
    readings = {each["reading"]: each for each in samples["readings"]}
    for name, reading in Gathered.read(studies["demo"], "s1").readings.items():
        right = column(readings[name]["right"])
        assert right == [next(iter(outcome.metrics.values())) for outcome in reading.outcomes]
        said = [samples["texts"][int(at or 0)] for at in column(readings[name]["said"])]
        assert said == [outcome.prediction for outcome in reading.outcomes]


def test_a_page_that_would_be_too_large_keeps_disagreements_first_and_says_so(studies: Studies, text: str) -> None:
    limit = len(text.encode()) - 12_000
    study = Gathered.read(studies["demo"], "s1")
    smaller = page.page([study], limit)
    assert len(smaller.encode()) <= limit
    samples = json.loads(Tags(smaller).scripts[0])["samples"]
    kept = len(samples["examples"]["id"])
    assert samples["sampled"]["kept"] == kept < 160
    assert f"This page holds {kept} of 160 examples" in smaller
    seeing = [reading for reading in study.readings.values() if not reading.blind]
    right: dict[str, set[bool]] = {}
    for reading in seeing:
        for outcome in reading.outcomes:
            right.setdefault(outcome.id, set()).add(next(iter(outcome.metrics.values())) >= 0.5)
    disagree = {id_ for id_, values in right.items() if len(values) > 1}
    ids = set(samples["examples"]["id"])
    assert ids <= disagree if kept <= len(disagree) else disagree <= ids


@pytest.mark.parametrize("name", ["outcomes.jsonl", "prompts.jsonl", "diagnostics.jsonl"])
def test_files_that_changed_since_their_run_ended_are_not_read(
    studies: Studies, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(studies["demo"], folder)
    with next(folder.glob(f"*/*/{name}")).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="found it changed since the run ended"):
        page.write([folder])
    assert not (folder / page.NAME).exists()


def test_plain_words_claim_what_is_resolved_and_nothing_else(studies: Studies) -> None:
    words = evidence(Gathered.read(studies["demo"], "s1"))
    shows, undecided = ([each.text for each in part] for part in (words.shows, words.open))
    assert words.about == "demo asks embedded:heron 160 examples of 4 tasks (test split); all 4 stages are done."
    damage = next(each for each in shows if each.startswith("Damage"))
    assert "ablated/text scores 0.575 lower than baseline/text on macro" in damage
    assert damage.endswith("; planned).")
    assert any("single training seed" in each for each in shows)
    latents = next(each for each in undecided if each.startswith("Latents on later"))
    assert (
        "no difference between after/latents and after/text on later is shown, and no equality either" in latents
    )
    assert "the interval includes zero" in latents
    assert not any("Latents on later" in each for each in shows)
    assert any("not how much of it happens in a real model" in each for each in words.limits)


def compared(summary: dict[str, Any], **numbers: Any) -> None:
    summary["comparisons"] = [{**summary["comparisons"][0], **numbers}]


def test_an_interval_inside_the_margin_is_called_the_same(changed: Callable[..., Gathered]) -> None:
    study = changed(lambda found: compared(found, difference=0.001, low=-0.02, high=0.02, resolved=False))
    assert "differ by less than 0.05" in evidence(study).open[0].text


def test_a_difference_that_the_correction_takes_back_is_not_claimed(changed: Callable[..., Gathered]) -> None:
    study = changed(lambda found: compared(found, difference=0.2, low=0.01, high=0.4, resolved=False))
    assert "not resolved once all planned comparisons are counted" in evidence(study).open[0].text
    assert not any(each.comparison for each in evidence(study).shows)


def test_what_leaks_is_claimed_nowhere(changed: Callable[..., Gathered]) -> None:
    study = changed(lambda found: found["derived"]["evaluations"]["ablated"].update(leaks=["text"]))
    words = evidence(study)
    assert not any("ablated/text" in each.text for each in words.shows)
    assert any("Damage measures no reading" in each.text for each in words.open)
    assert "these numbers measure no reading" in page.page([study])


def test_a_reading_that_is_not_above_its_floor_may_be_guessing(changed: Callable[..., Gathered]) -> None:
    def raised(found: dict[str, Any]) -> None:
        found["derived"]["evaluations"]["after"]["floors"] = {task: {"type_floor": 0.6} for task in TASKS}
        found["derived"]["effects"] = []

    sentence = next(each.text for each in evidence(changed(raised)).open if "guessing" in each.text)
    assert "after/latents (macro, floor 0.600: type_floor)" in sentence
    assert "baseline/text" not in sentence


def test_a_study_that_is_not_done_says_what_is_missing(changed: Callable[..., Gathered]) -> None:
    def stopped(found: dict[str, Any]) -> None:
        found["stages"]["after"] = {"run": None, "status": "not run", "metrics": {}}
        found["comparisons"] = found["comparisons"][:1]
        del found["derived"]["evaluations"]["after"]

    study = changed(stopped)
    assert "3 of 4 stages are done" in evidence(study).about
    assert any("Not done: after" in each for each in evidence(study).limits)
    assert "not run" in page.page([study])


def test_an_audit_in_the_studys_folder_is_among_the_findings(tmp_path: Path) -> None:
    folder = report_study(tmp_path, "audited", examples=2)
    honest = Audit(wire="text,mask=prefix", not_looked_at=["long prompts"], warnings=["the format was guessed"])
    leaking = Audit(wire="leaky", problems=["LEAK (sdpa): a scored position sees its own label"])
    write_audits(folder / "audit.json", "embedded:heron", None, [honest, leaking])
    found = [each for each in findings(Gathered.read(folder, "s1")) if "on embedded:heron" in each.about]
    assert [(each.weight, each.about.split()[2]) for each in found] == [
        ("problem", "leaky"),
        ("caution", "text,mask=prefix"),
        ("checked", "text,mask=prefix"),
    ]
    assert found[0].text == "LEAK (sdpa): a scored position sees its own label."
    assert "Not looked at: long prompts." in found[2].text
    (folder / "audit.json").write_text("[]")
    with pytest.raises(UserError, match=r"audit\.json: found no audit in it"):
        findings(Gathered.read(folder, "s1"))


def test_the_diagram_puts_stages_after_what_they_need(studies: Studies) -> None:
    boxes = {box.name: box for box in diagram(Gathered.read(studies["demo"], "s1")).boxes}
    assert boxes["embedded:heron"].x < boxes["ft"].x < boxes["after"].x
    assert boxes["ft"].x == boxes["baseline"].x
    assert (boxes["after"].needs, boxes["after"].result) == (("ft",), "text 0.750 on macro, 1 more")
    assert len({(box.x, box.y) for box in boxes.values()}) == len(boxes)


def test_studies_are_compared_on_the_same_examples_and_on_no_others(studies: Studies) -> None:
    found = [Gathered.read(studies[name], f"s{at}") for at, name in enumerate(("demo", "second", "third"))]
    row = next(row for row in across(found) if row.reading == "ablated/text")
    paired, refused = row.differences
    assert paired is not None
    assert (refused, row.refused) == (None, ["", "160 examples of the same id have other texts"])
    assert paired.n == 160
    assert paired.difference == pytest.approx(row.numbers[1]["value"] - row.numbers[0]["value"])
    samples = json.loads(Tags(page.page(found)).scripts[0])["samples"]
    assert len(samples["examples"]["id"]) == 320  # those of demo and second are the same
    assert "demo: baseline/text" in {each["name"] for each in samples["readings"]}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["latentwire", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_one_file_and_prints_its_path(
    studies: Studies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.html"
    assert run(monkeypatch, "report", str(studies["demo"]), str(studies["second"]), "-o", str(out)) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    for words, message in (
        (("-o", str(tmp_path / "x.txt")), "found x.txt, expected a name that ends in .html"),
        (("-o", str(tmp_path / "none/x.html")), "found no folder"),
        ((str(studies["second"]), "-o", str(tmp_path / "x.svg")), "found 2 for x.svg, expected one"),
    ):
        assert run(monkeypatch, "report", str(studies["demo"]), *words) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_chart_library_is_the_one_that_its_note_describes() -> None:
    script = page.asset("plot.min.js")
    assert hashlib.sha256(script.encode()).hexdigest() in page.asset("plot.min.js.md")
    assert len(script) < 400_000
    assert "ISC" in page.asset("plot.min.js.LICENSES.txt")
