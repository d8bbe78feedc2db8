"""What is published is whole, says what was measured, and comes back by name; what is wrong stays at home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from latentwire import cli
from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.publishing import hub_upload
from latentwire.publishing.hub_upload import HubUnreachable
from latentwire.publishing.publish import Publication
from latentwire.runs.log import Log
from latentwire.runs.store import find
from latentwire.studies import loading, plan, runner
from latentwire.wires import parse
from tests.support.hub import Hub
from tests.support.studies import model_folder, written
from tests.support.wire_studies import HERON, A

REPO = "me/thing"


def publication(runs: Path, stage: str, **options: Any) -> Publication:
    return Publication(find(runs, stage), runs, REPO, **options)


@pytest.mark.slow
def test_a_wire_is_published_privately_in_one_commit_with_all_that_belongs_to_it(
    wired: Path, hub: Hub, api: HfApi
) -> None:
    at = publication(wired, "wired/fit").publish(api=api)
    assert at.private
    assert list(hub.repositories[REPO].commits) == [at.commit]
    files = hub.repositories[REPO].commits[at.commit]
    names = {
        "README.md",
        "run.json",
        "study.yaml",
        "wire.json",
        "wire.safetensors",
        "evaluations/latent/metrics.json",
    }
    assert files.keys() >= names
    run = find(wired, "wired/fit")
    assert files["wire.safetensors"] == (run.folder / "checkpoints/best/wire.safetensors").read_bytes()
    assert str(wired).encode() not in b"".join(files.values())


def test_the_card_has_every_number_with_its_interval_its_controls_and_its_floors(
    wired: Path, tmp_path: Path
) -> None:
    text = publication(wired, "wired/fit").prepare(tmp_path, lambda line: None).card
    number = find(wired, "wired/latent").metrics()["ours"]["one_hop"]["exact_match"]
    interval = f"{number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"
    assert f"| latent/ours | `stage:fit` | one_hop | exact_match | {interval} | 8 |" in text
    own, others = text.split("### Controls and comparisons")
    assert "latent/zero" not in own
    for arm in ("latent/zero", "baseline/text", "baseline/none", "baseline/nth"):
        assert f"| {arm} |" in others
    assert "| one_hop | type_floor |" in others
    assert f"latentwire eval --model embedded:wren --task one_hop --limit 8 --wire {REPO} --controls" in text
    results = ModelCard(text).data.eval_results
    assert results is not None
    assert {result.dataset_args["arm"] for result in results} == {"ours"}
    exact = next(result for result in results if result.metric_type == "exact_match")
    assert exact.metric_value == round(number["value"], 6)
    assert exact.metric_args == {"low": number["low"], "high": number["high"], "confidence": 0.95}


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "stage"), [("wired", "wired/fit"), ("finetuned", "small/ft")])
def test_the_published_study_is_the_one_that_was_carried_out(
    runs: str, stage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue(runs)
    publication(root, stage).prepare(tmp_path, lambda line: None)
    text = (tmp_path / "study.yaml").read_text()
    # The tiny model is a folder of this machine; what is published has its name alone.
    (tmp_path / "again.yaml").write_text(text.replace("model: llama\n", f"model: {model_folder()}\n"))
    made = plan.make(loading.load(str(tmp_path / "again.yaml")))
    for name, stage_ in made.stages.items():
        assert find(root, f"{made.study.name}/{name}").record.identity == stage_.identity


ROUND_TRIP = """
import sys
from latentwire import cli
for words in {commands}:
    sys.argv = ["latentwire", *words]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
"""


def _command(hub: Hub, home: Path, commands: list[list[str]], token: str) -> subprocess.CompletedProcess[str]:
    quiet = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token}
    program = ROUND_TRIP.format(commands=commands)
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **quiet, **places},
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
    )


@pytest.mark.slow
def test_wire_and_model_come_back_by_name_and_revision_and_no_token_is_written_anywhere(
    wired: Path, finetuned: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.token = "hf_averysecrettoken"
    eval_ = ["eval", "--task", "one_hop", "--json"]
    done = _command(
        hub,
        tmp_path,
        [
            ["publish", "wired/fit", "--repo", "me/wire", "--runs", str(wired)],
            ["publish", "small/ft", "--repo", "me/model", "--runs", str(finetuned)],
            [*eval_, "wire.json", "--model", "embedded:wren", "--limit", "8", "--wire", "me/wire@main"],
            [*eval_, "model.json", "--model", "me/model@main", "--limit", "6", "--wire", "text,mask=prefix"],
        ],
        hub.token,
    )
    assert done.returncode == 0, done.stderr
    for name in ("me/wire", "me/model"):
        (commit,) = hub.repositories[name].commits
        assert f"published {name}@{commit[:12]} (private)" in done.stdout.splitlines()
    theirs = json.loads((tmp_path / "wire.json").read_text())["metrics"]["me/wire@main"]["one_hop"]
    ours = find(wired, "wired/latent").metrics()["ours"]["one_hop"]
    assert theirs["nll"]["value"] == pytest.approx(ours["nll"]["value"], abs=1e-5)
    theirs = json.loads((tmp_path / "model.json").read_text())["metrics"]["text,mask=prefix"]["one_hop"]
    ours = find(finetuned, "small/after").metrics()["text"]["one_hop"]
    assert theirs["nll"]["value"] == pytest.approx(ours["nll"]["value"], abs=1e-5)
    # No file of the runs, of the hub's own cache or of the reader's folder, nothing sent, and nothing printed.
    files = [p.read_bytes() for root in (tmp_path, wired, finetuned) for p in root.rglob("*") if p.is_file()]
    assert len(files) > 20
    said = (done.stdout + done.stderr).encode()
    assert all(hub.token.encode() not in content for content in (said, *files, *hub.bodies))


@pytest.mark.slow
def test_a_refused_token_and_a_missing_one_are_one_sentence_and_status_2(
    wired: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentwire", "publish", "wired/fit", "--repo", REPO, "--runs", str(wired)])
    for token, told in (("hf_wrong", "token: found one that the hub refuses"), (None, "token: found none")):
        api = HfApi(endpoint=hub.url, token=token or False)
        monkeypatch.setattr(hub_upload, "HfApi", lambda api=api, **options: api)
        monkeypatch.setattr(hub_upload, "get_token", lambda token=token: token)
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code == 2
        assert said.err.splitlines()[-1].startswith(f"latentwire: {told}")
        assert "hf_wrong" not in said.out + said.err
    assert hub.repositories == {}


def test_a_connection_cut_twice_ends_in_one_whole_commit(
    wired: Path, hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_upload, "WAIT", 0.0)
    hub.cuts = {"commit": 2, "PUT": 1}
    said: list[str] = []
    at = publication(wired, "wired/fit").publish(api=api, log=said.append)
    assert list(hub.repositories[REPO].commits) == [at.commit]
    assert "wire.safetensors" in hub.repositories[REPO].commits[at.commit]
    # What has arrived goes by its hash and is not sent again: one attempt was cut, the next one came through.
    assert sum(request.startswith("PUT") for request in hub.requests) == 2
    assert sum("broke off" in line for line in said) == 2


def test_a_connection_that_never_holds_leaves_nothing_half_published(
    wired: Path, hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_upload, "WAIT", 0.0)
    hub.cuts = {"commit": 99}
    with pytest.raises(HubUnreachable, match="nothing was published"):
        publication(wired, "wired/fit").publish(api=api, log=lambda line: None)
    assert hub.repositories[REPO].commits == {}


def test_what_does_not_verify_leaks_or_was_rejected_is_refused_unless_asked_for(
    copied: Path, tmp_path: Path
) -> None:
    run = find(copied, "small/ft")

    def refused(*, anyway: bool = False) -> str:
        place = tmp_path / f"prepared-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        again = Publication(find(copied, "small/ft"), copied, REPO, anyway=anyway)
        try:
            return again.prepare(place, lambda line: None).card
        except UserError as error:
            return f"refused: {error}"

    run.write(status="rejected")
    assert "it was rejected" in refused()
    run.write(status="failed")
    assert "it is failed, not done" in refused()
    run.write(status="done", configuration={**run.record.configuration, "force_leaky": True})
    assert "which leaks" in refused()
    run.write(configuration={**run.record.configuration, "force_leaky": False})
    assert not refused().startswith("refused")
    config = run.folder / "checkpoints/best/generation_config.json"
    config.write_text(config.read_text() + "\n")
    sentence = refused()
    assert sentence.startswith("refused")
    assert "checkpoints/best/generation_config.json" in sentence
    assert "expected the content that run.json has the hash of" in sentence
    card = refused(anyway=True)
    assert "**Published although" in card
    assert "checkpoints/best/generation_config.json" in card[card.index("**Published although") :][:400]


def test_weights_that_see_their_own_labels_are_refused(copied: Path, tmp_path: Path) -> None:
    run = find(copied, "small/ft")
    run.write(configuration={**run.record.configuration, "wire": "leaky"})
    with pytest.raises(UserError, match="its audit failed: LEAK"):
        Publication(run, copied, REPO).prepare(tmp_path / "p", lambda line: None)


def test_an_evaluation_has_nothing_to_publish(wired: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one that trains"):
        publication(wired, "wired/latent").prepare(tmp_path)


@pytest.mark.slow
def test_a_wire_of_a_local_model_needs_the_name_by_which_others_have_it(tmp_path: Path) -> None:
    study = {"name": "local", "model": HERON, "tasks": ["one_hop"], "limit": 2, "stages": {"A": A}}
    runner.run(loading.load(str(written(tmp_path, study))), tmp_path / "runs", Log())
    local = find(tmp_path / "runs", "local/A")
    for name in ("refused", "renamed"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"--call {HERON}=OWNER/NAME"):
        Publication(local, tmp_path / "runs", REPO).prepare(tmp_path / "refused", lambda line: None)
    call = {HERON: "me/heron"}
    Publication(local, tmp_path / "runs", REPO, call=call).prepare(tmp_path / "renamed", lambda line: None)
    theirs = LM.load(HERON)
    lm = LM(theirs.model, theirs.tokenizer, name="me/heron", prompt_format=theirs.format)
    contexts = ["Ada Brown was born in 1957. Ada Brown lives in Tarn."]
    renamed, own = parse(str(tmp_path / "renamed")).bind(lm), parse(str(local.folder)).bind(theirs)
    for here, there in zip(renamed.encode(contexts).tensors, own.encode(contexts).tensors, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(here, there)
    assert HERON.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "renamed").rglob("*") if p.is_file())


@pytest.mark.slow
def test_a_study_publishes_each_training_and_again_when_it_is_evaluated(
    hub: Hub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_upload, "HfApi", lambda **options: api)
    study = {
        "name": "told",
        "model": HERON,
        "tasks": ["one_hop"],
        "limit": 2,
        "publish": {"repo": "me/told", "call": {HERON: "me/heron"}},
        "stages": {"A": A, "latent": {"kind": "evaluate", "arms": {"ours": "stage:A"}}},
    }
    runner.run(loading.load(str(written(tmp_path, study))), tmp_path / "runs", Log())
    first, second = hub.repositories["me/told-A"].commits.values()
    assert b"Nothing has been evaluated yet." in first["README.md"]
    assert b"| latent/ours |" in second["README.md"]
