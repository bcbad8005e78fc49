"""Puts the recipes into the wheel, and only there: an editable install reads the checkout's own folder."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecipesInWheel(BuildHookInterface):
    """Adds recipes/ to a standard wheel as toolkit/_recipes."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """A static force-include would leave a stale copy behind in editable installs."""
        if version == "standard":
            build_data["force_include"]["recipes"] = "toolkit/_recipes"
