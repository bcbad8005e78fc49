"""What a run does before its first step. Looks at what happens, which a busy machine does not change as a clock."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import callback, command, write_recipe

WALKED = """
import gc, json

walked = []
gc.callbacks.append(
    lambda phase, info: walked.append(len(gc.get_objects())) if (phase, info["generation"]) == ("start", 2) else None
)
"""
"""At the top of a plugin's module, which a run loads before any library: the objects of each full collection."""


def test_no_garbage_collection_walks_the_objects_of_the_imported_libraries(tmp_path: Path) -> None:
    body = (
        'def on_train_begin(self, args, state, control, **rest):\n    print("walked:", json.dumps(walked), flush=True)'
    )
    callback(tmp_path, "watch", body)
    module = tmp_path / "plugins" / "callback" / "watch.py"
    module.write_text(module.read_text().replace("from toolkit.api", WALKED + "\nfrom toolkit.api", 1))
    recipe = write_recipe(tmp_path, callbacks=["watch"], training={"max_steps": 1})
    process = command("recipe", "run", str(recipe), "--plugins", "plugins", "--quiet", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (told,) = [line.partition(":")[2] for line in out.splitlines() if line.startswith("walked:")]
    # Before the libraries are there, and of what a run makes itself. They have 440,000, and were walked eight times.
    assert max(json.loads(told), default=0) < 200_000
