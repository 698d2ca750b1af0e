"""Documents that ``--json`` prints, held to their schemas."""

import json
from functools import cache

from jsonschema import Draft202012Validator

from adaptrix.schemas.json_schema import document_schema, failure_schema
from adaptrix.schemas.reports import REPORTS


def document(text, code):
    """The document that a command has printed before it ended with ``code``, once it is all that it should be."""
    found = json.loads(text, parse_constant=_no_json)
    assert text.isascii()
    assert all(char == "\n" or " " <= char <= "~" for char in text), "a terminal may obey what is in it"
    error = next(_validator(found["command"]).iter_errors(found), None)
    assert error is None, f"{error.message} at {error.json_path}\n{text}"
    assert found["ok"] == (code == 0)
    return found


def _no_json(name):
    raise AssertionError(f"{name} is no JSON")


@cache
def _validator(command):
    report = every_report().get(command)
    defs = {}
    schema = document_schema(command, report) if report else {**failure_schema(command, defs), "$defs": defs}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def every_report():
    """The shapes of all commands, those of the plugins here too."""
    from adaptrix_text_to_lora.schemas import REPORTS as TEXT_TO_LORA
    from adaptrix_transformer2.schemas import REPORTS as TRANSFORMER2

    return {**REPORTS, **TEXT_TO_LORA, **TRANSFORMER2}
