"""The arguments of transformers' learning-rate schedules, checked before anything heavy is imported.

The Trainer passes `training.lr_scheduler_kwargs` on as they are when it creates the schedule, after data and model; two
schedules ignore them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from toolkit.api import Settings
from toolkit.errors import OptionError, nearest

SCHEDULE_ARGUMENTS: Mapping[str, Collection[str]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "polynomial": ("lr_end", "power"),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type"),
        *("min_lr_ratio", "num_cycles"),
    ),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
}
"""By schedule, those that transformers takes besides the steps of the run and of its warm-up."""


def check_schedule(settings: Settings) -> None:
    """Check the arguments of the schedule.

    Raises:
        OptionError: one is missing, or is none of this schedule's; `option` is its name, if it was given.
    """
    schedule, given = settings.lr_scheduler_type, settings.lr_scheduler_kwargs
    known = SCHEDULE_ARGUMENTS[schedule]
    for name in given:
        if name not in known:
            cure = nearest(name, known) if known else "remove it"
            raise OptionError(f"{schedule} takes no argument {name!r}; {cure}", option=name)
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in given:
        raise OptionError(
            "warmup_stable_decay needs to know how many of the last steps decay the learning rate: "
            "lr_scheduler_kwargs: {num_decay_steps: 200}; without a decay, take constant_with_warmup"
        )
    if schedule == "cosine_with_min_lr" and len({"min_lr", "min_lr_rate"} & given.keys()) != 1:
        raise OptionError(
            "cosine_with_min_lr needs the rate at its end: lr_scheduler_kwargs: {min_lr_rate: 0.1}, a share of "
            "learning_rate, or min_lr, the rate itself; one of the two"
        )
