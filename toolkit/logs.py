"""What the user sees during a run: the plugins' log messages, but no progress bars or advice from the libraries."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from toolkit.events import Listener, Message


@contextlib.contextmanager
def plugin_messages_told(listener: Listener) -> Iterator[None]:
    """Pass the plugins' log messages on to the listener."""

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            listener(Message(record.getMessage()))

    logger, handler = logging.getLogger("toolkit"), Tell(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def libraries_quiet() -> Iterator[None]:
    """Silence the progress bars and advice of transformers: the listener shows progress."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
