"""The command line. This module is all that ``adaptrix --help`` imports; a command's own module, and
numpy with it, comes when the command runs."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from adaptrix import __version__
from adaptrix.cli.reached import Reached, command_name
from adaptrix.errors import AdaptrixError, Problem, UsageError
from adaptrix.memory import memory_refusal

_GROUPS = {
    "Look": {
        "inspect": "Show what is in an adapter, and where its weight lies.",
        "check": "Say everything that is wrong with an adapter, alone and on a base.",
        "diff": "Say how alike two adapters are, by role and layer.",
    },
    "Convert": {
        "convert": "Write adapters as injection files, or for peft, mlx-lm or llama.cpp.",
        "merge": "Write a base with an adapter merged into it.",
        "combine": "Make one adapter of several: the weighted sum of their ΔW.",
        "resize": "Bring an adapter to another rank.",
    },
    "On a live model (in Python: adaptrix.attach)": {
        "fidelity": "Measure what each layer plan of an adapter costs, on a text.",
    },
    "Make": {
        "extract": "Take a LoRA out of a full fine-tune.",
    },
    "Architectures, plugins and help": {
        "architectures": "List, show and derive model families.",
        "plugins": "List plugins, what they contribute, and what failed.",
        "explain": "Say what a problem's code means and what to do.",
        "completion": "Print a shell's completion script.",
    },
}
_COMMANDS = {name: summary for group in _GROUPS.values() for name, summary in group.items()}


class Commands(click.Group):
    """Adaptrix's own commands and those of plugins, each imported when it is first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands first, then those of plugins."""
        return [*_COMMANDS, *_plugin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; a plugin's where no own one has it."""
        if cmd_name in _COMMANDS:
            command = import_module(f"adaptrix.cli.{cmd_name}").command
            assert isinstance(command, click.Command)
            return command
        found = _plugin_commands(to_run=True).get(cmd_name)
        return found[1]() if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lists of commands by what they are for, from summaries alone."""
        plugins = {name: summary for name, (summary, _) in _plugin_commands().items()}
        width = max(map(len, (*_COMMANDS, *plugins)))
        for title, group in (*_GROUPS.items(), ("Of plugins", plugins)):
            if group:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), summary) for name, summary in group.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that names the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            _tell_of_failed_plugins()  # one of them may have the command
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f" Did you mean `adaptrix {near[0]}`?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from None


def _plugin_commands(*, to_run: bool = False) -> dict[str, tuple[str, Callable[[], click.Command]]]:
    """Summary and loader of plugins' commands; costs nothing where no plugin is installed.

    To list commands, no other hook of a plugin is called; ``to_run``: only those of plugins that load completely.
    """
    from adaptrix.plugins.installed import entry_points

    if not entry_points():
        return {}
    from adaptrix.plugins.catalog import Catalog

    catalog = Catalog.from_environment() if to_run else Catalog.from_environment(hooks=("adaptrix_commands",))
    commands = catalog.commands
    return {command.name: (command.summary, command.load) for command in commands if command.name not in _COMMANDS}


def _tell_of_failed_plugins() -> None:
    from adaptrix.plugins.installed import entry_points

    if entry_points():
        from adaptrix.cli.common import Verbosity, show_problems
        from adaptrix.plugins.catalog import Catalog

        show_problems(Catalog.from_environment().problems, Verbosity())


_EPILOG = """Exit codes: 0 fine; 1 the files have problems; 2 the command line has; 3 a source could not be reached.
With ADAPTRIX_TRACEBACK=1 an internal error shows where it came from."""


@click.command(
    cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="adaptrix")
def app() -> None:
    """Convert model adapters, check that they fit, and see what is in them.

    An adapter is a folder, a file, or a repository on the Hugging Face Hub: OWNER/NAME[@REVISION].

    \b
      adaptrix check ./my-lora --base ./llama
      adaptrix convert ./my-lora --base ./llama

    To put adapters on a live model and swap them: adaptrix.attach(model, {"mine": "./my-lora"}) in Python.
    """


def main() -> NoReturn:
    """The entry point: runs a command and ends the process with its exit code, never with a traceback."""
    # The matrices here are small: BLAS threads would only wait for one another, and cost a third of the time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_streams()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup asks to ignore it
            signal.signal(number, _terminate)
    code = run(sys.argv[1:])
    # All is written: taking the interpreter apart would cost a tenth of a conversion, and the sender of
    # a signal need not wait for threads that still read or fetch.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_streams() -> None:
    """Keeps printing from failing on a closed stream or on a character that the terminal lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Terminated(BaseException):
    """A signal that asks the process to end: what is half-written is removed on the way out."""


def _terminate(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise _Terminated(number)


def run(args: list[str]) -> int:
    """Runs one command line. 0 fine, 1 problems found, 2 usage, 3 unreachable, 130 interrupted, 143 terminated."""
    reached = Reached()
    try:
        result = app.main(args, prog_name="adaptrix", standalone_mode=False, obj=reached)
        return result if isinstance(result, int) else 0
    except AdaptrixError as error:
        return _fail(error, args, reached.command)
    except click.ClickException as error:
        return _usage_error(error, args)
    except (KeyboardInterrupt, click.Abort) as stopped:
        _show_stop("interrupted", stopped.__cause__ or stopped)
        return 130
    except _Terminated as signalled:
        _show_stop("terminated", signalled)
        return 128 + int(signalled.args[0])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: say no more
        return 0
    except OSError as error:
        if os.environ.get("ADAPTRIX_TRACEBACK"):
            raise
        if refusal := memory_refusal(error, f"adaptrix {reached.command or ''}".strip()):
            return _fail(refusal, args, reached.command)
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "adaptrix"
        problem = Problem("system", where, f"the system says: {error.strerror or error}")
        return _fail(AdaptrixError(problem), args, reached.command)
    except Exception as error:  # a bug of ours: one line, and the traceback on request
        if os.environ.get("ADAPTRIX_TRACEBACK"):
            raise
        refusal = memory_refusal(error, f"adaptrix {reached.command or ''}".strip())
        return _fail(refusal or _internal(error), args, reached.command)


def _show_stop(how: str, error: BaseException) -> None:
    """Shows that a command was stopped, with the notes of the error: they say what a second run resumes from."""
    click.echo(f"adaptrix: {how}; nothing was left half-written", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {note}", err=True)


def _usage_error(error: click.ClickException, args: list[str]) -> int:
    """Shows an error of click's in its own words, or as JSON with ``--json``; returns the exit code."""
    if "--json" not in args:
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "adaptrix"
    problem = Problem("usage", path, error.format_message(), remedy=f"See {path} --help.")
    return _fail(UsageError(problem), args, command_name(context) if context else None)


def _internal(error: Exception) -> AdaptrixError:
    name = type(error).__name__
    said = f"internal error, {name}: {error}" if str(error) else f"internal error, {name}"
    return AdaptrixError(
        Problem("internal", "adaptrix", said, remedy="Set ADAPTRIX_TRACEBACK=1 to see where, and report it.")
    )


def _fail(error: AdaptrixError, args: list[str], command: str | None) -> int:
    from adaptrix.cli.common import Verbosity, show_failure

    try:
        show_failure(error, Verbosity.of(args), command)
    except BrokenPipeError:
        pass  # the reader left, and will hear nothing of it
    except OSError as lost:
        with suppress(OSError):
            click.echo(f"error: standard output: it cannot be written: {lost.strerror or lost}", err=True)
    return error.exit_code
