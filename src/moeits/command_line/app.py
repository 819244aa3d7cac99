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
from collections.abc import Callable, Container, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import moeits
from moeits import console
from moeits.__main__ import INTERRUPTED
from moeits.command_line.config_file import takes_config
from moeits.command_line.examples import epilog
from moeits.command_line.flags import WAYS, config_flag, flag, panel_rank
from moeits.console.foreseen import show_foreseen
from moeits.errors import MoeitsError, SettingError
from moeits.foreseen import Foreseen

# Stages whose result is the next one's input: at a command line it would be lost without an output.
MADE_FOR_LATER = ("score", "gather", "calibrate", "plan")


def _command(stage: Callable[..., Any], show: Callable[[Any, dict[str, Any]], None]) -> Callable[..., None]:
    """A command that takes the arguments of a stage function and `WAYS`, runs it, and shows what it returns."""
    own = signatures.signature(stage).parameters

    def run(
        json: bool = False, quiet: bool = False, verbose: bool = False, log: Path | None = None, **arguments: Any
    ) -> None:
        del arguments["config"]  # its values stand among the arguments already
        _check_log(log, arguments)
        with console.speaking(quiet=quiet, verbose=verbose, log=log):
            with console.progress() as progress:
                result = stage(**arguments, **({"progress": progress} if "progress" in own else {}))
            if isinstance(result, Foreseen):
                result = result.started()
            if json:
                console.print_json(result)
            elif isinstance(result, Foreseen):
                show_foreseen(result)
            else:
                show(result, arguments)

    parameters = _parameters(stage)
    # typer reads the flags of a command off its signature.
    run.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__ = stage.__name__
    run.__doc__ = _for_the_command_line((signatures.getdoc(stage) or "").split("\n\n")[0], own)
    return run


def _check_log(log: Path | None, arguments: dict[str, Any]) -> None:
    """A log is none of the files that a command reads or writes. Raises SettingError."""
    for name, value in arguments.items():
        if log is not None and isinstance(value, str | Path) and Path(value).absolute() == log.absolute():
            raise SettingError(f"--log {log} is also --{name.replace('_', '-')}. Choose another --log.")


def _parameters(stage: Callable[..., Any]) -> list[signatures.Parameter]:
    """What a command takes: the arguments of its stage, `WAYS` and --config, in the order in which help shows them."""
    defaults = {
        name: parameter.default
        for name, parameter in signatures.signature(stage).parameters.items()
        if name != "progress"
    }
    if stage.__name__ in MADE_FOR_LATER:
        defaults["output"] = signatures.Parameter.empty
    defaults |= {name: None if name == "log" else False for name in WAYS}
    described = {name: flag(stage, name) for name in defaults} | {"config": config_flag(takes_config(stage))}
    keyword = signatures.Parameter.KEYWORD_ONLY  # so that what is required may stand in its own panel
    parameters = [
        signatures.Parameter(name, keyword, default=defaults.get(name), annotation=annotation)
        for name, annotation in described.items()
    ]
    return sorted(parameters, key=lambda each: (panel_rank(each.annotation), each.default is not each.empty))


def _for_the_command_line(text: str, arguments: Container[str]) -> str:
    """A docstring's `max_size` as --max-size."""

    def spelt(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") if found[1] in arguments else found[0]

    return re.sub(r"`(\w+)`", spelt, text)


# What the package says of itself, without the paragraph for those who import it.
_HELP = (moeits.__doc__ or "").rsplit("\n\n", 1)[0]
_START = "Start with: moeits simplify MODEL --reduction 0.5 -o SMALLER"

COMMANDS = {
    "inspect": "plans.show_inspection",
    "score": "plans.show_evidence",
    "gather": "plans.show_evidence",
    "calibrate": "refitting.show_calibration",
    "plan": "plans.show_plan",
    "prune": "pruning.show_pruning",
    "simplify": "pruning.show_simplified",
    "refit": "refitting.show_refitting",
    "forecast": "forecast.show_forecast",
    "heal": "healing.show_healing",
    "evaluate": "results.show_results",
    "compare": "results.show_comparison",
    "compare-criteria": "criteria.show_criteria",
    "measure": "footprint.show_footprint",
    "sweep": "sweeps.show_sweep",
    "report": "footprint.show_report",
    "push": "exports.show_pushed",
    "run": "recipes.show_ran",
    "export": "exports.show_export",
}
"""Command -> what shows its result, in `moeits.console`. The stage is the package's function of the same name."""


def stage_of(name: str) -> Callable[..., Any]:
    """The stage function of a command."""
    stage: Callable[..., Any] = getattr(moeits, name.replace("-", "_"))
    return stage


def application(names: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """The program with these commands. Only their stages are imported: all of them take as long as starting numpy."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP, epilog=_START
    )
    for name in names:
        module, _, show = COMMANDS[name].partition(".")
        shows = getattr(import_module(f"moeits.console.{module}"), show)
        app.command(name, epilog=epilog(name))(_command(stage_of(name), shows))
    app.callback(invoke_without_command=True)(_options)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version.")] = False,
) -> None:
    if version:
        console.out(f"moeits {moeits.__version__}")
        raise typer.Exit


def _asked_for() -> typer.Typer:
    """The program with the command that was given; with all of them where it is not one, or help is asked for."""
    if sys.argv[1:2] == ["help"]:  # what many programs call it
        sys.argv[1:] = [*sys.argv[2:3], "--help"]
    given = sys.argv[1:2]
    if sys.argv[1:] == ["--version"]:
        return application(())
    return application(given if given and given[0] in COMMANDS else COMMANDS)


# How a value that is no number is refused, in words about parsing strings.
_OF_PYDANTIC = r"Input should be a valid (?:number|integer), unable to parse string as (an? (?:number|integer))"


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
            code = _asked_for()(prog_name="moeits", standalone_mode=False) or 0
    except MoeitsError as error:
        console.error(str(error))
    except typer.TyperException as error:
        if message := error.format_message():  # empty where no command was given, and help was shown instead
            message = re.sub(_OF_PYDANTIC, r"it is not \1", message)
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
