"""``adaptrix architectures``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from adaptrix.architecture import Architecture
from adaptrix.cli.choices import families
from adaptrix.cli.common import Verbosity, print_json, show_problems, verbosity_options
from adaptrix.errors import Problem, UsageError
from adaptrix.pipeline import Pipeline
from adaptrix.schemas.reports import ArchitecturesJSON, FamilyJSON
from adaptrix.schemas.shared import ArchitectureJSON
from adaptrix.wording import nearest


@click.group(invoke_without_command=True)
@verbosity_options
@click.pass_context
def command(ctx: click.Context, verbosity: Verbosity) -> None:
    """List model families; show one; derive one that is missing."""
    if ctx.invoked_subcommand is not None:
        return
    catalog = Pipeline().catalog
    if verbosity.json:
        families = [_summary(architecture) for architecture in catalog.architectures]
        report: ArchitecturesJSON = {"ok": True, "problems": [], "architectures": families}
        print_json(report, catalog.problems)
    elif not verbosity.quiet:
        _table(catalog.architectures)
    show_problems(catalog.problems, verbosity)


@command.command("show")
@click.argument("name", shell_complete=families)
@verbosity_options
def show(name: str, verbosity: Verbosity) -> None:
    """Show a family by its name or a model_type: dims, roles, paths, shapes."""
    catalog = Pipeline().catalog
    _show(_find(name, catalog.architectures), verbosity, catalog.problems)


@command.command("derive")
@click.argument("model")
@verbosity_options
def derive(model: str, verbosity: Verbosity) -> None:
    """Print the TOML of an unknown family, from the config.json of MODEL (needs adaptrix[torch]).

    MODEL is a folder or OWNER/NAME. The model is built without weights; its modules are read.
    """
    from adaptrix.derive import derive as derived

    pipeline = Pipeline()
    _show(derived(pipeline.base_config(model)), verbosity, pipeline.catalog.problems)


def _show(architecture: Architecture, verbosity: Verbosity, problems: Sequence[Problem]) -> None:
    from adaptrix.derive import to_toml

    if verbosity.json:
        toml = to_toml(architecture)
        report: FamilyJSON = {"ok": True, "problems": [], "architecture": _summary(architecture), "toml": toml}
        print_json(report, problems)
    elif not verbosity.quiet:
        click.echo(to_toml(architecture), nl=False)
    show_problems(problems, verbosity)


def _find(name: str, known: Sequence[Architecture]) -> Architecture:
    for architecture in known:
        if name == architecture.family or name in architecture.model_types:
            return architecture
    near = nearest(name, [name for a in known for name in (a.family, *a.model_types)])
    remedy = "`adaptrix architectures` lists them; `adaptrix architectures derive MODEL` makes one."
    found = "no such family or model_type"
    raise UsageError(Problem("architecture-unknown", name, found, remedy=f"{near} {remedy}".strip()))


def _summary(architecture: Architecture) -> ArchitectureJSON:
    return {
        "family": architecture.family,
        "model_types": list(architecture.model_types),
        "roles": list(architecture.roles),
        "origin": architecture.origin,
    }


def _table(architectures: tuple[Architecture, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("family", "model types", "roles", "from"):
        table.add_column(column, overflow="fold")
    for a in architectures:
        table.add_row(a.family, ", ".join(a.model_types), " ".join(a.roles), a.origin)
    Console(highlight=False).print(table)
