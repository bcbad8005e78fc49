"""Runs `toolkit` as on a file system that cannot do everything: gcsfuse and SMB, say.

The interpreter's audit hooks hear of each operation before it is made, whoever makes it, and refuse it below the
present folder. fsync has no such event.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from toolkit.cli.main import main

HERE = str(Path.cwd())
force = os.fsync


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event == "fcntl.flock":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    if event in ("os.chmod", "os.utime", "os.link", "os.rename"):
        path = os.path.realpath(os.fsdecode(arguments[0]))  # type: ignore[arg-type]  # an audit hook gets objects
        if path.startswith(HERE + os.sep) and (event != "os.rename" or Path(path).is_dir()):
            number = errno.EMFILE if event == "os.rename" else errno.EPERM
            raise OSError(number, os.strerror(number), path)
    if event == "mmap.__new__" and os.path.realpath(f"/proc/self/fd/{arguments[0]}").startswith(HERE + os.sep):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def fsync(descriptor: int) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    force(descriptor)


os.fsync = fsync  # type: ignore[assignment]  # it is to refuse
sys.addaudithook(refuse)
main()
