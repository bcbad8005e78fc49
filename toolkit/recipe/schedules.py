"""Schedules of a run: their arguments and their lengths, checked before anything heavy is imported.

The Trainer passes `training.lr_scheduler_kwargs` on as they are when it creates the schedule, after data and model; two
schedules ignore them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from toolkit.api import Settings
from toolkit.errors import OptionError, nearest
from toolkit.formatting import counted
from toolkit.recipe.length import steps_of

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
    decay = given.get("num_decay_steps", 1)
    if not isinstance(decay, int) or decay < 1:
        raise OptionError(f"write a number of steps, 1 or more; this is {decay!r}", option="num_decay_steps")
    if schedule == "cosine_with_min_lr" and len({"min_lr", "min_lr_rate"} & given.keys()) != 1:
        raise OptionError(
            "cosine_with_min_lr needs the rate at its end: lr_scheduler_kwargs: {min_lr_rate: 0.1}, a share of "
            "learning_rate, or min_lr, the rate itself; one of the two"
        )


def check_length(settings: Settings, steps: int) -> None:
    """Check that a run of so many steps is long enough for its schedules.

    Raises:
        OptionError: it is not; `option` is a setting, or a part of `lr_scheduler_kwargs`.
    """
    given = settings.lr_scheduler_kwargs
    warmup = steps_of(settings.warmup_steps, steps)
    decay = given.get("num_decay_steps", 0) if "num_stable_steps" not in given else 0
    if isinstance(decay, int) and warmup + decay > steps:
        after = f" after a warm-up of {counted(warmup, 'step')}" if warmup else ""
        raise OptionError(
            f"a decay over {counted(decay, 'step')}{after} is too long for a run of {counted(steps, 'step')}, and the "
            f"learning rate would never reach its peak; make it {steps - warmup:,} or less, or the run longer",
            option="num_decay_steps",
        )
    cut = settings.warmup_block_steps
    if settings.warmup_block_size is not None and cut >= max(steps, 1):
        raise OptionError(
            f"all of the {counted(steps, 'step')} would be on pieces of {settings.warmup_block_size} tokens, and the "
            f"model would not learn the later positions; make it fewer than {steps:,}, or a share such as 0.3",
            option="warmup_block_steps",
        )
