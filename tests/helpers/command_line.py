"""The command line in this process: a folder to work in, what was said, what was left behind."""

import contextlib
import faulthandler
import sys

from adaptrix import cli
from tests.helpers.json_documents import document

#: for one command; far more than any takes: what is slow is measured elsewhere, here nothing may hang
LIMIT = 300


class Place:
    """A folder with a checkpoint in it, and an empty one in it where the command runs."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys

    def run(self, *args):
        """The exit code, and what was said on standard output and standard error."""
        self.capsys.readouterr()
        with ending():
            code = cli.run([str(arg) for arg in args])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        assert "internal error" not in out + err
        if "--json" in args and code < 128:  # else it was interrupted
            document(out, code)
        return code, out, err

    def convert(self, case, *more):
        return self.run("convert", *case.command(self.folder), *more)

    def files(self):
        """Everything below the folder, hidden or not, and when each file was written."""
        found = {path: path.lstat() for path in self.folder.rglob("*")}
        return {str(path): path.is_dir() or (status.st_size, status.st_mtime_ns) for path, status in found.items()}


@contextlib.contextmanager
def ending():
    """The process ends, and says where it was, if what is done in here has no end."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def placed(tmp_path, capsys, monkeypatch):
    """The place of a test, offline."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    offline(monkeypatch)
    monkeypatch.delenv("ADAPTRIX_TRACEBACK", raising=False)
    return Place(tmp_path, capsys)


def offline(monkeypatch):
    """No test asks the Hub for what a mutation made of a base's name; the environment is read at import only."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
