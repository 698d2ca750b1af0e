"""``adaptrix explain``."""

from __future__ import annotations

from itertools import groupby

import click

from adaptrix.cli.choices import starting
from adaptrix.cli.common import Verbosity, print_json, verbosity_options
from adaptrix.errors import Problem, UsageError
from adaptrix.problem_codes import Explanation, known_codes
from adaptrix.schemas.reports import ExplainJSON
from adaptrix.wording import nearest


def _codes(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    return starting(known_codes(), typed)


@click.command()
@click.argument("code", required=False, shell_complete=_codes)
@verbosity_options
def command(code: str | None, verbosity: Verbosity) -> int:
    """Say what a problem's code means and what to do; without CODE, list them all.

    \b
      adaptrix explain config-mismatch
      adaptrix explain hub-access --json
    """
    known = known_codes()
    chosen = list(known.values()) if code is None else [_find(code, known)]
    if verbosity.json:
        report: ExplainJSON = {"ok": True, "problems": [], "codes": [one.as_dict() for one in chosen]}
        print_json(report)
    elif verbosity.quiet:
        pass
    elif code is None:
        for topic, codes in groupby(chosen, lambda explanation: explanation.topic):
            click.echo(f"{click.style(topic, bold=True)}\n  {', '.join(each.code for each in codes)}")
    else:
        _show(chosen[0])
    return 0


def _find(code: str, known: dict[str, Explanation]) -> Explanation:
    if code in known:
        return known[code]
    remedy = f"{nearest(code, known)} `adaptrix explain` lists them.".strip()
    raise UsageError(Problem("option", code, "no such problem code", remedy=remedy))


def _show(found: Explanation) -> None:
    click.echo(f"{click.style(found.code, bold=True)}  ({found.topic})\n\n{found.means}\n\n{found.why}\n")
    click.echo(f"What to do: {found.do}\nExample:    {found.example}")
