"""The command line: every command is a stage function, its flags are that function's keyword arguments.

A flag is described once, in `flags.py`, and means the same wherever it is taken. Results are shown by `console`; a
MoeitsError becomes one sentence on standard error and exit code 2.
"""

import atexit
import gc
import inspect as signatures
import os
import re
import sys
from collections.abc import Callable, Container
from typing import Annotated, Any

import typer

import moeits
from moeits import console
from moeits.__main__ import INTERRUPTED
from moeits.command_line.examples import epilog
from moeits.command_line.flags import flag, panel_rank
from moeits.console import criteria, footprint, forecast, healing, plans, pruning, refitting, results, sweeps
from moeits.errors import MoeitsError

# Stages whose result is the next one's input: at a command line it would be lost without an output.
MADE_FOR_LATER = ("score", "calibrate", "plan")


def _command(stage: Callable[..., Any], show: Callable[[Any, dict[str, Any]], None]) -> Callable[..., None]:
    """A command that takes the arguments of a stage function and `--json`, runs it, and shows what it returns."""
    own = signatures.signature(stage).parameters
    taken = [name for name in own if name != "progress"]

    def run(json: bool = False, **arguments: Any) -> None:
        if "progress" in own:
            with console.progress() as progress:
                result = stage(**arguments, progress=progress)
        else:
            result = stage(**arguments)
        if json:
            console.print_json(result)
        else:
            show(result, arguments)

    defaults = {name: own[name].default for name in taken}
    if stage.__name__ in MADE_FOR_LATER:
        defaults["output"] = signatures.Parameter.empty
    keyword = signatures.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        signatures.Parameter(name, keyword, default=defaults[name], annotation=flag(stage, name)) for name in taken
    ]
    parameters.append(signatures.Parameter("json", keyword, default=False, annotation=flag(stage, "json")))
    # Python wants those without a default first.
    parameters.sort(key=lambda each: (each.default is not each.empty, panel_rank(each.annotation)))
    # typer reads the flags of a command off its signature.
    run.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__ = stage.__name__
    run.__doc__ = _for_the_command_line((signatures.getdoc(stage) or "").split("\n\n")[0], own)
    return run


def _for_the_command_line(text: str, arguments: Container[str]) -> str:
    """A docstring's `max_size` as --max-size."""

    def spelt(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") if found[1] in arguments else found[0]

    return re.sub(r"`(\w+)`", spelt, text)


def command_name(stage: Callable[..., Any]) -> str:
    """The command of a stage, spelt as flags are."""
    return stage.__name__.replace("_", "-")


# What the package says of itself, without the paragraph for those who import it.
_HELP = (moeits.__doc__ or "").rsplit("\n\n", 1)[0]
_START = "Start with: moeits simplify MODEL --reduction 0.5 -o SMALLER"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP, epilog=_START)

COMMANDS: tuple[tuple[Callable[..., Any], Callable[[Any, dict[str, Any]], None]], ...] = (
    (moeits.inspect, plans.show_inspection),
    (moeits.score, plans.show_evidence),
    (moeits.calibrate, refitting.show_calibration),
    (moeits.plan, plans.show_plan),
    (moeits.prune, pruning.show_pruning),
    (moeits.simplify, pruning.show_simplified),
    (moeits.refit, refitting.show_refitting),
    (moeits.forecast, forecast.show_forecast),
    (moeits.heal, healing.show_healing),
    (moeits.evaluate, results.show_results),
    (moeits.compare, results.show_comparison),
    (moeits.compare_criteria, criteria.show_criteria),
    (moeits.measure, footprint.show_footprint),
    (moeits.sweep, sweeps.show_sweep),
    (moeits.report, footprint.show_report),
)
for _stage, _show in COMMANDS:
    _name = command_name(_stage)
    app.command(_name, epilog=epilog(_name))(_command(_stage, _show))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version.")] = False,
) -> None:
    if version:
        console.out(f"moeits {moeits.__version__}")
        raise typer.Exit


def _command_path(error: typer.TyperException) -> str:
    """The command that was given wrong arguments, as far as it is known."""
    context = getattr(error, "ctx", None)
    return context.command_path if context else "moeits"


def main() -> None:
    """Run one command. Exit code 0, or 2 with one sentence on standard error."""
    # numba alone makes a million objects, all of which stay: looking for garbage among them takes half a second of a
    # command, most of it at its very end. So that is done less often, and at the end not at all.
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)
    code = 2
    try:
        with console.open_streams():
            code = app(prog_name="moeits", standalone_mode=False) or 0
    except MoeitsError as error:
        console.error(str(error))
    except typer.TyperException as error:
        if message := error.format_message():  # empty where no command was given, and help was shown instead
            sentence = message if message.endswith("?") else f"{message.rstrip('.')}."
            console.error(f"{sentence} See: {_command_path(error)} --help")
    except console.ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # where nobody expected the system to refuse: a failing disk, a name too long
        where = f": {error.filename}" if error.filename else ""
        console.error(f"{error.strerror or error}{where}. Check the disk and the path.")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        console.error("Interrupted.")
    sys.exit(code)
