"""A thousand malformed inputs, made from a seed: each gets one sentence, and none leaves anything half-written."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire import cli
from latentwire.runs.log import Log
from latentwire.runs.store import scan
from latentwire.studies import loading, runner
from tests.support.studies import small_study, written
from tests.support.wire_studies import HERON, SOFT, encoder, fit

SEED, SECONDS = 17, 20
COUNTS = {"studies": 480, "task files": 240, "wire folders": 80, "command lines": 200}

ODD: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**12,
        10**400,
        -(2**70),
        0.5,
        -0.0,
        1e308,
        float("inf"),
        float("nan"),
    ),
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "~",
        "a/b",
        "../../x",
        "/dev/null",
        "/proc/self/mem",
        "x" * 5000,
        "\0",
        "a\0b",
        "\n",
        "\ud7ff",
    ),
    *(
        "stage:",
        "stage:fit",
        "stage:fit:",
        "stage:nothing",
        "stage::zero",
        "@",
        "text@",
        "text@x@y",
        "text:deranged:zero",
    ),
    *(
        "text,mask=",
        "text,,",
        ",",
        ":",
        "nth",
        "nth,ratio=0",
        "nth,ratio=-1",
        "budget,tokens=1000000000000",
        "relay,ratio=2",
    ),
    *(
        "$",
        "$x",
        "${a}",
        "embedded:",
        "embedded:nobody",
        "a@b",
        "1e5",
        "2024-01-01",
        "null",
        "yes",
        "=",
        "é" * 50,
        "𝒳",
        "‮",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, "a", {}],
        {"a": {"b": 1}},
        {"kind": "nothing"},
        {"kind": None},
        {"kind": []},
        {"": ""},
    ),
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*at, key)
        yield from paths(each, (*at, key))


def changed(draw: random.Random, whole: Any) -> Any:
    """A copy with one to three places replaced, removed, renamed or exchanged."""
    copy = json.loads(json.dumps(whole))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(paths(copy))
        if not places:
            break
        *way, last = draw.choice(places)
        place = copy
        for part in way:
            place = place[part]
        what = draw.random()
        if what < 0.7:
            place[last] = draw.choice(ODD)
        elif what < 0.8:
            del place[last]
        elif isinstance(place, dict):
            name = f"{last}{draw.choice('sx_')}" if what < 0.9 else draw.choice(list(place))
            place[name] = place.pop(last)
        else:
            place.append(place[last])
    return copy


def garbled(draw: random.Random, text: str) -> bytes:
    """The bytes of a text with something wrong in them."""
    at = draw.randrange(len(text) + 1)
    junk = "".join(
        draw.choice("{}[]:,&*!|>'\"%@`#-?\t\n\\ \u0000\ufeff\u2028x0") for _ in range(draw.randrange(1, 6))
    )
    match draw.randrange(9):
        case 0:
            return text[:at].encode()
        case 1:
            return (text[:at] + junk + text[at:]).encode()
        case 2:
            return text[:at].encode() + bytes(draw.randrange(256) for _ in range(4)) + text[at:].encode()
        case 3:
            return text.encode("utf-16")
        case 4:
            tag = draw.choice(
                ("!!python/object/apply:os.system [x]", "!!binary x", "!!set {a}", "!x y", "<<: 5", "? [a]")
            )
            return f"{text}\nodd: {tag}\n".encode()
        case 5:
            depth = draw.choice((100, 3000))
            return (draw.choice("[{") * depth).encode()
        case 6:
            return (
                "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9 if n else 'x'}]" for n in range(12)) + "\n"
            ).encode()
        case 7:
            return "".join(draw.sample(text.splitlines(keepends=True), len(text.splitlines()))).encode()
        case _:
            return b"\xef\xbb\xbf" + text[at:].encode() + text[:at].encode()


def a_study(draw: random.Random, folder: Path, wire: Path) -> list[str]:
    trained = fit(HERON, encoder(gives="vectors"), {HERON: SOFT})
    stages = {
        "fit": trained,
        "read": {"kind": "evaluate", "arms": {"a": "stage:fit", "b": "text", "c": str(wire)}},
    }
    wired = {"name": "wired", "model": HERON, "tasks": ["one_hop"], "limit": 2, "stages": stages}
    whole = draw.choice((small_study(limit=2), wired))
    whole = {**whole, "models": {"a": whole["model"]}, "files": {"f": "x"}}
    file = folder / "study.yaml"
    if draw.random() < 0.75:
        file.write_text(yaml.safe_dump(changed(draw, whole), sort_keys=False, allow_unicode=draw.random() < 0.5))
    else:
        file.write_bytes(garbled(draw, yaml.safe_dump(whole, sort_keys=False)))
    words = [
        "run",
        "study.yaml",
        *(["--stage", draw.choice(("read", "baseline", "", "x"))] if draw.random() < 0.3 else []),
    ]
    if draw.random() < 0.2:
        place = ".".join(map(str, draw.choice(list(paths(whole)))))
        words += ["--set", f"{place}{draw.choice(('=', '', '.x='))}{draw.choice(ODD)}"]
    return words


def a_task_file(draw: random.Random, folder: Path, wire: Path) -> list[str]:
    rows = [
        {"context": f"Ada lives in {place}.", "question": "Where does Ada live?", "answers": [place]}
        for place in ("the old town", "a red house")
    ]
    squad = {
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": rows[0]["context"],
                        "qas": [
                            {
                                "id": "1",
                                "question": "Where?",
                                "answers": [{"text": "the old town", "answer_start": 13}],
                            }
                        ],
                    }
                ],
            }
        ]
    }
    if draw.random() < 0.5:
        kind, file = "jsonl", folder / "data.jsonl"
        made = [changed(draw, row) if draw.random() < 0.7 else row for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in made)
    else:
        kind, file = "squad", folder / "data.json"
        text = json.dumps(changed(draw, squad))
    file.write_bytes(text.encode() if draw.random() < 0.6 else garbled(draw, text))
    return ["eval", "--model", HERON, "--task", kind, "--data", file.name, "--wire", "text", "--limit", "2"]


def a_wire_folder(draw: random.Random, folder: Path, wire: Path) -> list[str]:
    shutil.copytree(wire, folder / "wire")
    files = sorted(path for path in (folder / "wire").iterdir() if path.is_file())
    file = draw.choice(files)
    if file.suffix == ".json":
        text = file.read_text()
        if draw.random() < 0.7:
            file.write_text(json.dumps(changed(draw, json.loads(text))))
        else:
            file.write_bytes(garbled(draw, text))
    elif draw.random() < 0.2:
        file.unlink()
    else:
        content = file.read_bytes()
        at = draw.randrange(len(content))
        file.write_bytes(
            content[:at] + (b"" if draw.random() < 0.5 else bytes([draw.randrange(256)])) + content[at + 1 :]
        )
    return ["eval", "--model", HERON, "--task", "one_hop", "--wire", "wire", "--limit", "1"]


def a_command_line(draw: random.Random, folder: Path, wire: Path) -> list[str]:
    (folder / "study.yaml").write_text(yaml.safe_dump(small_study(limit=2), sort_keys=False))
    commands = [
        ["eval", "--model", HERON, "--task", "one_hop", "--limit", "1"],
        ["audit", "--model", "nobody"],
        ["run", "study.yaml", "--stage", "x"],
        ["runs", "list"],
        ["runs", "show", "x/y"],
        ["report", "runs"],
        ["init", "quickstrat"],
        ["bench", "nothing"],
        ["doctr"],
    ]
    options = [
        "--wire",
        "--task",
        "--data",
        "--model",
        "--limit",
        "--set",
        "--stage",
        "--runs",
        "--preset",
        "--json",
        "--out",
    ]
    words = list(draw.choice(commands))
    for _ in range(draw.randrange(1, 4)):
        # A command line holds no NUL and no half of a character.
        odd = str(draw.choice(ODD)).replace("\0", "0")
        if odd.isdigit() and int(odd) > 100:
            odd = "100"  # a limit of millions is all examples: long work, and no mistake
        at = draw.randrange(1, len(words) + 1)
        match draw.randrange(4):
            case 0:
                words[at:at] = [draw.choice(options), odd]
            case 1:
                words[at:at] = [odd]
            case 2:
                words[at - 1 : at] = [] if len(words) > 1 else [odd]
            case _:
                words[-1] = odd
    return words


MAKERS: dict[str, Callable[[random.Random, Path, Path], list[str]]] = {
    "studies": a_study,
    "task files": a_task_file,
    "wire folders": a_wire_folder,
    "command lines": a_command_line,
}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained wire of a tiny model."""
    folder = tmp_path_factory.mktemp("wire")
    stages = {"fit": fit(HERON, encoder(gives="vectors"), {HERON: SOFT})}
    study = {"name": "made", "model": HERON, "tasks": ["one_hop"], "limit": 2, "stages": stages}
    carried = runner.run(loading.load(str(written(folder, study))), folder / "runs", Log())
    return carried.runs["fit"].folder / "checkpoints" / "best"


def problem(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run one command line; what is wrong with how it ended, or the empty string."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["latentwire", *words])
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time: the machine may be busy
    try:
        cli.main()
        return "it returned without a status"
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    except Hang:
        return f"it ran for more than {SECONDS} s"
    except BaseException as error:
        return f"it raised {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    out, err = capsys.readouterr()
    if "Traceback" in out + err or "failed with" in err:
        return err[-300:]
    if status == 2 and (err.count("\n") != 1 or not err.startswith("latentwire: ")):
        return f"not one sentence: {err[-300:]!r}"
    if status == 2 and (left := {path.relative_to(folder) for path in folder.rglob("*")} - before):
        return f"it left {sorted(map(str, left))[:3]} behind after {err.strip()[:200]}"
    unfinished = [run.folder for run in scan(folder / "runs")[0] if run.status not in ("done", "rejected")]
    return f"it left {unfinished[0]} unfinished" if unfinished else ""


class Hang(BaseException):
    """Raised by the timer; nothing in the package catches it."""


@pytest.mark.sweep
@pytest.mark.parametrize("family", MAKERS)
def test_malformed_inputs_end_in_one_sentence(
    family: str, wire: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    wrong = {}
    try:
        for number in range(COUNTS[family]):
            folder = tmp_path / str(number)
            folder.mkdir()
            words = MAKERS[family](random.Random(f"{SEED} {family} {number}"), folder, wire)
            if found := problem(words, folder, monkeypatch, capsys):
                wrong[number, " ".join(words)[:200]] = found
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(folder)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert wrong == {}


def test_the_inputs_are_a_thousand_and_always_the_same(tmp_path: Path) -> None:
    assert sum(COUNTS.values()) == 1000
    made = []
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        draws = [random.Random(f"{SEED} studies {number}") for number in range(20)]
        texts = []
        for draw in draws:
            words = a_study(draw, tmp_path / attempt, tmp_path)
            texts.append((words, (tmp_path / attempt / "study.yaml").read_bytes()))
        made.append(texts)
    assert made[0] == made[1]
