"""docs/plugins.md: each plugin of the tutorial is written, installed and run as the page says."""

import os

from tests.docs.pages import ROOT, WRITE, Run, blocks, checkout, environment
from tests.helpers.plugins import site as site  # a fixture

PAGE = ROOT / "docs" / "plugins.md"
TEXT = PAGE.read_text("utf-8")


def installed(site, title):
    """What pip would leave beside a module of the page: its distribution, with an entry point."""
    module = title.removesuffix(".py").removesuffix("/__init__")
    name = module.replace("_", "-")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[adaptrix]\n{name.removeprefix('adaptrix-')} = {module}\n")


def test_every_plugin_does_what_is_shown(site, tmp_path, monkeypatch):
    checkout(site)
    monkeypatch.chdir(site)
    env = environment(tmp_path)
    path = os.pathsep.join([str(site), *filter(None, [env.get("PYTHONPATH")])])
    run = Run(TEXT, site, {**env, "PYTHONPATH": path, "ADAPTRIX_STRICT": "1"})
    for block in blocks(TEXT):
        if block.kind == "file" and block.language == "python" and block.title.startswith("adaptrix_"):
            installed(site, block.title)
        run.block(block)
    if WRITE and run.page != TEXT:
        PAGE.write_text(run.page, "utf-8")


def test_there_is_a_plugin_for_every_hook():
    from adaptrix.plugins import hookspecs

    hooks = [name for name in vars(hookspecs) if name.startswith("adaptrix_")]
    assert len(hooks) >= 5
    missing = [hook for hook in hooks if f"def {hook}()" not in TEXT]
    assert not missing


def test_plugins_stand_on_the_public_names_alone():
    import adaptrix
    from adaptrix import extend

    for block in blocks(TEXT):
        if block.language == "python":
            names = {"adaptrix": adaptrix, "adaptrix.extend": extend}
            for line in block.text.splitlines():
                words = line.strip().split(" import ")
                if len(words) == 2 and words[0].startswith("from adaptrix"):
                    module = words[0].removeprefix("from ")
                    assert module in {*names, "adaptrix.testing"}, line
                    wanted = words[1].split(", ") if module in names else []
                    assert [name for name in wanted if name not in names[module].__all__] == []
