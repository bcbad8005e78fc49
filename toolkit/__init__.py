"""Pre-train a language model from one validated recipe.

    result = toolkit.run("quickstart", overrides={"training.max_steps": 10})

The functions here are the commands; docs/python-api.md shows them at work. To write a plugin, see `toolkit.api`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.commands import evaluate, generate, plan, rehearse, resolve, run
    from toolkit.lifecycle.preparation import prepare
    from toolkit.lifecycle.sweep_call import sweep
    from toolkit.planning.suggestion import suggest
    from toolkit.report.lines import LogLines

__version__ = "0.1.0"
__all__ = ["LogLines", "evaluate", "generate", "plan", "prepare", "rehearse", "resolve", "run", "suggest", "sweep"]

if not TYPE_CHECKING:  # a type checker would take any name to exist

    def __getattr__(name: str) -> object:
        """Import what is asked for, so that `import toolkit` costs nothing."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        elsewhere = {
            "LogLines": "toolkit.report.lines",
            "prepare": "toolkit.lifecycle.preparation",
            "suggest": "toolkit.planning.suggestion",
            "sweep": "toolkit.lifecycle.sweep_call",
        }
        return getattr(import_module(elsewhere.get(name, "toolkit.commands")), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
