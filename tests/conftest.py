"""What all tests share: a Hub of our own, for this process and for those that it starts.

The libraries read HF_ENDPOINT and HF_HOME when they are imported, so both are set before any test module is.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hub_contents
from tests.hub_server import HubServer
from toolkit.api import Device, RunContext
from toolkit.planning import plan
from toolkit.recipe.resolve import ResolvedRecipe

HUB = HubServer()
HOME = Path(tempfile.mkdtemp(prefix="toolkit-tests-"))

# A person's own settings must not decide what the tests see.
FOREIGN = (
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
    "HF_MODULES_CACHE",
)
for name in FOREIGN:
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": HUB.endpoint,
    "HF_HOME": str(HOME / "huggingface"),
    "TOOLKIT_CACHE": str(HOME / "cache"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A model of a few thousand parameters gains nothing from threads, and on busy cores loses tenfold by them.
    "OMP_NUM_THREADS": "1",
    # One for all tests and the next run of them: to compile anew in each would take minutes.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"toolkit-tests-compiled-{os.getuid()}"),
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


# No plan reads documents or calls callbacks, and it traces one step, whichever and whatever becomes of it.
NOT_PLANNED = {
    *("description", "dataset", "callbacks", "plugin_paths"),
    *("max_steps", "num_train_epochs", "learning_rate", "seed", "on_spike", "report_to"),
    *("logging_steps", "eval_steps", "save_steps", "save_minutes", "save_total_limit", "keep_every"),
}


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Import what every run needs, and let the garbage collector pass it over.

    The Trainer collects garbage at the end of each run; to look through all modules takes longer than a tiny run. Not
    for a few tests, which may not need the libraries.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    import toolkit.training.trainer  # noqa: F401 - imported for gc.freeze, along with torch and transformers

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _plans_are_kept() -> Iterator[None]:
    """Plan the memory of a run once for each kind of step: a plan takes as long as a tiny run.

    What tests of the plan itself call is not this.
    """
    kept: dict[str, int] = {}

    def peak_bytes(resolved: ResolvedRecipe, *, processes: int) -> int:
        data = {section: value for section, value in resolved.data().items() if section not in NOT_PLANNED}
        data["training"] = {name: value for name, value in data["training"].items() if name not in NOT_PLANNED}
        plugins = {part.path: type(part.plugin) for part in resolved.recipe.components if part.path[0] in data}
        key = repr((data, plugins, resolved.device, processes))
        if key not in kept:
            kept[key] = plan.peak_bytes(resolved, processes=processes)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.lifecycle.launch.peak_bytes", peak_bytes)
        yield


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """The Hub, with the repositories of `hub_contents`; a test publishes what it needs beyond them."""
    hub_contents.fill(HUB)
    HUB.start()
    yield HUB
    HUB.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which nothing lies that another test has prepared."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOOLKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def run_context(tmp_path: Path) -> RunContext:
    """A run on a small CPU, with a folder and a cache of its own; `dataclasses.replace` gives others."""
    return RunContext(
        name="test",
        folder=tmp_path / "run",
        cache=tmp_path / "cache",
        seed=7,
        device=Device(kind="cpu", name="test CPU", memory_bytes=4 << 30),
        task="causal-lm",
        block_size=64,
    )
