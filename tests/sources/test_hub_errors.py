"""What the Hub source says when it cannot fetch: no access, no network, no room, no such name."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import sys
from pathlib import Path

import pytest

from adaptrix.errors import UsageError
from adaptrix.sources import hub as source
from adaptrix.sources.hub_address import Address, parse
from adaptrix.sources.hub_errors import unreachable
from tests.helpers import hub_server, sources
from tests.helpers.hub_scripts import CLIENT
from tests.helpers.hub_server import TOKEN, Hub, code
from tests.helpers.sources import BIN, CONFIG, LORA, NAME, SAFE, content, one

hub = hub_server.hub
published = sources.published


class TestNoAccess:
    def test_gated(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/gated", LORA, gated=True)
        env = hub.env(tmp_path)
        for result in (one(hub, env, "me/gated"), one(hub, env | {"HF_TOKEN": TOKEN}, "me/gated")):
            assert (code(result), result["error"]) == ("hub-access", "UnreachableError")
            assert (
                f"Accept its terms at {hub.endpoint}/me/gated, then log in with `hf auth login` or set"
                in result["text"]
            )
        hub.granted.add(TOKEN)
        assert content(one(hub, env | {"HF_TOKEN": TOKEN}, "me/gated"))[SAFE] == b"weights"

    def test_private_missing_disabled_revision(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo("me/private", LORA, private=True)
        hub.add_repo("me/disabled", LORA, disabled=True)
        hub.add_repo("me/mine", LORA)
        calls = [("fetch", f"me/{name}") for name in ("private", "no", "disabled", "mine@no", "mine@main/sub")]
        env = hub.env(tmp_path)
        results = hub.client(env, *calls)  # type: ignore[arg-type]
        assert {result["error"] for result in results} == {"UnreachableError"}
        assert list(map(code, results)) == [
            "hub-not-found",
            "hub-not-found",
            "hub-access",
            *["hub-revision-missing"] * 2,
        ]
        assert "the revision goes last" in results[4]["text"]
        private, missing = hub.client(env | {"HF_TOKEN": TOKEN}, *calls[:2])  # type: ignore[arg-type]
        assert (content(private)[SAFE], code(missing)) == (b"weights", "hub-not-found")

    def test_a_token_that_is_none(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        assert code(one(hub, hub.env(tmp_path, token="hf_bad"), NAME)) == "hub-access"

    @pytest.mark.parametrize("token", ["hf_se cret\x7f", "hf_sécret"])
    def test_a_token_that_cannot_be_sent_is_not_shown(
        self, hub: Hub, tmp_path: Path, published: dict[str, bytes], token: str
    ) -> None:
        result = one(hub, hub.env(tmp_path, token=token), NAME)
        assert result["error"] == "UnreachableError"
        assert token not in json.dumps(result, ensure_ascii=False) + hub.stderr
        assert "cret" not in result["text"]

    def test_a_path_may_have_been_meant(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        result = one(hub, hub.env(tmp_path), "out/lora")
        assert "If a path was meant: the folder out is here, but not out/lora in it." in result["text"]


class TestOutOfReach:
    def test_what_the_hub_says(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        before = one(hub, env, NAME)
        expected = {
            500: "hub-server-error",
            503: "hub-server-error",
            429: "hub-rate-limit",
            403: "hub-access",
            400: "hub-failed",
            200: "hub-unreachable",  # a captive portal
        }
        for status, expect in expected.items():
            hub.fail(status, body="<html>")
            fresh, cached = hub.client(env, ("fetch", "me/mine"), ("fetch", NAME))
            assert (code(fresh), fresh["error"]) == (expect, "UnreachableError")
            assert cached["files"] == before["files"]
            assert [(it["code"], it["severity"]) for it in cached["problems"]] == [("hub-from-cache", "warning")]
            hub.failures.clear()

    def test_no_answer(self, hub: Hub, tmp_path: Path) -> None:
        hub.delay = 1.5
        env = hub.env(tmp_path, HF_HUB_ETAG_TIMEOUT="1")
        assert code(one(hub, env, NAME)) == "hub-unreachable"

    @pytest.mark.parametrize(
        ("endpoint", "expected"),
        [
            ("http://127.0.0.1:{}", "hub-unreachable"),
            ("https://127.0.0.1:{}/hub", "hub-unreachable"),
            ("127.0.0.1:{}", "hub-unreachable"),
            ("", "hub-unreachable"),
        ],
    )
    def test_no_hub(self, hub: Hub, tmp_path: Path, endpoint: str, expected: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        result = one(hub, hub.env(tmp_path, HF_ENDPOINT=endpoint.format(port), HUB_TEST_PORT=port), NAME)
        assert (code(result), result["error"]) == (expected, "UnreachableError")

    def test_a_hub_without_tls_where_it_is_expected(self, hub: Hub, tmp_path: Path) -> None:
        result = one(hub, hub.env(tmp_path, HF_ENDPOINT=hub.endpoint.replace("http:", "https:")), NAME)
        assert code(result) == "hub-unreachable"

    def test_an_endpoint_that_the_client_does_not_survive(self, hub: Hub, tmp_path: Path) -> None:
        env = hub.env(tmp_path, HF_ENDPOINT="http://[")
        results = hub.client(env, ("fetch", NAME), ("config", NAME), ("fetch", "https://hub.test/a/b"))
        assert [(result["error"], code(result)) for result in results] == [("UsageError", "hub-client")] * 3

    def test_offline_from_the_cache(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        online = one(hub, env, NAME)
        hub.requests.clear()
        offline = one(hub, env | {"HF_HUB_OFFLINE": "1"}, NAME)
        assert hub.requests == []
        (note,) = offline.pop("problems")
        assert offline.items() <= online.items()
        assert (note["code"], note["severity"]) == ("hub-from-cache", "note")

    def test_offline_without_it(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path, HF_HUB_OFFLINE="1")
        result = one(hub, env, NAME)
        assert (code(result), result["error"]) == ("hub-offline", "UnreachableError")
        assert "Unset HF_HUB_OFFLINE" in result["text"]
        assert str(tmp_path) in result["text"]

    def test_offline_with_a_part_of_it(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        one(hub, env, NAME)
        (snapshot,) = (tmp_path / "hf" / "hub").glob("models--*/snapshots/*")
        (snapshot / BIN).unlink()
        assert code(one(hub, env | {"HF_HUB_OFFLINE": "1"}, NAME)) == "hub-offline"

    def test_gone_from_the_hub(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        one(hub, env, NAME)
        del hub.repos[NAME]
        (warning,) = one(hub, env, NAME)["problems"]
        assert "there is no model tloen/alpaca-lora-7b" in warning["found"]
        assert "The copy in the cache is used, which is commit" in warning["remedy"]

    def test_a_cache_filled_by_the_client_itself(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        env = hub.env(tmp_path)
        script = (
            f"from huggingface_hub import hf_hub_download as get; [get({NAME!r}, n) for n in ({CONFIG!r}, {BIN!r})]"
        )
        assert hub.run(env, sys.executable, "-c", script).returncode == 0
        assert content(one(hub, env | {"HF_HUB_OFFLINE": "1"}, NAME)) == published

    def test_the_guard_guards(self, hub: Hub, tmp_path: Path) -> None:
        for call in ("create_connection(('127.0.0.2', 80))", "getaddrinfo('hub.test', 80)"):
            done = hub.run(hub.env(tmp_path), sys.executable, "-c", f"import socket; socket.{call}")
            assert "network guard" in done.stderr


class TestDisk:
    def test_full(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_repo(NAME, {CONFIG: "{}", SAFE: "x" * 1_000_000})
        command = ("sh", "-c", 'ulimit -f 200; exec "$0" -c "$1"', sys.executable, CLIENT)
        done = hub.run(hub.env(tmp_path), *command, stdin=json.dumps([("fetch", NAME)]))
        (result,) = json.loads(done.stdout)
        assert (code(result), result["error"]) == ("disk-full", "UnreachableError")
        assert not list(tmp_path.rglob("*.incomplete"))

    def test_a_cache_that_is_no_folder(self, hub: Hub, tmp_path: Path, published: dict[str, bytes]) -> None:
        (tmp_path / "file").write_text("")
        assert code(one(hub, hub.env(tmp_path, HF_HOME=str(tmp_path / "file")), NAME)) == "permission-denied"


class TestAddresses:
    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("owner/name", Address("owner/name")),
            ("hf://owner/name", Address("owner/name")),
            ("hf://models/owner/name@v1", Address("owner/name", "", "v1")),
            ("gpt2", Address("gpt2")),
            ("o/n/sub/folder@refs/pr/1", Address("o/n", "sub/folder", "refs/pr/1")),
            ("o/n/sub/", Address("o/n", "sub")),
        ],
    )
    def test_forms(self, uri: str, expected: Address) -> None:
        assert source.claims(uri)
        assert parse(uri) == expected
        assert parse(str(expected)) == expected

    @pytest.mark.parametrize(
        "uri",
        [
            "hf://", "hf://../x", "a--b/c", "o/n.git", "o/n/../x", "o/n//x", "o/n@", "o/n@/etc/passwd", "o/n@../../x",
            "o/n@a b", "o/n@a//b", "o/n@a~1", "hf://datasets/o/n", "datasets/o/n", "hf://é/x", "x" * 200, "hf://o",
        ],
    )  # fmt: skip
    def test_what_is_none(self, uri: str) -> None:
        if uri == "hf://o":
            assert parse(uri) == Address("o")  # a base of old
            return
        with pytest.raises(UsageError) as caught:
            parse(uri)
        assert caught.value.problems[0].code == "address"
        assert "owner/name@revision" in str(caught.value)

    @pytest.mark.parametrize("uri", ["", "./x", "/x", "~/x", "../x", "a b", "a\nb", "a/b\\c", "-o/x"])
    def test_what_is_not_claimed(self, uri: str) -> None:
        assert not source.claims(uri)

    def test_one_word_is_no_adapter(self) -> None:
        with pytest.raises(UsageError, match="there is no such folder here"):
            source.fetch("alpaca", ())


class TransportError(Exception):
    """Stands for any HTTP library's, which are told apart by name."""


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (ConnectionRefusedError(111, "Connection refused"), "does not accept connections"),
        (ssl.SSLCertVerificationError(1, "certificate has expired"), "no secure connection"),
        (TimeoutError(), "in time"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot be reached"),
        (PermissionError(1, "Operation not permitted"), "cannot be reached"),  # a firewall's, not the disk's
    ],
)
def test_the_cause_counts(cause: OSError, expected: str) -> None:
    error = TransportError(str(cause))
    error.__cause__ = cause
    problem = unreachable(error, Address("o/n")).problems[0]
    assert problem.code == "hub-unreachable"
    assert expected in problem.found


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission-denied"),
        (OSError("Consistency check failed: file should be of size 2"), "hub-unreachable"),
        (ValueError("The file is too large to be downloaded"), "hub-failed"),
    ],
)
def test_without_a_network_in_it(error: Exception, expected: str) -> None:
    problem = unreachable(error, Address("o/n")).problems[0]
    assert (problem.code, problem.where) == (expected, "o/n")
    assert problem.remedy
