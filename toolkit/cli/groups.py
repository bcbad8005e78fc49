"""Command groups that answer a misspelt command with the one that was probably meant."""

from __future__ import annotations

import click

from toolkit.errors import nearest


class NamingGroup(click.Group):
    """A group that suggests the nearest command; click does so from 8.4 on, and we support 8.2."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            ctx.fail(f"no such command {name!r}; {nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
