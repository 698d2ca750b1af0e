"""``adaptrix transformer2``: a group whose commands are imported when they are first needed."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "train": "Train an expert, on answers or on rewards.",
    "import": "Read an expert that the published code has saved.",
    "adapt": "Search the mixture of experts that answers a few examples best.",
    "evaluate": "Measure experts on examples, beside their base.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in _COMMANDS:
            return None
        found = import_module(f"{__name__}.{cmd_name}_").command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from summaries alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Commands)
def command() -> None:
    """Train, import and evaluate experts of singular values (Transformer², arXiv 2501.06252).

    An expert multiplies the singular values of its base's MLP matrices. It is an ordinary adapter: check, convert,
    attach and merge take it.
    """
