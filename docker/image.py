"""An image, and the engine that runs it: docker or podman."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

STRICT = ("--read-only", "--user", "4242:4242", "--tmpfs", "/tmp", "--cap-drop", "ALL")
"""A user that no passwd file knows, and a root that nobody can write."""
TRIALS = Path(__file__).parent / "trials"


class Image:
    """Runs containers of one image, without a network, and keeps their folders in `folder`."""

    def __init__(self, engine: str, name: str, folder: Path) -> None:
        self.engine, self.name, self.folder = engine, name, folder

    def call(self, *words: str, status: int = 0, text: str = "") -> str:
        """What the engine prints.

        Raises:
            AssertionError: its exit status is another.
        """
        done = subprocess.run([self.engine, *words], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{shlex.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *command: str, options: tuple[str, ...] = (), status: int = 0, text: str = "") -> str:
        """What a container prints that is removed when it ends."""
        words = ("run", "--rm", "--interactive", "--network", "none", *options, self.name, *command)
        return self.call(*words, status=status, text=text)

    def python(self, code: str, *, options: tuple[str, ...] = ()) -> str:
        """What a program prints that the image's Python runs."""
        return self.run("-", options=("--entrypoint", "python", *options), text=code).strip()

    def trial(self, name: str, *, options: tuple[str, ...] = ()) -> str:
        """What a program of the folder trials prints."""
        mounted = ("--volume", f"{TRIALS}:/trials:ro", "--entrypoint", "python")
        return self.run(f"/trials/{name}.py", options=(*mounted, *options)).strip()

    def config(self) -> Any:
        return json.loads(self.call("image", "inspect", "--format", "{{json .Config}}", self.name))

    def is_for_gpus(self) -> bool:
        return self.python("import torch; print(torch.version.cuda is not None)") == "True"

    def writable(self, name: str) -> Path:
        """A new folder of the host that any user can write."""
        made = self.folder / name
        made.mkdir()
        made.chmod(0o1777)
        return made
