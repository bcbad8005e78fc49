"""The check that importing a plugin is cheap: listing and validating must not wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from toolkit.registry import Offer
from toolkit.testing.bench import Check

HEAVY = (
    *("torch", "transformers", "datasets", "numpy", "peft", "accelerate", "tokenizers"),
    *("huggingface_hub", "pandas", "pyarrow", "safetensors", "scipy"),
)
"""Libraries that a plugin's methods may import, but its module may not."""

PROBE = """
import importlib, json, sys
from pathlib import Path
path, heavy, kind, module, file = json.loads(sys.argv[1])
sys.path[:] = path
from toolkit.registry import Offer
before = set(sys.modules)
if file:
    Offer(kind, "probed", file, Path(file)).load()
else:
    importlib.import_module(module)
print(json.dumps([name for name in heavy if name in sys.modules and name not in before]))
"""


def check_imports(offer: Offer) -> Check:
    """Import the plugin's module in a fresh interpreter, and see which heavy libraries it pulls in."""
    file = str(offer.target.resolve()) if isinstance(offer.target, Path) else None
    module = None if isinstance(offer.target, Path) else offer.target.module
    question = json.dumps([sys.path, HEAVY, offer.kind, module, file])
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, question], capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("light import", False, f"it cannot be imported in a fresh interpreter: {last}")
    if heavy := json.loads(done.stdout.splitlines()[-1]):
        return Check(
            "light import",
            False,
            f"importing it imports {', '.join(heavy)}; import them inside the methods, and under TYPE_CHECKING",
        )
    return Check("light import", True, "imports none of " + ", ".join(HEAVY))
