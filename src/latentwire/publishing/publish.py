"""What `latentwire publish` and a study's `publish:` do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from latentwire.errors import UserError
from latentwire.publishing import hub_upload
from latentwire.publishing.card_numbers import Evaluations
from latentwire.publishing.hub_upload import HubUnreachable, PublishedAt
from latentwire.publishing.model_card import card
from latentwire.publishing.publish_settings import PublishSettings, check_repo
from latentwire.publishing.publishable import KINDS, objections, trained_folder
from latentwire.publishing.published_files import gather
from latentwire.runs.store import Run

CARD = "README.md"


@dataclass(frozen=True)
class Prepared:
    """What would be published: the card, and every file with its size in bytes."""

    card: str
    files: dict[str, int]


@dataclass(frozen=True)
class Publication:
    """A run and where it is published.

    Attributes:
        run: The run.
        root: The folder of all runs, where its evaluations are.
        repo: OWNER/NAME.
        checkpoint: Which checkpoint.
        anyway: Publish although something speaks against it; the card says what.
        call: For a local model, the hub id by which others have it.
    """

    run: Run
    root: Path
    repo: str
    checkpoint: str = "best"
    anyway: bool = False
    call: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, to: Path, log: Callable[[str], None] = print) -> Prepared:
        """Check the run, and write all files into an empty folder.

        Raises:
            UserError: Something speaks against it (and not `anyway`), or nothing was trained.
        """
        check_repo(self.repo)
        trained = trained_folder(self.run, self.checkpoint)
        against = objections(self.run, trained, log)
        if against and not self.anyway:
            raise UserError(
                f"run: {self.run.folder} is not published, since {'; '.join(against)}; expected a run that is "
                "whole, accepted and leaks nothing, or --anyway, after which the card says what is wrong."
            )
        for each in against:
            log(f"published all the same: {each}")
        evaluations = Evaluations.of(self.run, self.root)
        gather(self.run, trained, evaluations, self.root, self.call, to)
        text = str(card(self.run, to, self.repo, evaluations, self.call))
        if against:
            head, mark, rest = text.partition("\n# ")
            title, _, body = rest.partition("\n")
            text = f"{head}{mark}{title}\n\n**Published although {'; '.join(against)}.**\n{body}"
        (to / CARD).write_text(text, encoding="utf-8")
        files = {path.relative_to(to).as_posix(): path.stat().st_size for path in to.rglob("*") if path.is_file()}
        return Prepared(text, dict(sorted(files.items())))

    def publish(
        self, *, public: bool = False, log: Callable[[str], None] = print, api: HfApi | None = None
    ) -> PublishedAt:
        """Prepare and upload; raises as both."""
        with tempfile.TemporaryDirectory(prefix="latentwire-publish-") as folder:
            self.prepare(Path(folder), log)
            message = f"{self.run.record.run} with LatentWire"
            return hub_upload.upload(Path(folder), self.repo, message, public=public, log=log, api=api)


def after_stage(
    settings: PublishSettings, runs: Mapping[str, Run], name: str, root: Path, log: Callable[[str], None]
) -> None:
    """Publish what a stage has trained, or again what it has evaluated.

    A hub that cannot be reached, or refuses, does not end the study: the log says so.

    Args:
        settings: The study's `publish`.
        runs: The run that counts for each stage.
        name: The stage that has just ended.
        root: The folder of all runs.
        log: Called with each line for the log.
    """
    done = runs[name]
    touched = [name] if done.record.kind in KINDS else list(done.record.parents)
    for stage in touched:
        run = runs.get(stage)
        wanted = settings.stages is None or stage in settings.stages
        if run is None or run.record.kind not in KINDS or run.status != "done" or not wanted:
            continue
        publication = Publication(run, root, settings.repo_of(stage), settings.checkpoint, call=settings.call)
        try:
            log(f"published {stage}: {publication.publish(public=settings.public, log=log)}")
        except (UserError, HubUnreachable) as error:
            log(f"warning: {stage} is not published: {error}")
