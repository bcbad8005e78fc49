"""The manifests of several processes that write one checkpoint."""

import json
from pathlib import Path

import pytest

from toolkit.storage import checkpoint


def staged(folder: Path) -> Path:
    staging = folder / checkpoint.STAGING / "checkpoint-3"
    (staging / "optimizer").mkdir(parents=True)
    for rank in range(2):
        file = staging / "optimizer" / f"__{rank}_0.distcp"
        file.write_text(f"shard {rank}")
        checkpoint.list_own(staging, [file], run_id="r", step=3, rank=rank)
    (staging / "config.json").write_text("{}")
    return staging


def test_the_manifest_names_the_files_of_all(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint-3"
    assert checkpoint.commit(staged(tmp_path), final, run_id="r", step=3) == len("shard 0shard 1{}")
    assert checkpoint.fault(final, run_id="r") is None
    manifest = json.loads((final / checkpoint.MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["config.json", "optimizer/__0_0.distcp", "optimizer/__1_0.distcp"]
    assert sorted(file.name for file in final.iterdir()) == ["config.json", "manifest.json", "optimizer"]
    (final / "optimizer" / "__1_0.distcp").write_text("shard 2")
    assert "has changed on disk" in str(checkpoint.fault(final, run_id="r"))


def test_a_shard_that_nobody_has_listed_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint-3"
    checkpoint.commit(staged(tmp_path), final, run_id="r", step=3)
    (final / "optimizer" / "__2_0.distcp").write_text("of somebody else")
    assert "does not name optimizer/__2_0.distcp" in str(checkpoint.fault(final, run_id="r"))


@pytest.mark.parametrize("content", [None, "sh"])
def test_a_shard_that_has_not_arrived_is_an_error(content: str | None, tmp_path: Path) -> None:
    staging = staged(tmp_path)
    file = staging / "optimizer" / "__1_0.distcp"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(OSError, match=r"optimizer/__1_0.distcp, which another process has written, is not whole here"):
        checkpoint.commit(staging, tmp_path / "checkpoint-3", run_id="r", step=3)
    assert not (tmp_path / "checkpoint-3").exists()
