"""The command line as a person meets it: real processes, exit codes, what is printed where."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "data" / "demo"


@pytest.fixture
def run(tmp_path):
    """Runs ``adaptrix ARGS`` in an empty folder, offline, with a home of its own."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    env.pop("ADAPTRIX_TRACEBACK", None)
    work = tmp_path / "work"
    work.mkdir()

    def call(*args, **options):
        command = [sys.executable, "-m", "adaptrix", *map(str, args)]
        result = subprocess.run(
            command,
            cwd=work,
            env={**env, **options.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )
        assert "Traceback" not in result.stderr + result.stdout
        return result

    call.folder = work
    return call


@pytest.fixture
def demo(run):
    shutil.copytree(DEMO, run.folder / "demo")
    return run.folder / "demo" / "adapter"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_convert_writes_the_default_name_and_says_what_the_plan_keeps(run, demo):
    result = run("convert", demo, "--base", demo.parent / "base")
    assert result.returncode == 0, result.stderr
    assert files(run.folder) == ["adapter.adaptrix.safetensors", "demo"]
    assert "layers 0-11 of 12, 60 of 60 sites, 100.0%" in result.stdout
    assert "--layers middle (middle-layer injection) keeps 82.1% of it" in result.stdout
    chosen = run("convert", demo, "--layers", "middle", "--name", "half")
    assert "layers 3-8 of 12, 30 of 60 sites" in chosen.stdout
    assert "--layers all makes every layer act" in chosen.stdout


def test_there_and_back_is_the_same_file(run, demo):
    assert run("convert", demo).returncode == 0
    assert run("convert", "adapter.adaptrix.safetensors", "--to", "peft", "-o", "back").returncode == 0
    name = "adapter_model.safetensors"
    assert (run.folder / "back" / name).read_bytes() == (demo / name).read_bytes()


def test_an_existing_output_needs_force(run, demo):
    assert run("convert", demo).returncode == 0
    before = (run.folder / "adapter.adaptrix.safetensors").stat()
    refused = run("convert", demo)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (run.folder / "adapter.adaptrix.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert run("convert", demo, "--force").returncode == 0


def test_one_failing_source_does_not_stop_the_rest(run, demo):
    (run.folder / "out").mkdir()
    (run.folder / "empty").mkdir()
    result = run("convert", "empty", demo, "-o", "out", "--json")
    assert result.returncode == 1
    first, second = json.loads(result.stdout)["results"]
    assert (first["ok"], second["ok"]) == (False, True)
    assert files(run.folder / "out") == ["adapter.adaptrix.safetensors"]


def test_several_sources_need_a_folder(run, demo):
    result = run("convert", demo, demo, "-o", "nowhere")
    assert result.returncode == 2
    assert "mkdir nowhere" in result.stderr


def test_a_peft_folder_cannot_hold_what_the_plan_leaves_out(run, demo):
    refused = run("convert", demo, "--to", "peft", "-o", "out", "--layers", "middle")
    assert refused.returncode == 2
    assert "--prune" in refused.stderr
    assert files(run.folder) == ["demo"]
    pruned = run("convert", demo, "--to", "peft", "-o", "out", "--layers", "middle", "--prune")
    assert pruned.returncode == 0, pruned.stderr
    assert "dropped 30 of 60 deltas" in pruned.stderr


def test_check_says_everything_at_once_as_json_and_ends_with_1(run, demo):
    config = json.loads((demo.parent / "base" / "config.json").read_text())
    config |= {"num_hidden_layers": 10, "head_dim": 8}
    (demo.parent / "base" / "config.json").write_text(json.dumps(config))
    result = run("check", demo, "--base", demo.parent / "base", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    shapes = [problem["where"] for problem in report["problems"] if problem["code"] == "shape"]
    assert not report["ok"]
    assert sum(where.startswith("layers.") for where in shapes) == 48  # q, k, v rows and o columns of 12 layers
    assert sum("." not in where for where in shapes) == 5  # layers beyond the last, once a role
    assert all(problem["expected"] and problem["found"] and problem["where"] for problem in report["problems"])


def test_inspect_as_json_has_the_norms_of_every_layer(run, demo):
    told = json.loads(run("inspect", demo, "--json").stdout)
    assert set(told["norms"]) == {"q", "k", "v", "o", "down"}
    assert all(len(row) == 12 for row in told["norms"].values())
    assert told["provenance"]["config"]["peft_type"] == "LORA"
    assert len(told["provenance"]["files"]["adapter_model.safetensors"]) == 64


def test_inspect_draws(run, demo):
    pytest.importorskip("matplotlib")
    for name, magic in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        assert run("inspect", demo, "--plot", name, "-q").returncode == 0
        assert (run.folder / name).read_bytes().startswith(magic)
    assert run("inspect", demo, "--plot", "a.gif").returncode == 2


def test_no_colour_and_no_control_characters_where_nobody_looks(run, demo):
    weird = run.folder / "we\x1b[31mird"
    shutil.copytree(demo, weird)
    result = run("inspect", weird)
    assert "\x1b" not in result.stdout + result.stderr


def test_quiet_says_nothing(run, demo):
    result = run("convert", demo, "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["convrt"], 2, "adaptrix convert"),
        (["convert"], 2, "SRC"),
        (["check", "./nowhere"], 2, "nowhere"),
        (["check", "owner/absent"], 3, "owner/absent"),
        (["check", "../../etc/passwd"], 2, "passwd"),
        (["convert", "demo/adapter", "--layers", "most"], 2, "energy:K"),
        (["convert", "demo/adapter", "--rank", "0"], 2, "rank"),
        (["convert", "demo/adapter", "--name", "../x"], 2, "no path"),
        (["convert", "demo/adapter", "--to", "kohya"], 2, "injection, mlx, gguf, peft"),
        (["convert", "demo/adapter", "-o", "no/such/folder/x"], 2, "no/such/folder"),
        (["architectures", "show", "lama"], 2, "llama"),
        (["convert", "demo/adapter", "--base", "./absent"], 2, "absent"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line_with_its_exit_code(run, demo, args, code, says):
    result = run(*args)
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert files(run.folder) == ["demo"]


def test_failures_are_json_too(run):
    told = json.loads(run("check", "./nowhere", "--json").stdout)
    assert told["ok"] is False
    assert told["problems"][0]["code"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from adaptrix.cli import run; run(['--help'])\n"
        "heavy = {'numpy', 'torch', 'transformers', 'peft', 'rich', 'huggingface_hub', 'ml_dtypes', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    env = {**os.environ, "ADAPTRIX_PLUGINS": ""}  # a plugin may cost what it costs
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "[]"
    assert "convert" in result.stdout


def test_a_closed_pipe_is_no_error(demo, run):
    command = f"{sys.executable} -m adaptrix inspect {demo} --json | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=run.folder)
    assert result.stderr == ""


def test_ctrl_c_leaves_nothing_behind(run, demo, tmp_path):
    """A reader that never ends stands for a long conversion."""
    code = (
        "import sys, time, adaptrix.formats.safetensors_file as f, adaptrix.cli as c\n"
        "real = f.write\n"
        "def slow(path, *rest):\n"
        "    real(path, *rest); print('writing', flush=True); time.sleep(60)\n"
        "f.write = slow\n"
        f"sys.exit(c.run(['convert', {str(demo)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    assert len(files(run.folder)) == 2  # the half-made file is there
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert files(run.folder) == ["demo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run, shell):
    assert "_ADAPTRIX_COMPLETE" in run("completion", shell).stdout
