"""What ``adaptrix fidelity`` prints and draws, on the tiny base that ships and its adapters."""

import json
import random
from pathlib import Path

import pytest

from examples.tiny.content import text, written
from examples.tiny.styles import SHIPPED
from tests.helpers.command_line import placed

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, BASE = TINY / "adapters" / "pirate", TINY / "base"
COLUMNS = ["plan", "layers", "kept", "‖ΔW‖²", "KL", "95", "%", "top-1"]
COLUMNS += ["perplexity", "bits/byte", "tokens/s", "reused"]


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (style,) = (style for style in SHIPPED if style.name == "pirate")
    rng = random.Random("read aloud")
    (tmp_path / "text.txt").write_text("\n".join(written(style(text(rng), rng)) for _ in range(12)))
    return placed(tmp_path, capsys, monkeypatch)


def measure(place, *more):
    return place.run("fidelity", PIRATE, "--base", BASE, "--text", place.folder / "text.txt", "--device", "cpu", *more)


def rows(out):
    table = [line.split() for line in out.splitlines()]
    return {line[0]: line[1:] for line in table[table.index(COLUMNS) + 1 :]}


def test_the_table(place):
    code, out, err = measure(place, "--layers", "4", "--layers", "middle", "--window", "128")
    assert (code, err) == (0, "")
    found = rows(out)
    assert list(found) == ["all", "4", "middle", "base"]
    assert found["all"][:6] == ["0-7", "8/8", "100.0%", "0", "0–0", "100.0%"]
    assert found["middle"][:6] == ["2-5", "4/8", "100.0%", "0", "0–0", "100.0%"]
    assert found["base"][:3] == ["none", "0/8", "N/A"]
    assert found["base"][-1] == "N/A"
    assert [found[plan][-1] for plan in ("all", "4", "middle")] == ["50.0%"] * 3
    kl, interval = found["4"][3:5]
    low, high = map(float, interval.split("–"))
    assert 0.1 < low < float(kl) < high < float(found["base"][3])
    assert float(found["base"][6]) > 2 * float(found["all"][6])  # the adapter reads its own style better


def test_a_narrow_terminal_has_two_tables(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = measure(place, "--layers", "4")
    lines = [line.split() for line in out.splitlines()]
    assert COLUMNS[:8] in lines
    assert ["plan", *COLUMNS[8:]] in lines
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "…" not in out


def test_json_has_everything(place):
    code, out, err = measure(place, "--layers", "4", "--window", "64", "--stride", "48", "--seed", "7", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["window"], found["stride"], found["seed"], found["depth"]) == (64, 48, 7, 8)
    assert found["dtype"] == "float32"
    assert len(found["text"]["sha256"]) == 64
    row = found["rows"][1]
    assert row["policy"] == "4"
    assert row["kl"]["low"] < row["kl"]["value"] < row["kl"]["high"]
    assert row["perplexity"]["low"] < row["perplexity"]["value"] < row["perplexity"]["high"]
    assert found["rows"][-1]["reused"] is None
    assert found["problems"] == []


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_plot(place, ending):
    pytest.importorskip("matplotlib")
    plans = ["--layers", "4", "--layers", "spread:4"]
    plot = place.folder / "out" / f"curve.{ending}"
    code, _, err = measure(place, *plans, "--plot", plot)
    assert (code, err) == (0, f"drew {plot}\n") if ending == "png" else code == 0
    first = plot.read_bytes()
    code, _, err = measure(place, *plans, "--plot", plot)
    assert code == 2
    assert "--force" in err
    assert measure(place, *plans, "--plot", plot, "--force", "-q")[:2] == (0, "")
    assert plot.read_bytes() == first


def test_lines_of_the_plot_are_policies(place):
    pytest.importorskip("matplotlib")
    import adaptrix
    from adaptrix.cli.plot import _costs

    plans = ["4", "5", "spread:6", "spread:4", "middle"]
    report = adaptrix.fidelity(PIRATE, BASE, place.folder / "text.txt", plans, device="cpu")
    axes = _costs(report).axes[0]
    names = [label.get_text() for label in axes.get_legend().get_texts()]
    assert sorted(names) == ["all", "explicit", "middle", "no adapter", "spread"]
    lines = {box.get_label(): box.lines[0] for box in axes.containers}
    assert list(lines["spread"].get_xdata()) == [4, 6]
    assert list(lines["spread"].get_ydata()) == [report["spread:4"].kl.value, report["spread:6"].kl.value]
    assert list(lines["explicit"].get_xdata()) == [1, 1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layers kept of 8", "KL(full ‖ plan) a token, nats")
