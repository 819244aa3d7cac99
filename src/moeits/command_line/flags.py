"""The flags of the command line: fields of settings describe themselves, all others are described here, once.

Keys of `FLAGS` are keyword arguments of the stage functions; positional arguments carry `typer.Argument`.
"""

import inspect
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from moeits.checkpoint.opening import Describing
from moeits.choosing.settings import Budget, Choice
from moeits.healing.recipe import RECIPES
from moeits.report_page import FORMATS
from moeits.settings import EXPERT, HEALING, OUTPUT, PANELS, WHAT, Flag, flags_of, keywords_of
from moeits.signals.settings import Resources, Scoring
from moeits.stages.export import CONVERTER, OUTTYPES
from moeits.surgery.settings import Writing

# Characters of a value's stand-in that a narrow terminal still shows in one piece.
_SHORT = 18


def _one_of(choices: Iterable[str], text: str) -> Any:
    """A choice, whose values help shows; the stage itself says what is wrong with another."""
    metavar, text = _shown(tuple(choices), text)
    return Annotated[str, typer.Option(metavar=metavar, help=text)]


def _shown(choices: tuple[str, ...], text: str) -> tuple[str | None, str]:
    """Where help shows the values of a choice: in place of a value if they are short, else after the text.

    A terminal of 80 columns breaks a long word anywhere, and makes all columns of its panel narrow.
    """
    together = "|".join(choices)
    if len(together) <= _SHORT:
        return together or None, text
    return "NAME", f"{text} One of: {', '.join(choices)}."


FLAGS: dict[str, Any] = {
    "model": Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, or a hub id (org/name).")],
    "path": Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A checkpoint folder, a hub id (no weights are fetched), or a plan (.json)."
        ),
    ],
    "evidence": Annotated[
        list[Path],
        typer.Argument(
            metavar="EVIDENCE [MORE...]", help="What moeits score or calibrate wrote; several files of one checkpoint."
        ),
    ],
    "parts": Annotated[
        list[Path], typer.Argument(metavar="SHARD...", help="What moeits score --shard wrote; all shards, each once.")
    ],
    "output": Annotated[Path, typer.Option(help="Where the result goes.")],
    "sweep fresh": Annotated[
        bool, typer.Option("--fresh", metavar="", help="Remove the sweep that is there; begin anew.")
    ],
    "compare_criteria fresh": Annotated[
        bool, typer.Option("--fresh", metavar="", help="Remove the comparison that is there; begin anew.")
    ],
    "forecast fresh": Annotated[
        bool, typer.Option("--fresh", metavar="", help="Forget finished sizes of an interrupted run.")
    ],
    "refit model": Annotated[str, typer.Argument(metavar="PRUNED", help="A pruned checkpoint: a local folder.")],
    "fresh": Annotated[bool, typer.Option("--fresh", metavar="", help="Forget finished layers of an interrupted run.")],
    "statistics": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signals of another tool: REAP's observer, SGLang's recorder, imatrix, JSONL order."
        ),
    ],
    "write_order": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write each layer's experts, best first, as JSONL.")
    ],
    "write_bits": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the bits of --edit quantize: .json for GPTQModel, .yaml for llm-compressor.",
        ),
    ],
    "weights": Annotated[
        str | None,
        typer.Option(metavar="NAME:NUMBER,...", help="Weigh what was calibrated on anew: chat.jsonl:3,code.jsonl:1."),
    ],
    "search_sets": Annotated[
        str | None,
        typer.Option(
            metavar="COUNT|PLAN",
            help="Also search each layer for a set of so many experts, for --criterion moe-i2-genetic.",
        ),
    ],
    "selection": Annotated[
        int, typer.Option(help="Tokens on which reconstruction tries which experts can go; 0: without it.")
    ],
    "parent": Annotated[str, typer.Option(metavar="MODEL", help="The checkpoint that it was pruned from.")],
    "plan": Annotated[Path, typer.Option(help="The plan to carry out.")],
    "any_fingerprint": Annotated[
        bool,
        typer.Option(
            "--any-fingerprint",
            metavar="",
            help="The plan was made for another form of this model, such as the parent of a quantised one.",
        ),
    ],
    "factors": Annotated[
        bool,
        typer.Option(
            "--factors",
            metavar="",
            help="Store what --edit low-rank makes as two thin matrices each: smaller, and opened by moeits.load or "
            "with trust_remote_code=True only.",
        ),
    ],
    "explain": Annotated[
        bool,
        typer.Option(
            "--explain", metavar="", help="Say what its tensors seem to be, and print a description of the family."
        ),
    ],
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")],
    "runs": Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="What moeits sweep or compare-criteria wrote, or pruned checkpoints."),
    ],
    "format": _one_of(FORMATS, "html: one page; md: its tables, for a paper or a model card."),
    "card": Annotated[Path | None, typer.Option(help="Add the results to this checkpoint's README.md.")],
    "published": Annotated[
        bool, typer.Option("--published", metavar="", help="Show the paper's published rows as well.")
    ],
    "report output": Annotated[Path | None, typer.Option(help="Where the page or the tables go.")],
    "sweep tau": Annotated[str, typer.Option(help="FIRST:LAST:STEP, both ends included, or a list T,T,T.")],
    "evaluate fresh": Annotated[
        bool, typer.Option("--fresh", metavar="", help="Forget finished tasks of an interrupted evaluation.")
    ],
    "a": Annotated[Path, typer.Argument(metavar="A.json", help="Results to compare with.")],
    "b": Annotated[Path, typer.Argument(metavar="B.json", help="Results to compare.")],
    "compare tasks": Annotated[
        str | None,
        typer.Option(help="Only these tasks, separated by commas.", show_default="all, which both must have"),
    ],
    "compare seed": Annotated[int, typer.Option(help="Seed of the bootstrap.")],
    "resamples": Annotated[int, typer.Option(help="Resamples of the bootstrap.")],
    "data": Annotated[
        str, typer.Option(help="Conversations, instructions or texts: .jsonl, .json, .parquet, or a hub data set.")
    ],
    "simplify heal": Annotated[
        str | None, typer.Option(metavar="DATA", help="Heal what is left on these data, as moeits heal does.")
    ],
    "repository": Annotated[str, typer.Argument(metavar="REPOSITORY", help="Its name on the hub: org/name.")],
    "push report": Annotated[Path | None, typer.Option(metavar="FILE", help="A report's page to send along.")],
    "public": Annotated[
        bool, typer.Option("--public", metavar="", help="Let everybody see it; otherwise it is private.")
    ],
    "recipe_file": Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file: model, output, and the flags of each step.")
    ],
    "run output": Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="the recipe's own")],
    "recipe": _one_of(RECIPES, "How it is healed; small is for CPUs."),
    "teacher": Annotated[str | None, typer.Option(help="The unpruned model, for --objective distillation.")],
    "gguf": Annotated[Path, typer.Option(metavar="FILE", help="The GGUF file to write, for llama.cpp.")],
    "outtype": _one_of(OUTTYPES, "Type of the weights, as the converter calls it; auto: 16 bits, as they are."),
    "converter": Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help=f"{CONVERTER}, or the folder of llama.cpp's source that has it.",
            show_default="the one on PATH",
        ),
    ],
    "json": Annotated[bool, typer.Option("--json", metavar="", help="Print the result as JSON.")],
    "quiet": Annotated[
        bool,
        typer.Option("--quiet", "-q", metavar="", help="Print nothing but errors, and what --json asks for."),
    ],
    "verbose": Annotated[
        bool,
        typer.Option("--verbose", "-v", metavar="", help="Say when each piece of work begins, and how long it took."),
    ],
    "log": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add a line to this file for what is done, said or refused, with its time."),
    ],
}

WAYS = ("json", "quiet", "verbose", "log")
"""Flags of every command that say how it speaks, not what it does."""


def config_flag(read: Callable[[typer.Context, Path | None], None]) -> Any:
    """--config of a command; `read` gets its value before those of all other flags are settled."""
    text = "Take flags of this command from a YAML file, or from its section of a recipe; those given here win."
    option = typer.Option(metavar="FILE", help=text, callback=read, is_eager=True, rich_help_panel=OUTPUT)
    return Annotated[Path | None, option]


# What others take of these settings means the same there: inspect a budget, heal --overwrite.
SHARED = (Budget, Choice, Scoring, Resources, Writing, Describing)

# Panels of the flags above; those of settings say it themselves.
_PANELS = {
    WHAT: "tau plan",
    HEALING: "heal data recipe teacher",
    OUTPUT: "output gguf outtype public report overwrite json quiet verbose log card format published fresh",
    EXPERT: "revision any_fingerprint factors",
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names.split()}


def flag(stage: Callable[..., Any], name: str) -> Any:
    """The description of a flag; where a command gives it another shape, the key is `command name`."""
    described = flags_of(stage).get(name)
    annotation = inspect.signature(stage).parameters[name].annotation if name not in WAYS else bool
    if described is None:
        known = FLAGS.get(f"{stage.__name__} {name}") or FLAGS.get(name)
        if known is not None:
            return _in_panel(known, name)
        shared = next(each for settings in SHARED for each in keywords_of(settings) if each.name == name)
        described, annotation = shared.flag, shared.annotation
        assert described is not None
    return _of_setting(described, annotation, name)


def panel_rank(annotation: Any) -> int:
    """Where in --help a flag is shown: --help itself and what has no panel first, then the panels in their order."""
    panel = getattr(get_args(annotation)[1], "rich_help_panel", None)
    return PANELS.index(panel) + 1 if panel in PANELS else 0


def _in_panel(known: Any, name: str) -> Any:
    kind, option = get_args(known)
    if isinstance(option, typer.models.OptionInfo):
        option = copy(option)
        option.rich_help_panel = option.rich_help_panel or _PANEL_OF.get(name)
        if name == "output":
            option.param_decls = ("--output", "-o")
    return Annotated[kind, option]


def _of_setting(described: Flag, annotation: Any, name: str) -> Any:
    """A field of settings as typer wants it."""
    kind = _kind(annotation) if described.parse is None else dict
    switch = kind is bool
    spelling = "--" + name.replace("_", "-")
    stand_in, text = _shown(described.choices, described.help)
    option = typer.Option(
        *((f"{spelling}/--no-{spelling[2:]}" if described.negatable else spelling,) if switch else ()),
        help=text,
        rich_help_panel=described.panel,
        metavar="" if switch else described.metavar or stand_in,
        show_default=described.shown_default or True,
        parser=described.parse and _only_texts(described.parse),
        hidden=len(described.choices) == 1,
    )
    return Annotated[kind | None if NoneType in get_args(annotation) else kind, option]


def _only_texts(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A parser that leaves alone what a config file has as a list or a mapping already."""
    return lambda given: parse(given) if isinstance(given, str) else given


def _kind(annotation: Any) -> type:
    """What the text of a flag is read as: of several types that an argument may have, a path or a text."""
    kinds = [each for each in get_args(annotation) or (annotation,) if each is not NoneType]
    return next((each for each in (Path, str) if each in kinds), kinds[0])
