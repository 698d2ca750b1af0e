"""``adaptrix plugins``."""

from __future__ import annotations

import click

from adaptrix.cli.common import Verbosity, clean, print_json, verbosity_options
from adaptrix.plugins.catalog import Catalog
from adaptrix.plugins.plugin import Plugin
from adaptrix.schemas.reports import PluginsJSON

_LOOKS = {"loaded": "green", "failed": "red", "blocked": "yellow", "missing": "red"}


@click.command()
@verbosity_options
def command(verbosity: Verbosity) -> int:
    """List plugins, what they contribute, and what failed; with -v, where it failed.

    ADAPTRIX_PLUGINS names the plugins that may load (empty: none); ADAPTRIX_STRICT=1 makes a failing
    plugin an error.
    """
    catalog = Catalog.from_environment()
    plugins = catalog.plugins
    if verbosity.json:
        report: PluginsJSON = {"ok": True, "problems": [], "plugins": [plugin.as_dict() for plugin in plugins]}
        print_json(report, catalog.problems)
    elif not verbosity.quiet:
        for plugin in plugins:
            _show(plugin, verbosity)
    return 0


def _show(plugin: Plugin, verbosity: Verbosity) -> None:
    told = plugin.as_dict()
    state = click.style(plugin.state, fg=_LOOKS[plugin.state])
    origin = f"  from {clean(plugin.distribution)} {clean(plugin.version)}".rstrip() if plugin.distribution else ""
    click.echo(f"{click.style(clean(plugin.name), bold=True)}  {state}{origin}")
    for hook, names in told["contributes"].items():
        click.echo(f"  {hook}: {clean(', '.join(names))}")
    for line in (plugin.trace if verbosity.verbose and plugin.trace else plugin.error).splitlines():
        click.echo(f"  {clean(line)}")
