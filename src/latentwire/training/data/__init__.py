"""Training data: one file for each source, one line here for each kind.

`DocumentData` is what a finetuning takes, `PassageData` what a wire's training takes. `kind: world` is written
differently in the two: a finetuning names tasks, a wire names tiers that are all asked about one passage.
"""

from typing import Annotated

from latentwire.kinds import KindOf
from latentwire.training.data.base import ContextExamples as ContextExamples
from latentwire.training.data.base import Source as Source
from latentwire.training.data.base import TrainingData as TrainingData
from latentwire.training.data.mixed import MixedData
from latentwire.training.data.row_data import FileData, HubData
from latentwire.training.data.task import TaskData
from latentwire.training.data.text import TextData
from latentwire.training.data.world import WorldData, WorldPassages

DocumentData = Annotated[WorldData | TaskData | FileData | HubData | MixedData, KindOf(TrainingData)]
PassageData = Annotated[WorldPassages | TaskData | FileData | HubData | TextData, KindOf(TrainingData)]
