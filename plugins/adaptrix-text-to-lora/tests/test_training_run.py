"""``adaptrix text-to-lora``: a run from its file to a checkpoint, stopped, taken up, gone wrong, judged; imports."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from adaptrix_text_to_lora import Hypernetwork, Shape, TextToLoRA, shape_for
from adaptrix_text_to_lora.checkpoint import read_checkpoint
from adaptrix_text_to_lora.shape import Module
from adaptrix_text_to_lora.targets import Base
from adaptrix_text_to_lora.training import Library, finetuning
from adaptrix_text_to_lora.training.config import read_config
from adaptrix_text_to_lora.training.files import read_tasks
from adaptrix_text_to_lora.training.job import train

import adaptrix
from adaptrix import Adapter, LowRank, Provenance, Target, Tensor
from adaptrix.extend import Pipeline, safetensors_file, uncounted
from tests.helpers.families import tiny_model

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
SETTINGS = {"base": str(BASE), "encoder": "hashed", "width": 16, "latent": 8, "head": 8, "rank": 2, "batch": 2}
CURVE, STATE, WEIGHTS = "curve.csv", "training.safetensors", "hypermod.pt"
Run = Callable[..., tuple[int, Any]]
Trained, Written = Callable[..., Hypernetwork], Callable[..., Path]


def _config(folder: Path, name: str = "run.yaml", **settings: Any) -> Path:
    """A config beside two tasks, with two and one description."""
    lines = []
    for task, texts in (("shout", ["Write it in capitals", "Shout"]), ("echo", "Repeat it")):
        for word in ("sea", "boat", "old man"):
            answer = word.upper() if task == "shout" else word
            lines.append({"task": task, "description": texts, "prompt": f"{word}: ", "response": answer})
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / name
    own = {"base": str(BASE), "batch": 2} if "start" in settings else SETTINGS
    path.write_text(yaml.safe_dump(own | {"tasks": "tasks.jsonl", "steps": 12, "rate": 0.01} | settings))
    return path


def test_from_a_file_to_adapters(run: Run, tmp_path: Path) -> None:
    code, said = run("text-to-lora", "train", str(_config(tmp_path, steps=40)), "-o", "t2l")
    assert (code, said["steps"], said["resumed"]) == (0, 40, 0), said
    assert said["last"] < said["first"] - 1
    folder = tmp_path / "t2l"
    names = {"adapter_config.json", "args.yaml", CURVE, "curve.png", WEIGHTS}
    assert {file.name for file in folder.iterdir()} - {"curve.png"} == names - {"curve.png"}
    table = (folder / CURVE).read_text().splitlines()
    assert (table[0], len(table)) == ("step,loss,rate,norm", 41)
    code, found = run("text-to-lora", "evaluate", "tasks.jsonl", "--checkpoint", "t2l", "--base", str(BASE))
    assert code == 0
    scores = found["scores"]
    assert scores["generated"]["loss"] < scores["shuffled"]["loss"] < scores["base"]["loss"]
    assert scores["by_task"].keys() == {"shout", "echo"}
    adapter = TextToLoRA(folder, BASE).generate("Shout")
    assert {delta.scale for delta in adapter.deltas.values()} == {16 / 2**0.5}
    assert run("text-to-lora", "train", "run.yaml", "-o", "t2l")[1]["problems"][0]["code"] == "output-exists"
    code, again = run("text-to-lora", "train", str(_config(tmp_path, start="./t2l")), "-o", "more")
    assert code == 0, again
    assert again["first"] < said["first"] - 1, "it goes on from the checkpoint"


@pytest.mark.slow
def test_a_run_that_ctrl_c_stops_comes_to_the_same_bytes(plugin: object, run: Run, tmp_path: Path) -> None:
    config = _config(tmp_path, steps=26, save_every=2)
    command = [sys.executable, "-m", "adaptrix", "text-to-lora", "train", str(config), "-o"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "torn"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as torn:
        for _ in range(3000):
            if (tmp_path / "torn" / STATE).exists() or torn.poll() is not None:
                break
            time.sleep(0.02)
        torn.send_signal(signal.SIGINT)
        said = torn.communicate()[1]
    assert torn.returncode == 130, said
    assert f"{STATE} is kept" in said
    assert "Traceback" not in said
    assert [file.name for file in (tmp_path / "torn").iterdir()] == [STATE], "no checkpoint, nothing half-written"
    code, other = run("text-to-lora", "train", str(_config(tmp_path, "other.yaml", seed=1)), "-o", "torn")
    assert (code, other["problems"][0]["code"]) == (2, "run-state")
    for out in ("torn", "whole"):
        code, said = run("text-to-lora", "train", str(config), "-o", out)
        assert code == 0, said
        assert (said["resumed"] > 0) == (out == "torn")
    for name in (WEIGHTS, CURVE, "args.yaml"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "torn" / STATE).exists()


@pytest.mark.parametrize("name", ["args.yaml", WEIGHTS])
def test_a_run_that_is_killed_while_it_writes_leaves_the_old_checkpoint_and_its_state(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert run("text-to-lora", "train", str(_config(tmp_path, steps=2)), "-o", "t2l")[0] == 0
    old = {file.name: file.read_bytes() for file in (tmp_path / "t2l").iterdir()}

    def killed_at(step: Callable[[Path, Any], Any]) -> Callable[[Path, Any], Any]:
        def taken(self: Path, target: Any) -> Any:
            done = step(self, target)
            if name in (self.name, getattr(target, "name", None)):
                raise KeyboardInterrupt
            return done

        return taken

    with monkeypatch.context() as patched:
        for step in (Path.replace, Path.write_bytes):
            patched.setattr(Path, step.__name__, killed_at(step))
        with pytest.raises(KeyboardInterrupt):
            train(read_config(_config(tmp_path, steps=3, rank=3)), tmp_path / "t2l", force=True, display=uncounted)
    left = {file.name: file.read_bytes() for file in (tmp_path / "t2l").iterdir()}
    assert left.keys() - old.keys() == {STATE}
    assert {name: left[name] for name in old} == old
    (tmp_path / "t2l" / ".adaptrix-0123456789ab.safetensors").write_bytes(b"half of a state")
    code, said = run("text-to-lora", "train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "t2l"))
    assert (code, said.get("resumed")) == (0, 3), said
    assert {file.name for file in (tmp_path / "t2l").iterdir()} == old.keys()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = finetuning._cross_entropy, list[int]()

    def poisoned(*given_: Any) -> torch.Tensor:
        calls.append(1)
        return true(*given_) * (torch.nan if len(calls) > 5 else 1)

    monkeypatch.setattr(finetuning, "_cross_entropy", poisoned)
    code, said = run("text-to-lora", "train", str(_config(tmp_path, save_every=2)), "-o", "t2l")
    assert (code, [problem["code"] for problem in said["problems"]]) == (1, ["diverged", "run-kept"])
    assert "after step 5" in said["problems"][0]["where"]
    assert "step 4" in said["problems"][1]["found"]
    assert not (tmp_path / "t2l" / STATE).exists()
    assert len((tmp_path / "t2l" / CURVE).read_text().splitlines()) == 5
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, said = run("text-to-lora", "train", str(_config(tmp_path, steps=4, rate=0.01)), "-o", "four")
    assert code == 0
    kept, four = (read_checkpoint(str(tmp_path / name)).hypernetwork for name in ("t2l", "four"))
    assert kept.shape == four.shape
    code, said = run("text-to-lora", "train", str(_config(tmp_path, rate=1e30)), "-o", "never")
    assert (code, [problem["code"] for problem in said["problems"]]) == (1, ["diverged"])
    assert not (tmp_path / "never").exists(), "nothing was good enough to be kept"


def test_a_disk_that_is_full_leaves_the_state_before(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written_ = safetensors_file.write, list[int]()

    def full(*given_: Any) -> None:
        written_.append(1)
        if len(written_) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*given_)

    monkeypatch.setattr(safetensors_file, "write", full)
    config = str(_config(tmp_path, save_every=2))
    code, said = run("text-to-lora", "train", config, "-o", "t2l")
    assert (code, [problem["code"] for problem in said["problems"]]) == (1, ["disk-full"])
    assert [file.name for file in (tmp_path / "t2l").iterdir()] == [STATE]
    code, said = run("text-to-lora", "train", config, "-o", "t2l")
    assert (code, said["resumed"]) == (0, 4)


def test_everything_that_is_wrong_with_a_config_is_told_at_once(tmp_path: Path) -> None:
    text = "rnak: 3\nsteps: 0\nrate: 1e-3\nlatent: 6\nvariant: XL\ntargets: [q, q]\nrslora: 1\ntasks: a\nlibrary: b\n"
    (tmp_path / "bad.yaml").write_text(text + "smoothing: 2\nstart: c\nrank: 3\nloss: [delta]\n")
    with pytest.raises(adaptrix.UsageError) as error:
        read_config(tmp_path / "bad.yaml")
    said = {problem.where.rpartition("bad.yaml ")[2]: str(problem) for problem in error.value.problems}
    places = {"steps", "rate", "latent", "variant", "targets", "rslora", "smoothing", "loss", "base", "rank"}
    assert said.keys() == {"'rnak'", "tasks, library"} | places
    assert "such as rank" in said["'rnak'"]
    assert "1.0e-3" in said["rate"]
    for body in ("base: x\nbase: y\ntasks: z\n", "- base\n", "base: !!python/name:os.system x\n", "a: [\n"):
        (tmp_path / "odd.yaml").write_text(body)
        with pytest.raises(adaptrix.RefusedError):
            read_config(tmp_path / "odd.yaml")
    (tmp_path / "ok.yaml").write_text("base: ./llama\nlibrary: all.jsonl\nloss: delta\n")
    config = read_config(tmp_path / "ok.yaml")
    assert (config.base, config.library) == (str(tmp_path / "llama"), tmp_path / "all.jsonl")
    (tmp_path / "idle.yaml").write_text("base: x\nlibrary: all.jsonl\nsmoothing: 0.1\n")
    with pytest.raises(adaptrix.UsageError, match="no meaning"):
        read_config(tmp_path / "idle.yaml")


def test_the_guides_published_values_are_the_defaults(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "text-to-lora.md").read_text("utf-8")
    listed = guide.partition("Every other key has the published value:")[2].partition(". What follows")[0]
    stated = dict(re.findall(r"`(\w+): ([^`]+)`", listed))
    assert len(stated) >= 10
    keys = "".join(f"{key}: {value}\n" for key, value in stated.items())
    for name, more in (("bare", ""), ("stated", keys)):
        (tmp_path / f"{name}.yaml").write_text(f"base: ./llama\ntasks: tasks.jsonl\n{more}")
    bare, all_stated = read_config(tmp_path / "bare.yaml"), read_config(tmp_path / "stated.yaml")
    assert all_stated.recipe(finetuning.FINE_TUNING) == bare.recipe(finetuning.FINE_TUNING)
    assert replace(all_stated, rate=None) == bare  # which rate is published depends on the loss


def test_every_line_that_is_wrong_is_told(tmp_path: Path) -> None:
    lines = [
        '{"description": "Add", "prompt": "1", "response": "2"}',
        "not json",
        '{"description": "", "prompt": "1", "response": "2"}',
        '{"description": ["Add", 3], "prompt": "1", "response": ""}',
        '{"description": "Add", "prompt": "1", "response": "2", "answer": "3"}',
        "[]",
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    with pytest.raises(adaptrix.RefusedError) as error:
        read_tasks(tmp_path / "tasks.jsonl")
    numbers = [problem.where.rpartition("jsonl:")[2].split()[0] for problem in error.value.problems]
    assert numbers == ["2", "3", "4", "4", "5", "6"]
    (tmp_path / "tasks.jsonl").write_text(r'{"description": "Add.", "prompt": "\ud800", "response": "4"}')
    with pytest.raises(adaptrix.RefusedError, match="surrogates"):
        read_tasks(tmp_path / "tasks.jsonl")
    (tmp_path / "tasks.jsonl").write_text("\n")
    with pytest.raises(adaptrix.RefusedError, match="no line"):
        read_tasks(tmp_path / "tasks.jsonl")
    (tmp_path / "tasks.jsonl").write_text(lines[0] + "\n" + lines[0].replace("Add", "Add.").replace('"1"', '"4"'))
    (task,) = read_tasks(tmp_path / "tasks.jsonl")
    assert (task.descriptions, task.examples) == (("Add.",), (("1", "2"), ("4", "2")))


def test_examples_that_are_too_long_are_refused_and_never_cut(run: Run, tmp_path: Path) -> None:
    code, said = run("text-to-lora", "train", str(_config(tmp_path, length=4)), "-o", "t2l")
    assert code == 1
    assert {problem["code"] for problem in said["problems"]} == {"training-data"}
    assert len(said["problems"]) == 6
    assert not (tmp_path / "t2l").exists()


def _adapter(deltas: dict[str, LowRank]) -> Adapter:
    targets = {Target(path): delta for path, delta in deltas.items()}
    return Adapter("made", targets, {}, Provenance("memory", "made"))


def _low_rank(rng: np.random.Generator, out: int, inp: int, rank: int, alpha: float, **more: Any) -> LowRank:
    A, B = (Tensor.of(rng.standard_normal(shape).astype(np.float32)) for shape in ((rank, inp), (out, rank)))
    return LowRank(A, B, alpha=alpha, **more)


def test_a_library_has_the_adapters_own_changes(tmp_path: Path) -> None:
    """Whatever their ranks and scales; of a fused weight the rows of each part; zero where there is no delta."""
    model = tiny_model("gpt2", 0)
    model.save_pretrained(tmp_path)
    base, rng = Base.of_model(model), np.random.default_rng(0)
    places = base.find_modules(("q", "v", "up"))
    network_shape = _shape(base, places, rank=4)
    inner, hidden = model.config.n_embd * 4, model.config.n_embd
    fused = _low_rank(rng, 3 * hidden, hidden, 2, 5.0, rslora=True)
    B = fused.B.float32().copy()
    B[hidden : 2 * hidden] = 0  # the keys
    deltas = {
        "transformer.h.1.attn.c_attn": LowRank(fused.A, Tensor.of(B), alpha=5.0, rslora=True),
        "transformer.h.2.mlp.c_fc": _low_rank(rng, inner, hidden, 3, 7.0),
    }
    bound = Pipeline().bind(_adapter(deltas), str(tmp_path))
    library = Library.of_adapters([torch.randn(1, 6)], [bound], places, network_shape, scale=1.3)
    found = {name: 1.3 * (B[0] @ A[0]) for name, (A, B) in library.targets.items()}
    whole = torch.from_numpy(deltas["transformer.h.1.attn.c_attn"].dense()).float()
    torch.testing.assert_close(found["q"][1], whole[:hidden], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["v"][1], whole[2 * hidden :], rtol=1e-4, atol=1e-5)
    up = torch.from_numpy(deltas["transformer.h.2.mlp.c_fc"].dense()).float()
    torch.testing.assert_close(found["up"][2], up, rtol=1e-4, atol=1e-5)
    assert not found["q"][0].any()
    assert not found["up"][1].any()
    ones = Tensor.of(np.ones(inner, np.float32))
    odd = {
        "transformer.h.1.attn.c_attn": fused,
        "transformer.h.0.mlp.c_proj": _low_rank(rng, hidden, inner, 2, 1.0),
        "transformer.h.0.mlp.c_fc": _low_rank(rng, inner, hidden, 2, 1.0, magnitude=ones),
    }
    bound = Pipeline().bind(_adapter(odd), str(tmp_path))
    with pytest.raises(adaptrix.RefusedError) as error:
        Library.of_adapters([torch.randn(1, 6)], [bound], places, network_shape, scale=1.3)
    assert sorted(problem.found for problem in error.value.problems) == [
        "it changes k",
        "it is no plain LoRA",
        "the hypernetwork makes no delta there",
    ]


def _shape(base: Base, places: Any, rank: int) -> Any:
    return Shape("L", base.modules(places), base.layers(places), rank, 6, 8, 10)


def test_numbers_that_are_not_finite_are_told_before_a_library_is_learned(
    run: Run, trained: Trained, written: Written, tmp_path: Path
) -> None:
    maker = TextToLoRA(written(tmp_path / "maker", trained(shape_for(str(BASE), "L", 16, rank=2))), BASE, "hashed")
    made = maker.generate("Sing")
    first, delta = next((target, one) for target, one in made.deltas.items() if isinstance(one, LowRank))
    odd = replace(delta, A=Tensor.of(np.full(delta.A.shape, np.inf, np.float32)))
    made = replace(made, deltas={**made.deltas, first: odd})
    adaptrix.convert(made, tmp_path / "odd", to="peft", base=BASE, layers="all", allow_nonfinite=True)
    (tmp_path / "library.jsonl").write_text('{"adapter": "odd", "description": "Sing"}')
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS | {"library": "library.jsonl", "steps": 1}))
    code, said = run("text-to-lora", "train", "run.yaml", "-o", "t2l")
    assert (code, said["problems"][0]["code"]) == (1, "nonfinite"), said
    assert not (tmp_path / "t2l").exists()


def test_no_run_takes_the_place_of_what_it_starts_from(
    run: Run, trained: Trained, written: Written, tmp_path: Path
) -> None:
    folder = written(tmp_path / "t2l", trained(shape_for(str(BASE), "L", 16, rank=2)))
    before = (folder / WEIGHTS).read_bytes()
    code, said = run("text-to-lora", "train", str(_config(tmp_path, start="./t2l")), "-o", "t2l", "--force")
    assert (code, said["problems"][0]["code"]) == (2, "output-taken"), said
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_library_is_learned_from_its_file(run: Run, trained: Trained, written: Written, tmp_path: Path) -> None:
    shape = shape_for(str(BASE), "M", 16, rank=2, latent=8)
    adapters, lines = {}, []
    for number, text in enumerate(("Speak like a pirate", "Write a telegram", "Tell a fairy tale")):
        maker = TextToLoRA(written(tmp_path / f"maker{number}", trained(shape, number)), BASE, "hashed")
        adapters[text] = maker.generate(text)
        out = adaptrix.convert(adapters[text], tmp_path / f"{number}", to="peft", base=BASE, layers="all")
        lines.append({"adapter": out.name, "description": [text, f"Please: {text.lower()}"]})
    (tmp_path / "library.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = SETTINGS | {"library": "library.jsonl", "steps": 400, "rate": 0.01, "dropout": False, "latent": 32}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings | {"head": 64}))
    code, said = run("text-to-lora", "train", "run.yaml", "-o", "t2l")
    assert code == 0, said
    assert said["last"] < 0.25 < 0.7 < said["first"]
    made = TextToLoRA(tmp_path / "t2l", BASE).generate("Please: write a telegram")
    apart = {text: _apart(made, adapter) for text, adapter in adapters.items()}
    assert apart.pop("Write a telegram") < 0.2
    assert min(apart.values()) > 1


def _apart(one: Adapter, other: Adapter) -> float:
    """‖ΔW − ΔW'‖ / ‖ΔW'‖ of all modules together."""
    pairs = [(one.deltas[target].dense(), delta.dense()) for target, delta in other.deltas.items()]
    found, wanted = (np.concatenate([part.ravel() for part in side]) for side in zip(*pairs, strict=True))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_checkpoint_is_imported_without_a_base(run: Run, trained: Trained, written: Written, tmp_path: Path) -> None:
    shape = Shape("S", (Module("v_proj", 12, 7), Module("q_proj", 12, 18)), 3, 8, embedding=9, latent=16, head_in=11)
    network = trained(shape)
    source = written(tmp_path / "theirs", network)
    code, said = run("text-to-lora", "import", str(source / WEIGHTS), "-o", "ours")
    assert code == 0, said
    assert [module["name"] for module in said["modules"]] == ["v_proj", "q_proj"]
    assert (said["variant"], said["rank"], said["alpha"], said["rslora"]) == ("S", 8, 16.0, True)
    assert said["scale"] == pytest.approx(16 / 8**0.5)
    assert said["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    found = read_checkpoint(str(tmp_path / "ours"))
    assert found.hypernetwork.shape == shape
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.hypernetwork.state_dict()[name], tensor), name
    theirs, ours = (TextToLoRA(folder, encoder="hashed").generate("Add") for folder in (source, tmp_path / "ours"))
    for target, delta in theirs.deltas.items():
        assert delta.A.tobytes() == ours.deltas[target].A.tobytes()
    code, said = run("text-to-lora", "import", str(source))
    assert (code, said["path"]) == (0, None)
    assert run("text-to-lora", "import", str(source), "-o", str(source), "--force")[0] == 2
    (source / WEIGHTS).write_bytes(b"no checkpoint")
    code, said = run("text-to-lora", "import", str(source), "-o", "never")
    assert code == 1
    assert not (tmp_path / "never").exists()
