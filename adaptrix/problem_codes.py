"""The table of problem codes: what each of them means, why it comes about and what to do.

The table is data, ``problems.toml`` beside this module, and is read on demand: a problem that
is found costs nothing more for it. A plugin may have a ``problems.toml`` of the same form in its own package.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix.errors import refuse
from adaptrix.plugins.installed import entry_points

if TYPE_CHECKING:
    from adaptrix.schemas.reports import ExplanationJSON

FILE = "problems.toml"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One code of the table.

    - ``code``: the slug in :attr:`adaptrix.Problem.code`.
    - ``topic``: the heading that it stands under.
    - ``means``: what was found, in general.
    - ``why``: what it comes from, or what it would lead to.
    - ``do``: what mends it.
    - ``example``: a message with this code.
    """

    code: str
    topic: str
    means: str
    why: str
    do: str
    example: str

    def as_dict(self) -> ExplanationJSON:
        return {
            "code": self.code,
            "topic": self.topic,
            "means": self.means,
            "why": self.why,
            "do": self.do,
            "example": self.example,
        }


def own_codes() -> dict[str, Explanation]:
    """Adaptrix's own codes, in the order of the table."""
    return read_table(Path(__file__).with_name(FILE))


def known_codes() -> dict[str, Explanation]:
    """Adaptrix's own codes, which no plugin can change, and those of installed plugins, whose modules are not run.

    Raises :class:`RefusedError` for a plugin's table that is malformed.
    """
    codes = own_codes()
    for package in sorted({entry.module.partition(".")[0] for entry in entry_points()}):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (table := Path(folder, FILE)).is_file():
                codes |= {code: found for code, found in read_table(table).items() if code not in codes}
    return codes


def read_table(path: Path) -> dict[str, Explanation]:
    """The codes in a table. Raises :class:`RefusedError` for one that is malformed."""
    try:
        topics = tomllib.loads(path.read_text("utf-8"))
        return {
            code: Explanation(code, topic["title"], **entry)
            for topic in topics.values()
            for code, entry in topic.items()
            if code != "title"
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        expected = "topics with a title, and in them codes with means, why, do and example"
        raise refuse("toml-invalid", path, str(error), expected) from None
