"""A tracker of one's own, which keeps what it was told in a file."""

import json
from pathlib import Path

from accelerate.tracking import GeneralTracker


class RecordingTracker(GeneralTracker):
    """Appends one line of JSON for each call."""

    name = "recording"
    requires_logging_directory = True
    main_process_only = False

    def __init__(self, project, id, folder):
        super().__init__()
        self.project, self.id, self.path = project, id, Path(folder) / "told.jsonl"

    @property
    def tracker(self):
        return self

    def start(self):
        self.path.parent.mkdir(exist_ok=True)
        self._tell("start", project=self.project, id=self.id)

    def store_init_configuration(self, values):
        self._tell("configuration", values=values)

    def log(self, values, step=None, **kwargs):
        self._tell("log", values=values, step=step)

    def finish(self):
        self._tell("finish")

    def _tell(self, what, **details):
        with self.path.open("a") as file:
            file.write(json.dumps({"what": what, **details}) + "\n")


class FailingTracker(RecordingTracker):
    """Fails at the second thing it is told, as a tracker does whose network is gone."""

    told = 0

    def log(self, values, step=None, **kwargs):
        type(self).told += 1
        if type(self).told > 1:
            raise ConnectionError("the network is gone")
        super().log(values, step)
