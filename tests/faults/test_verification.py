"""`run verify` finds what has changed on disk, and `recipe verify-resume` what does not resume."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.command_line import toolkit
from tests.tiny import train, write_recipe
from toolkit.events import DataPrepared
from toolkit.lifecycle.verify_resume import verify_resume
from toolkit.system.cache import cache_folder
from toolkit.testing import check_resume


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_verify_finds_each_file_that_has_changed(tmp_path: Path) -> None:
    result, _ = train(write_recipe(tmp_path, training={"save_steps": 4}))
    whole = toolkit("run", "verify", "tiny", "--json").json
    assert whole == [
        {"name": "checkpoints/checkpoint-4", "intact": True, "reason": None},
        {"name": "checkpoints/checkpoint-8", "intact": True, "reason": None},
        {"name": "model", "intact": True, "reason": None},
    ]
    tried = 0
    for part in ("checkpoints/checkpoint-4", "model"):
        for file in sorted((result.folder / part).iterdir()):
            kept = file.read_bytes()
            middle = len(kept) // 2
            file.write_bytes(kept[:middle] + bytes([kept[middle] ^ 1]) + kept[middle + 1 :])
            found = {entry["name"]: entry for entry in toolkit("run", "verify", "tiny", "--json", status=1).json}
            assert [name for name, entry in found.items() if not entry["intact"]] == [part], file
            # A digest that has changed in the manifest accuses the file that it is of.
            assert file.name in found[part]["reason"] or file.name == "manifest.json"
            file.write_bytes(kept)
            tried += 1
    assert tried > 12
    shutil.rmtree(result.folder / "model")
    assert "DAMAGED" in toolkit("run", "verify", "tiny", status=1).out


def test_verify_reads_the_data_again_where_size_and_time_tell_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"max_steps": 1})
    result, _ = train(recipe)
    faults = {part["name"]: part["reason"] for part in toolkit("run", "verify", "tiny", "--data", "--json").json}
    assert faults["documents"] is faults["tokens"] is None
    file, key = tmp_path / "texts.txt", result.folder / "run.json"
    before, stat = file.read_bytes(), file.stat()
    file.write_bytes(before.replace(b"a", b"o", 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    _, events = train(recipe, fresh=True)
    assert [event.from_cache for event in events if isinstance(event, DataPrepared)] == [True], "it was noticed"
    answer = toolkit("run", "verify", "tiny", "--data", status=1)
    assert "documents" in answer.out
    assert "touch the file" in " ".join(answer.out.split())
    os.utime(file)
    _, events = train(recipe, fresh=True)
    assert [event.from_cache for event in events if isinstance(event, DataPrepared)] == [False]
    tokens = cache_folder() / "tokens" / json.loads(key.read_text())["data_key"] / "train.tokens"
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\0\0")
    answer = toolkit("run", "verify", "tiny", "--data", status=1)
    assert "train.tokens" in answer.out


UNSAVED = '''
"""Made for a test."""

from toolkit.api import Optimizer


class Forgetful(Optimizer):
    """Steps that grow with a number that no checkpoint holds."""

    def build(self, model, *, learning_rate, weight_decay, run):
        import torch

        class Sgd(torch.optim.SGD):
            taken = 0

            def step(self, closure=None):
                self.taken += 1
                for group in self.param_groups:
                    group["lr"] = learning_rate * self.taken
                return super().step(closure)

        return Sgd(model.parameters(), lr=learning_rate)
'''


@pytest.mark.slow
def test_a_third_partys_state_that_is_not_saved_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "forgetful.py").write_text(UNSAVED, encoding="utf-8")
    recipe = write_recipe(tmp_path, optimizer="forgetful")
    verdict = verify_resume(str(recipe), plugin_folders=[tmp_path / "mine"])
    assert not verdict.exact
    assert verdict.difference
    assert "loss of step" in verdict.difference
    check = check_resume("optimizer", "forgetful", plugin_folders=[tmp_path / "mine"])
    assert not check.passed
    assert "after a kill, a run with it is another: " in check.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "wikitext-gpt2-lora", "wikitext-bert"])
def test_our_recipes_resume_exactly(name: str) -> None:
    answer = toolkit("recipe", "verify-resume", name, "--json").json
    assert answer["exact"], answer
    assert answer["losses"] == 8
    assert answer["tensors"] > 20


@pytest.mark.slow
def test_plugin_check_resumes_a_run(tmp_path: Path) -> None:
    findings = toolkit("plugin", "check", "memory", "lora", "--set", "lora_dropout=0.1", "--json").json
    (resume,) = [finding for finding in findings if finding["name"] == "resume"]
    assert resume["passed"]
    assert resume["tried"]
    assert resume["detail"].startswith("killed twice, it ends the same: ")
