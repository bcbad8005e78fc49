"""The Hugging Face Hub: whether it can be reached, with which settings, and whether a token is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime

from toolkit import formatting
from toolkit.doctor.examination import Finding
from toolkit.doctor.host import CLOCK_SECONDS

SECONDS = 5.0
"""Seconds that each part of the request may take: to connect, to be answered."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
CURE = (
    "behind a proxy set HTTPS_PROXY, with a certificate of its own SSL_CERT_FILE; HF_ENDPOINT names a mirror; without "
    "a network fill HF_HOME elsewhere and set HF_HUB_OFFLINE=1. Recipes with data and models of your own need no Hub"
)


def hub(environ: Mapping[str, str] = os.environ, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Ask the Hub for anything, without the token, and compare its clock with ours."""
    from huggingface_hub import constants, get_session, get_token, is_offline_mode

    token = f"a token is {'set' if get_token() else 'not set, which public repositories do not need'}"
    flags = [name for name in OFFLINE if environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if is_offline_mode() or flags:
        yield Finding(
            "note",
            f"not asked, because {' and '.join(flags) or 'offline mode'} is set: only what the cache holds can be used",
            f"unset {' '.join(flags)}" if flags else "",
        )
        return
    proxy = next((f" through {name}" for name in PROXIES if environ.get(name)), "")
    try:
        answer = get_session().get(f"{constants.ENDPOINT}/api/models", params={"limit": 1}, timeout=SECONDS)
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library huggingface_hub has today
        reason = str(error) or type(error).__name__
        yield Finding("note", f"{constants.ENDPOINT} cannot be reached{proxy}: {reason}; {token}", CURE)
        return
    status = answer.status_code
    if status not in (200, 404):  # a mirror may have files alone; anything else is a proxy's word, or a refusal
        yield Finding("note", f"{constants.ENDPOINT} answers{proxy} with status {status}; {token}", CURE)
    else:
        yield Finding("ok", f"{constants.ENDPOINT} answers{proxy}; {token}")
    if date := answer.headers.get("date"):
        skew = now() - parsedate_to_datetime(date).timestamp()
        if abs(skew) > CLOCK_SECONDS:
            how = "ahead of" if skew > 0 else "behind"
            yield Finding(
                "note",
                f"this machine's clock is {formatting.duration(abs(skew))} {how} the Hub's",
                "set the clock: timedatectl set-ntp true",
            )
