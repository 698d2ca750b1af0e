"""The reference that .ci/reference.py makes leaves nothing out."""

import re
import runpy

import adaptrix
from tests.docs.pages import ROOT

MADE = runpy.run_path(str(ROOT / ".ci" / "reference.py"))


def test_every_public_name_is_in_it():
    text = "\n".join(MADE["python_api"]())
    named = set(re.findall(r"adaptrix\.(\w+)$", text, re.M))
    assert named == {name for name in adaptrix.__all__ if not name.startswith("__")}


def test_every_command_is_in_it_with_its_subcommands_and_options():
    text = "\n".join(MADE["commands"]())
    titles = re.findall(r"^#+ adaptrix (.+)$", text, re.M)
    assert {"convert", "architectures show", "generate", "text-to-lora train", "transformer2 evaluate"} <= set(titles)
    assert len(titles) == len(set(titles))
    assert "`--redistribute [none|nearest]`" in text
    assert "\b" not in text


def test_pages_ask_for_what_is_made():
    for marker in MADE["GENERATORS"]:
        found = [page for page in (ROOT / "docs").rglob("*.md") if marker in page.read_text("utf-8")]
        assert len(found) == 1, marker
        assert marker not in MADE["on_page_markdown"](found[0].read_text("utf-8"))


def test_roles_are_taken_off():
    assert MADE["on_page_content"](":class:<code>Problem</code> a:b") == "<code>Problem</code> a:b"
