"""``adaptrix plugins``."""

from __future__ import annotations

import click

from adaptrix.catalog import Catalog, Plugin
from adaptrix.cli.common import Voice, clean, print_json, voice_options

_LOOKS = {"loaded": "green", "failed": "red", "blocked": "yellow"}


@click.command()
@voice_options
def command(voice: Voice) -> int:
    """List plugins, what they contribute, and what failed.

    ADAPTRIX_PLUGINS names the plugins that may load (empty: none); ADAPTRIX_STRICT=1 makes a failing
    plugin an error.
    """
    plugins = Catalog.from_environment().plugins
    if voice.json:
        print_json([plugin.as_dict() for plugin in plugins])
    elif not voice.quiet:
        for plugin in plugins:
            _show(plugin)
    return 0


def _show(plugin: Plugin) -> None:
    told = plugin.as_dict()
    state = click.style(plugin.state, fg=_LOOKS[plugin.state])
    click.echo(f"{click.style(clean(plugin.name), bold=True)}  {state}  from {clean(plugin.distribution)}")
    for hook, names in told["contributes"].items():
        click.echo(f"  {hook}: {clean(', '.join(names))}")
    if plugin.error:
        click.echo(f"  {clean(plugin.error)}")
