"""YAML from strangers: what is no plain mapping of a sensible size is refused, and soon."""

import os
from time import monotonic

import pytest

from adaptrix import RefusedError
from adaptrix.yaml_file import MAX_BYTES, read_mapping

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "stands for more than"),
        ("a: &a [*a]", "stands for more than"),
        (MERGES, "a merge"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "a key is there twice in what begins at line 3"),
        ("a: 1\nb: [", ", at line 2"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: " + "9" * 400, "a number of 400 characters"),
        ("a: 1" + ":59" * 300_000, "a number of"),
        ("a: 1" + ":59" * 300_000 + ".5", "a number of"),
        ('a: "\\ud800"', "half a Unicode character"),
        ("a: " + "[" * 20_000, "recursion"),
        ("a: 2001-99-99", "month"),
        ("a: 1\nb: !!timestamp soon", "'soon' is no timestamp, at line 2"),
        ("a: !!timestamp ''", "'' is no timestamp"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!int ''", "'' is no int"),
        ("a: !!int _", "'_' is no int"),
        ("!!int '-': 1", "'-' is no int"),
        ("a: !!float ''", "'' is no float"),
        ("a: !!float x", "'x' is no float"),
        ("a: !!int [1]", "expected a scalar node"),
        ("a: !!binary '***'", "constructor for the tag 'tag:yaml.org,2002:binary'"),
        ("a: !!set {b, c}", "constructor for the tag"),
        ("a: !!omap [b: 1]", "constructor for the tag"),
        ("[a]: 1\n? {b: 1}\n: 2", "constructing a mapping"),
        ("!!python/object/apply:os.mkdir [ran]", "constructor"),
        ("- 1", "it holds a list"),
        ("", "there is nothing in it"),
        ("#" * (MAX_BYTES + 1), "more than"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_plain_mapping_is_refused_soon(tmp_path, text, said):
    file = tmp_path / "it.yaml"
    file.write_text(text)
    began = monotonic()
    with pytest.raises(RefusedError, match=said):
        read_mapping(file, "a config")
    assert monotonic() - began < 10
    assert not (tmp_path / "ran").exists()


def test_plain_values_are_what_they_are(tmp_path):
    file = tmp_path / "it.yaml"
    file.write_text("a: &one [1, 2.5, -0x1F]\nb: *one\nc: {d: null, e: true}\nf: 1.0e-3\n7: text\n")
    a = [1, 2.5, -31]
    assert read_mapping(file, "a config") == {"a": a, "b": a, "c": {"d": None, "e": True}, "f": 1e-3, 7: "text"}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(RefusedError):
            read_mapping(tmp_path / name, "a config")
