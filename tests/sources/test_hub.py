"""The Hub source with the real client against a loopback Hub, all other network being refused."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers import hub_server, sources
from tests.helpers.hub_scripts import CLIENT
from tests.helpers.hub_server import TOKEN, Hub, code
from tests.helpers.sources import BIN, CONFIG, LORA, NAME, SAFE, content, full_model, one

hub = hub_server.hub
published = sources.published


class TestFetching:
    def test_the_published_alpaca(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        result = one(hub, hub.env(tmp_path), NAME)
        commit = hub.repos[NAME].revisions["main"]
        assert content(result) == published
        assert (result["uri"], result["name"], result["commit"], result["problems"]) == (
            NAME,
            "alpaca-lora-7b",
            commit,
            [],
        )
        asked = hub.asked()
        assert asked[:-1] == [
            f"GET /api/models/{NAME}",
            f"HEAD /{NAME}/resolve/main/{CONFIG}",
            f"GET /{NAME}/resolve/main/{CONFIG}",
            f"HEAD /{NAME}/resolve/{commit}/{BIN}",
        ]
        assert asked[-1].startswith("GET /cdn/")

    def test_again_it_costs_one_request(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        first = one(hub, env, NAME)
        hub.asked()
        assert one(hub, env, NAME) == first
        assert hub.asked() == [f"GET /api/models/{NAME}"]

    def test_a_commit_is_taken_and_kept(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        old = hub.repos[NAME].revisions["main"]
        hub.add_repo(NAME, LORA)
        env = hub.env(tmp_path)
        result = one(hub, env, f"{NAME}@{old}")
        assert (result["commit"], result["uri"], content(result)) == (old, f"{NAME}@{old}", published)
        assert one(hub, env | {"HF_HUB_OFFLINE": "1"}, f"{NAME}@{old}")["files"] == result["files"]

    def test_a_new_commit_is_fetched(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        one(hub, env, NAME)
        new = hub.add_repo(NAME, LORA)
        assert one(hub, env, NAME)["commit"] == new
        assert one(hub, env | {"HF_HUB_OFFLINE": "1"}, NAME)["commit"] == new

    def test_a_push_between_two_requests_mixes_nothing(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo(NAME, {CONFIG: "old", SAFE: "old"})
        hub.after_listing = lambda: hub.add_repo(NAME, {CONFIG: "new", SAFE: "new"})
        result = one(hub, hub.env(tmp_path), NAME)
        assert content(result) == {CONFIG: b"new", SAFE: b"new"}
        assert result["commit"] == hub.repos[NAME].revisions["main"]

    def test_safetensors_come_first_and_bin_is_left_alone(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo(NAME, {CONFIG: "{}", BIN: "b", SAFE: "s", "optimizer.pt": "o", "model.safetensors": "m"})
        assert content(one(hub, hub.env(tmp_path), NAME)) == {CONFIG: b"{}", SAFE: b"s"}
        assert not any(BIN in request or "optimizer" in request or "/model." in request for request in hub.asked())

    def test_an_injection_file(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/mine", {"README.md": "", "alpaca.adaptrix.safetensors": "x"})
        result = one(hub, hub.env(tmp_path), "me/mine")
        assert (result["name"], list(result["files"])) == ("alpaca", ["alpaca.adaptrix.safetensors"])

    def test_revisions(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/mine", {"README.md": ""})
        commits = {name: hub.add_repo("me/mine", LORA, name) for name in ("v1.0", "refs/pr/1", "feature/a-b")}
        results = hub.client(hub.env(tmp_path), *(("fetch", f"hf://me/mine@{name}") for name in commits))
        assert [result["commit"] for result in results] == list(commits.values())

    def test_the_token_is_sent_to_the_hub_alone(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        one(hub, hub.env(tmp_path, token=TOKEN), NAME)
        sent = {request.host.partition(":")[0]: request.authorization for request in hub.requests}
        assert sent == {"127.0.0.1": TOKEN, "localhost": None}

    def test_a_download_that_breaks_off_goes_on(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo(NAME, {CONFIG: "{}", BIN: b"x" * 25_000_000})  # the client keeps pieces of 10 MB
        hub.cuts = 1
        assert len(content(one(hub, hub.env(tmp_path), NAME))[BIN]) == 25_000_000
        assert [request.status for request in hub.requests if "/cdn/" in request.path] == [200, 206]
        assert "Traceback" not in hub.stderr

    def test_the_page_of_a_repository(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/mine", {f"sub/{name}": data for name, data in LORA.items()})
        page = f"{hub.endpoint}/me/mine"
        results = hub.client(
            hub.env(tmp_path), ("fetch", page), ("fetch", f"{page}/tree/main/sub"), ("fetch", "https://x.test/a/b")
        )
        assert [result.get("uri") for result in results] == ["me/mine/sub", "me/mine/sub@main", None]
        assert results[2]["error"] == "UsageError"


class TestFolders:
    def test_of_a_repository(self, hub: Hub, tmp_path: Path) -> None:
        files = {f"{folder}/{name}": folder for folder in ("math", "deep/code") for name in LORA}
        commit = hub.add_repo("me/many", files)
        top, math, code_, gone = hub.client(
            hub.env(tmp_path),
            *(("fetch", f"me/many{rest}") for rest in ("", "/math/", f"/deep/code@{commit}", "/none")),
        )
        assert code(top) == "several-adapters"
        assert "\n    adaptrix convert me/many/deep/code\n    adaptrix convert me/many/math" in top["text"]
        assert (math["uri"], math["name"], set(content(math).values())) == ("me/many/math", "math", {b"math"})
        assert (code_["uri"], set(content(code_).values())) == (f"me/many/deep/code@{commit}", {b"deep/code"})
        assert (code(gone), gone["error"]) == ("hub-file-missing", "UnreachableError")
        assert "there is deep, math" in gone["text"]

    def test_the_only_one(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/one", {"README.md": "", **{f"math/{name}": "" for name in LORA}})
        env = hub.env(tmp_path)
        result = one(hub, env, "me/one")
        assert (result["uri"], result["name"], list(result["files"])) == ("me/one/math", "math", [CONFIG, SAFE])
        assert one(hub, env | {"HF_HUB_OFFLINE": "1"}, "me/one")["files"] == result["files"]

    def test_several_injection_files_and_one_of_them(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/files", {f"out/{name}.adaptrix.safetensors": name for name in "ab"})
        both, single = hub.client(
            hub.env(tmp_path), ("fetch", "me/files"), ("fetch", "me/files/out/b.adaptrix.safetensors")
        )
        assert "adaptrix convert me/files/out/a.adaptrix.safetensors" in both["text"]
        assert (single["name"], content(single)) == ("b", {"b.adaptrix.safetensors": b"b"})

    def test_a_checkpoint_and_a_file_are_two_adapters(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/both", {**LORA, "old.adaptrix.safetensors": "old"})
        env = hub.env(tmp_path)
        uris = ("me/both", f"me/both/{CONFIG}", "me/both/old.adaptrix.safetensors")
        both, peft, old = hub.client(env, *(("fetch", uri) for uri in uris))
        assert code(both) == "several-adapters"
        assert all(f"\n    adaptrix convert {uri}" in both["text"] for uri in uris[1:])
        assert (peft["name"], list(peft["files"]), list(old["files"])) == ("both", [CONFIG, SAFE], [uris[2][8:]])

    def test_what_is_suggested_can_be_typed(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        adaptrix = (sys.executable, "-m", "adaptrix")
        for name in "ab":
            done = hub.run(env, *adaptrix, "convert", str(tmp_path / "published"), "-o", name)
            assert done.returncode == 0, done.stderr
        files = {f"out/{name}.adaptrix.safetensors": tmp_path / name for name in "ab"}
        hub.add_repo("me/files", {**files, **{f"out/{name}": data for name, data in published.items()}})
        typo = hub.run(env, *adaptrix, "check", "outs/mine.safetensors")
        assert "there is no folder outs here" in typo.stderr
        refused = hub.run(env, *adaptrix, "convert", "me/files")
        typed = [shlex.split(line) for line in refused.stderr.splitlines() if line.startswith("    adaptrix convert")]
        assert (refused.returncode, len(typed)) == (1, 3)
        for number, (_, *args) in enumerate(typed):
            done = hub.run(env, *adaptrix, *args, "-o", f"{number}.adaptrix.safetensors")
            assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr


class TestNothingFit:
    def test_a_full_model_is_not_downloaded(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("meta/llama", full_model())
        result = one(hub, hub.env(tmp_path), "meta/llama")
        assert (code(result), result["error"]) == ("full-model", "RefusedError")
        assert "this is a full model (" in result["text"]
        assert hub.asked() == ["GET /api/models/meta/llama"]

    def test_other_repositories(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/half", {CONFIG: "{}"})
        hub.add_repo("me/other-half", {BIN: ""})
        hub.add_repo("me/empty", {})
        hub.add_repo("me/card", {"README.md": ""})
        hub.add_repo("me/huge-config", {CONFIG: "x" * 10_000_001, BIN: ""})
        names = ("half", "other-half", "empty", "card", "huge-config")
        results = hub.client(hub.env(tmp_path), *(("fetch", f"me/{name}") for name in names))
        assert [code(result) for result in results] == [
            "adapter-weights-missing",
            "adapter-config-missing",
            "adapter-missing",
            "adapter-missing",
            "file-too-large",
        ]
        assert len(hub.asked()) == len(names)


class TestConfig:
    def test_config_json_and_nothing_else(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("gpt2", full_model())
        hub.add_repo("me/base", {f"sub/{name}": data for name, data in full_model().items()})
        env = hub.env(tmp_path)
        calls = [("config", uri) for uri in ("gpt2", "me/base/sub")]
        expected = [{"config": {"model_type": "llama"}}] * 2
        assert hub.client(env, *calls) == expected  # type: ignore[arg-type]
        assert hub.asked()[:3] == [
            "GET /api/models/gpt2",
            *(f"{it} /gpt2/resolve/main/config.json" for it in ("HEAD", "GET")),
        ]
        assert hub.client(env | {"HF_HUB_OFFLINE": "1"}, *calls) == expected  # type: ignore[arg-type]
        assert hub.asked() == []

    def test_what_a_caller_may_meet(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/none", {"model.safetensors": ""})
        hub.add_repo("me/gated", full_model(), gated=True)
        hub.add_repo("me/list", {"config.json": "[]"})
        hub.add_repo("me/huge", {"config.json": "x" * 10_000_001})
        uris = ("decapoda-research/llama-7b-hf", "me/none", "me/gated", "me/list", "me/huge", "a--b/c")
        results = hub.client(hub.env(tmp_path), *(("config", uri) for uri in uris))
        assert [(result["error"], code(result)) for result in results] == [
            ("UnreachableError", "hub-not-found"),
            ("UnreachableError", "hub-file-missing"),
            ("UnreachableError", "hub-access"),
            ("RefusedError", "json-invalid"),
            ("RefusedError", "file-too-large"),
            ("UsageError", "address"),
        ]
        assert results[3]["problems"][0]["where"] == "me/list/config.json"


class TestProgress:
    @pytest.mark.parametrize(("before", "seen"), [((), True), ((("quiet", ""),), False)])
    def test_on_a_terminal(
        self, hub: Hub, tmp_path: Path, published: dict[str, bytes], before: tuple[tuple[str, str]], seen: bool
    ) -> None:
        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 120))
        env = hub.env(tmp_path, TERM="xterm")
        calls = json.dumps([*before, ("fetch", NAME)])
        done = subprocess.run(
            [sys.executable, "-c", CLIENT], env=env, input=calls.encode(), stdout=-1, stderr=end, timeout=60
        )
        os.close(end)
        assert done.returncode == 0
        assert (b"100%|" in _all(terminal)) is seen

    def test_into_a_file(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        one(hub, hub.env(tmp_path), NAME)
        assert hub.stderr == ""

    @pytest.mark.parametrize("value", ["0", "1"])
    def test_quiet_once_the_client_is_there(self, hub: Hub, tmp_path: Path, value: str) -> None:
        env = hub.env(tmp_path, HF_HUB_DISABLE_PROGRESS_BARS=value)
        script = "import huggingface_hub.constants; from adaptrix.sources import hub; hub.quiet()"
        assert hub.run(env, sys.executable, "-W", "error", "-c", script).stderr == ""


def _all(terminal: int) -> bytes:
    read = b""
    try:
        while piece := os.read(terminal, 65536):
            read += piece
    except OSError:  # Linux' way to say that the other end is closed
        pass
    os.close(terminal)
    return read
