"""The page docs/json.md, made from the shapes in adaptrix/schemas and in the plugins.

Run: python .ci/json_page.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptrix_text_to_lora.schemas import REPORTS as TEXT_TO_LORA
from adaptrix_transformer2.schemas import REPORTS as TRANSFORMER2

from adaptrix.schemas import VERSION
from adaptrix.schemas.json_schema import document_schema
from adaptrix.schemas.reports import REPORTS

_HEAD = f"""# JSON for scripts

<!-- Made by .ci/json_page.py from adaptrix/schemas: edit the shapes there, not this page. -->

With `--json` a command prints one JSON object on standard output, and nothing on standard error. Every object has:

| field | type | meaning |
| --- | --- | --- |
| `version` | {VERSION} | Grows when a field is renamed, removed or given another meaning; not when one is added. |
| `command` | string or null | The command, such as `architectures show`; null where the command line names none. |
| `ok` | boolean | True exactly where the exit code is 0. |
| `problems` | list of [problem](#problem) | Everything that was said: errors, warnings and notes. |

A command that could not give a result prints these four alone. One that gives a result prints the fields of its own
besides, all of them. `convert` and `generate` give one result a source or prompt: problems of that one are in its
result, and `ok` at the top is true where all of them are.

```sh
adaptrix check ./my-lora --json | jq -r '.problems[] | select(.severity == "error") | .where'
adaptrix convert ./one ./two --json | jq -r '.results[] | select(.ok) | .path'
```

- Exit codes are those of the command without `--json`: 0 fine, 1 the files have problems, 2 the command line has, 3 a
  source could not be reached. A command that was interrupted (130, 143) prints no JSON.
- A number that is NaN or infinite is null.
- The text is ASCII: other characters, control characters among them, are written as `\\uXXXX`.
- In Python, `as_dict()` of what `check`, `inspect`, `fidelity`, `combine`, `resize`, `extract` and `diff` return is the
  same object without `version` and `command`.
- `adaptrix.schemas.json_schema.document_schema("check", adaptrix.schemas.reports.REPORTS["check"])` is the JSON Schema
  (2020-12) of a command's object; that is what the tests hold real outputs to.
"""
PAGE = Path(__file__).parents[1] / "docs" / "json.md"
_HEADER = ("version", "command", "ok", "problems")
_TABLE = "| field | type | meaning |\n| --- | --- | --- |"


def page() -> str:
    """The whole page."""
    defs: dict[str, Any] = {}
    sections = [_HEAD, "## Commands\n", *_commands(REPORTS, defs)]
    for plugin, reports in {"text-to-lora": TEXT_TO_LORA, "transformer2": TRANSFORMER2}.items():
        sections += [f"## Commands of adaptrix-{plugin}\n", *_commands(reports, defs)]
    own = [_section(name, schema) for name, schema in sorted(defs.items())]
    return "\n".join([*sections, "## Parts\n", *own]).rstrip() + "\n"


def _commands(reports: Mapping[str, type], defs: dict[str, Any]) -> Iterator[str]:
    """A section for each command; those of equal shape share one. What they refer to is put into ``defs``."""
    for report in dict.fromkeys(reports.values()):
        names = [name for name, shape in reports.items() if shape is report]
        schema = document_schema(names[0], report)
        for name in schema["$defs"].keys() & defs.keys():
            assert schema["$defs"][name] == defs[name], f"two shapes are called {name}"
        defs |= schema["$defs"]
        document = schema["anyOf"][0]
        own = {name: field for name, field in document["properties"].items() if name not in _HEADER}
        yield f"### {', '.join(f'`{name}`' for name in names)}\n\n{_said(document)}\n\n{_rows(own)}\n"


def _section(name: str, schema: Mapping[str, Any]) -> str:
    return f"### {_title(name)}\n\n{_said(schema)}\n\n{_rows(schema['properties'])}\n"


def _rows(properties: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {field.get('description', '').replace('|', chr(92) + '|')} |"
        for name, field in properties.items()
    ]
    return "\n".join([_TABLE, *rows])


def _said(schema: Mapping[str, Any]) -> str:
    return " ".join(str(schema["description"]).split())


def _type(field: Mapping[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in field:
        title = _title(field["$ref"].rpartition("/")[2])
        return f"[{title}](#{title.replace(' ', '-')})"
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if field.get("type") == "object":
        return f"object of {_type(field['additionalProperties'])}"
    return str(field.get("type", "anything"))


def _title(name: str) -> str:
    """``WrittenJSON`` in words, as a heading: its link is the same in lower case."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name.removesuffix("JSON"))
    return words.strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
