"""``adaptrix completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    \b
      bash: adaptrix completion bash > ~/.local/share/bash-completion/completions/adaptrix
      zsh:  adaptrix completion zsh > "${fpath[1]}/_adaptrix"
      fish: adaptrix completion fish > ~/.config/fish/completions/adaptrix.fish
    """
    from adaptrix.cli import app

    found = get_completion_class(shell)
    assert found is not None  # click.Choice saw to it
    click.echo(found(app, {}, "adaptrix", "_ADAPTRIX_COMPLETE").source())
