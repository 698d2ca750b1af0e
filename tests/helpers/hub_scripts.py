"""What runs in the processes that :mod:`tests.helpers.hub_server` starts."""

#: runs at start of every process with hub.env(): audit events come from C, so nothing gets around them
GUARD = """
import os, sys

def guard(event, args):
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
        raise RuntimeError(f"network guard: name lookup of {args[0]!r}")
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        if args[1][0] not in ("127.0.0.1", "::1") or args[1][1] != int(os.environ["HUB_TEST_PORT"]):
            raise RuntimeError(f"network guard: {event} {args[1]!r}")

sys.addaudithook(guard)
"""

#: reads calls from stdin, prints results
CLIENT = """
import json, sys
from tests.helpers.format_stand_ins import FORMATS
from adaptrix.errors import AdaptrixError
from adaptrix.sources import hub
assert "huggingface_hub" not in sys.modules, "importing the source must not import the client"

def run(what, uri):
    try:
        if what == "config":
            return {"config": dict(hub.config(uri))}
        if what == "quiet":
            return hub.quiet()
        bundle = hub.fetch(uri, FORMATS)
    except AdaptrixError as error:
        return {"error": type(error).__name__, "problems": [p.as_dict() for p in error.problems], "text": str(error)}
    files = {name: str(path) for name, path in bundle.files.items()}
    problems = [problem.as_dict() for problem in bundle.problems]
    return {"uri": bundle.uri, "name": bundle.name, "commit": bundle.commit, "files": files, "problems": problems}

print(json.dumps([run(*call) for call in json.load(sys.stdin)]))
"""
