"""The public plugin API, version 1: everything that a plugin may import from toolkit.

A plugin is a frozen Pydantic model. Its fields are its options, each with a description; its methods do the
work and import heavy libraries in their bodies, so that listing and validation stay fast. What a plugin may
know about the run is passed as a `RunContext`; it sees no other plugins, and the recipe only as an exporter.

A method reports a user's error by raising `OptionError` (an option has to change; the toolkit adds the file,
line and column) or `UnavailableError` (the machine or the network lacks something).

What stays as it is for as long as `API_VERSION` is 1: the names here, the methods of each kind and their parameters.
What may be added: a method with a default, a field with a default, and an optional parameter, which is passed by name
and only to methods that take it.
"""

from collections.abc import Mapping

from toolkit.api.context import Peek, Progress, Results, RunContext, Task
from toolkit.api.filters import CorpusFilter, Dropped, Filter
from toolkit.api.languages import language_identifier
from toolkit.api.launcher import Job, Launcher
from toolkit.api.learning_rates import learning_rate_scales, parameter_groups, scale_learning_rate
from toolkit.api.planner import (
    PLANNER_HOOKS,
    VOCABULARY_MULTIPLE,
    Candidates,
    ExportBytes,
    ModelSkeleton,
    TokenizerSkeleton,
    chunk_starts,
)
from toolkit.api.plugins import (
    API_VERSION,
    Block,
    Callback,
    Dataset,
    Exporter,
    Model,
    Objective,
    Optimizer,
    Plugin,
    Tokenizer,
    highest_id,
)
from toolkit.api.settings import Settings, TokenCount
from toolkit.api.strategy import Change, Claim, Fidelity, Loss, Requirement, Strategy, SummedLoss
from toolkit.api.streams import Stream, StreamingDataset, UnreadableFileError, beginning
from toolkit.api.word_ngrams import KnownNgrams, WordNgrams, words
from toolkit.errors import OptionError, ToolkitError, UnavailableError
from toolkit.system.cache import entry_made
from toolkit.system.device import Device
from toolkit.system.threads import meanwhile

__all__ = [
    "API_VERSION",
    "KINDS",
    "PLANNER_HOOKS",
    "VOCABULARY_MULTIPLE",
    "Block",
    "Callback",
    "Candidates",
    "Change",
    "Claim",
    "CorpusFilter",
    "Dataset",
    "Device",
    "Dropped",
    "ExportBytes",
    "Exporter",
    "Fidelity",
    "Filter",
    "Job",
    "KnownNgrams",
    "Launcher",
    "Loss",
    "Model",
    "ModelSkeleton",
    "Objective",
    "Optimizer",
    "OptionError",
    "Peek",
    "Plugin",
    "Progress",
    "Requirement",
    "Results",
    "RunContext",
    "Settings",
    "Strategy",
    "Stream",
    "StreamingDataset",
    "SummedLoss",
    "Task",
    "TokenCount",
    "Tokenizer",
    "TokenizerSkeleton",
    "ToolkitError",
    "UnavailableError",
    "UnreadableFileError",
    "WordNgrams",
    "beginning",
    "chunk_starts",
    "entry_made",
    "highest_id",
    "language_identifier",
    "learning_rate_scales",
    "meanwhile",
    "parameter_groups",
    "scale_learning_rate",
    "words",
]

KINDS: Mapping[str, type[Plugin]] = {
    contract.kind: contract
    for contract in (Dataset, Filter, Tokenizer, Model, Objective, Optimizer, Strategy, Callback, Exporter, Launcher)
}
"""The kinds of plugin. The entry-point group of kind K is `toolkit.K`."""
