"""What peft and adaptrix make of checkpoints as people really have them.

    python benchmarks/bad_input.py [CASE ...]

Every case of ``benchmarks/checkpoints.py`` goes through ``PeftModel.from_pretrained`` on its tiny base, through
``load_adapter`` beside a good adapter, and through ``adaptrix convert``. Whether peft loaded what was meant is
read off the logits. peft runs in a process of its own, which is replaced where a case takes it down or makes it
hang. Prints a table in Markdown, and counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks.checkpoints import BAD, GOOD, UNTELLABLE, Case
from benchmarks.draft import BASES, Draft

SECONDS = 10.0  # for one case; all but the hanging ones take less than one
LONGEST = 90  # characters of a message in the table
NOT_ASKED = "—"


# -- peft, in a process of its own ------------------------------------------------------------------------------------


def serve() -> None:
    """Answers requests, a JSON line each, until there are no more. Whatever a case prints goes elsewhere."""
    answers, sys.stdout = sys.stdout, sys.stderr
    from benchmarks import peft_verdict

    for line in sys.stdin:
        print(json.dumps(peft_verdict.verdicts(**json.loads(line))), file=answers, flush=True)


class Peft:
    """The process that runs peft; a fresh one after each that died or had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def verdicts(self, case: Case, folder: Path, good: Path) -> dict[str, str]:
        """What from_pretrained and load_adapter make of the adapter in ``folder``."""
        place = case.source if case.folder == "adapter" else case.folder
        request = {"base": BASES[case.base], "folder": str(folder / place), "good": str(good)}
        if self._process is None:
            self._process = self._started()
            self._ask({"base": BASES[case.base], "folder": str(good), "good": str(good)}, 60.0)  # imports, once
        return self._ask(request, SECONDS)

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", __file__, "--serve"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, text=True, **pipes)

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, str]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(seconds, process.kill)
        late.start()
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        timely = late.is_alive()
        late.cancel()
        if line:
            return dict(json.loads(line))
        self.close()
        said = "crashes" if timely else f"hangs: no end after {seconds:.0f} s"
        return {"from_pretrained": said, "load_adapter": said}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


# -- adaptrix ---------------------------------------------------------------------------------------------------------


def adaptrix_verdict(case: Case, folder: Path) -> str:
    """What ``adaptrix convert`` makes of a case: the first error, or that it was accepted."""
    from adaptrix import cli

    said = io.StringIO()
    out = str(folder / "out.adaptrix.safetensors")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = cli.run(["convert", *case.command(folder), "-o", out, "--json"])
    (result,) = json.loads(said.getvalue())["results"]
    if code == 0:
        return "reads it"
    first = next(problem for problem in result["problems"] if problem["severity"] == "error")
    text = f"{first['where']}: {first['found']}".replace(f"{folder}/", "")
    more = len(result["problems"]) - 1
    return f"refuses: {text}" + (f" (and {more} more)" if more else "")


# -- the table --------------------------------------------------------------------------------------------------------


def rows(cases: Mapping[str, Case], peft: Peft, home: Path) -> Iterator[tuple[str, dict[str, str], str]]:
    """Name, peft's verdicts, adaptrix's verdict."""
    for name, case in cases.items():
        folder = home / f"case{len(list(home.iterdir()))}"
        case.write(folder)
        asked = peft.verdicts(case, folder, home / case.base / "adapter") if case.peft else {}
        said = {how: text.replace(f"{folder}/", "") for how, text in asked.items()}
        yield name, said, adaptrix_verdict(case, folder)


def cell(text: str) -> str:
    """A text that fits into a table."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def table(title: str, cases: Mapping[str, Case], peft: Peft, home: Path) -> list[tuple[dict[str, str], str]]:
    """Prints the rows of some cases; the verdicts."""
    print(f"\n### {title}\n\n| case | peft: from_pretrained | peft: load_adapter | adaptrix |")
    print("| --- | --- | --- | --- |")
    found = []
    for name, asked, ours in rows(cases, peft, home):
        if title == "Good":
            asked = {how: read(verdict) for how, verdict in asked.items()}
        first, second = (asked.get(how, NOT_ASKED) for how in ("from_pretrained", "load_adapter"))
        second = "the same" if first == second != NOT_ASKED else second
        print("| " + " | ".join(map(cell, (name, first, second, ours))) + " |", flush=True)
        found.append((asked, ours))
    return found


def read(verdict: str) -> str:
    """The verdict on a good adapter: it need not act like the plain one, only act."""
    how, _, effect = verdict.partition(": ")
    return {"silent": "reads it", "warns": "reads it, and warns"}[how] if effect.startswith("acts") else verdict


def count(verdicts: list[str]) -> str:
    """How often each kind of verdict came; what was refused is one kind, whatever was said."""
    kinds = Counter("refuses" if verdict.startswith("refuses") else verdict for verdict in verdicts)
    return ", ".join(f"{number} × {verdict}" for verdict, number in kinds.most_common()) or "none"


def summary(title: str, found: list[tuple[dict[str, str], str]]) -> None:
    """Prints how many of the cases each has refused."""
    asked = [verdicts for verdicts, _ in found if verdicts]
    print(f"\n{title}: {len(found)} cases, {len(asked)} of which mean anything to peft")
    for how in ("from_pretrained", "load_adapter"):
        print(f"- peft, {how}: {count([verdicts[how] for verdicts in asked])}")
    print(f"- adaptrix: {count([ours for _, ours in found])}")


def main(names: list[str]) -> None:
    """Prints the tables and the counts; ends with 1 where adaptrix accepts a bad case or refuses a good one."""
    tables = {"Bad": BAD, "Good": GOOD, "Wrong, and nothing shows it": UNTELLABLE}
    peft, results = Peft(), {}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        for family in BASES:
            Draft(family).write(home / family)
        for title, cases in tables.items():
            chosen = {name: case for name, case in cases.items() if not names or name in names}
            results[title] = table(title, chosen, peft, home)
        peft.close()
    for title, found in results.items():
        summary(title, found)
    accepted = sum(ours == "reads it" for _, ours in results["Bad"])
    refused = sum(ours != "reads it" for _, ours in results["Good"])
    sys.exit(bool(accepted or refused))


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main(sys.argv[1:])
