"""Every code block of README.md, CONTRIBUTING.md and docs/ does what the page says."""

import os
import re
import sys
import warnings

import pytest

from tests.docs.pages import ROOT, WRITE, Run, blocks, checkout, environment, fits, pages

PAGES = pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
#: pages whose blocks run in a test of their own
ELSEWHERE = {"docs/plugins.md": "tests/docs/test_plugin_tutorial.py"}


def runnable(page):
    return any(block.kind not in ("", "not run") for block in blocks(page.read_text("utf-8")))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A page's run, in a clean folder, whose imports are forgotten afterwards."""
    work = tmp_path / "work"
    folder = checkout(work)
    env = environment(tmp_path)
    for name in ("HF_HUB_OFFLINE", "ADAPTRIX_CACHE"):
        monkeypatch.setenv(name, env[name])
    monkeypatch.chdir(folder)
    return lambda text: Run(text, folder, env)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_run_or_says_why_not(page):
    text = page.read_text("utf-8")
    found = list(blocks(text))
    assert text.count("```") == 2 * len(found), "a block that the runner does not see"
    for block in found:
        assert block.kind, f"{block.language or 'a block'} without a language to run, a title or a reason: {block.text}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name)
        for page, name in zip(PAGES, NAMES, strict=True)
        if name not in ELSEWHERE and runnable(page)
    ],
)
def test_blocks_do_what_they_show(page, run):
    text = page.read_text("utf-8")
    running = run(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(text):
            running.block(block)
    if WRITE and running.page != text:
        page.write_text(running.page, "utf-8")


def test_pages_that_run_elsewhere_do():
    for page, test in ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / test).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_targets_and_files_that_are_mentioned_exist(page):
    text = page.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z0-9-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text):
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_site_is_built_with_every_warning_an_error():
    """Quiet, mkdocs hides the warnings from its own strict mode, and builds a site with broken links."""
    (build,) = re.findall(r"-m mkdocs build(.*)", (ROOT / "Makefile").read_text())
    assert not build.strip()
    assert re.search("^strict: true$", (ROOT / "mkdocs.yml").read_text(), re.M)


def test_the_readme_can_be_read_in_a_sitting():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a 1\nb\n", "a 1\nb\n", True),
        ("a 1\nb\n", "a 2\nb\n", False),
        ("took 3 ms\n", "took ... ms\n", True),
        ("took 3 s\n", "took ... ms\n", False),
        ("one\ntwo\nthree\n", "one\n...\nthree\n", True),
        ("a(b)\n", "a(b)\n", True),
    ],
)
def test_what_is_shown_is_compared(printed, shown, same):
    assert fits(printed, shown) is same


def test_a_block_that_fails_fails_the_page(run):
    text = "```console\n$ exit 3\n```\n"
    with pytest.raises(AssertionError, match="ended with 3"):
        run(text).block(next(blocks(text)))
    text = "```python\n1 / 0\n```\n"
    with pytest.raises(ZeroDivisionError):
        run(text).block(next(blocks(text)))


def test_the_runner_sees_no_network_and_this_interpreter(run):
    running = run("")
    assert running.env["HF_HUB_OFFLINE"] == "1"
    assert running.env["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
