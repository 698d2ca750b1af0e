"""A base on the Hub: all of its weights are fetched, and nothing that is not the model."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import hub_server
from tests.helpers.hub_server import TOKEN
from tests.helpers.merge_models import pair, tensors

hub = hub_server.hub
BASE = "someone/base"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = pair(tmp_path_factory.mktemp("made"), shard="20KB", targets=["q_proj"])
    for name in ("pytorch_model.bin", "consolidated.safetensors", "training_args.bin", "README.md"):
        (found.base / name).write_text("x" * 100)
    (found.base / "tokenizer.json").write_text("{}")
    return found


def merge(hub, env, made, base, out):
    done = hub.run(env, sys.executable, "-m", "adaptrix", "merge", str(made.adapter), "--base", base, "-o", str(out))
    assert "Traceback" not in done.stderr
    return done


def test_what_is_fetched_and_what_is_not(hub, tmp_path, made):
    commit = hub.add_repo(BASE, made.base)
    done = merge(hub, hub.env(tmp_path), made, BASE, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    asked = {path.rpartition("/")[2] for path in hub.asked() if "/resolve/" in path}
    weights = {path.name for path in made.base.glob("model-*.safetensors")}
    assert asked == {
        *weights,
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    }
    made.merge(tmp_path / "local")
    for file in (tmp_path / "local").glob("model*"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    record = json.loads((tmp_path / "out" / "adaptrix_merge.json").read_text())
    assert record["base"] == {"model": BASE, "commit": commit}


def test_a_folder_of_a_repository_at_a_revision(hub, tmp_path, made):
    files = {f"deep/{path.name}": path for path in made.base.iterdir()}
    hub.add_repo(BASE, files, revision="v1")
    done = merge(hub, hub.env(tmp_path), made, f"{BASE}/deep@v1", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_offline_the_cache_is_enough(hub, tmp_path, made):
    hub.add_repo(BASE, made.base)
    env = hub.env(tmp_path)
    assert merge(hub, env, made, BASE, tmp_path / "one").returncode == 0
    hub.asked()
    assert merge(hub, env | {"HF_HUB_OFFLINE": "1"}, made, BASE, tmp_path / "two").returncode == 0
    assert hub.asked() == []


def test_offline_without_a_cache(hub, tmp_path, made):
    done = merge(hub, hub.env(tmp_path) | {"HF_HUB_OFFLINE": "1"}, made, BASE, tmp_path / "out")
    assert done.returncode == 3
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_cache_that_has_the_config_alone(hub, tmp_path, made):
    """As `adaptrix check --base` leaves it."""
    hub.add_repo(BASE, made.base)
    env = hub.env(tmp_path)
    hub.run(env, sys.executable, "-m", "adaptrix", "check", str(made.adapter), "--base", BASE)
    done = merge(hub, env | {"HF_HUB_OFFLINE": "1"}, made, BASE, tmp_path / "out")
    assert done.returncode != 0
    assert "model.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gated_base(hub, tmp_path, made):
    hub.add_repo(BASE, made.base, gated=True)
    done = merge(hub, hub.env(tmp_path, token=TOKEN), made, BASE, tmp_path / "out")
    assert done.returncode == 3
    assert "granted" in done.stderr


def test_the_hub_fails_half_way(hub, tmp_path, made):
    hub.add_repo(BASE, made.base)
    hub.fail(500, "model-00002")
    done = merge(hub, hub.env(tmp_path), made, BASE, tmp_path / "out")
    assert done.returncode == 3
    assert "an error of its own (HTTP 500)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_fetched_where_there_are_no_others(hub, tmp_path, made):
    files = {path.name: path for path in made.base.iterdir() if not path.name.startswith(("model", "pytorch_model"))}
    shards = [load_file(path) for path in made.base.glob("model-*.safetensors")]
    torch.save({name: tensor for shard in shards for name, tensor in shard.items()}, tmp_path / "pytorch_model.bin")
    hub.add_repo(BASE, files | {"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    done = merge(hub, hub.env(tmp_path), made, BASE, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    made.merge(tmp_path / "local")
    found, wanted = ({n: t.tobytes() for n, t in tensors(tmp_path / f).items()} for f in ("out", "local"))
    assert found == wanted
