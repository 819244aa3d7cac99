"""README.md and the docs tell the truth as far as a machine can see: commands, flags, names, files, and whose numbers.

What a page says in words is for its reader to check; that every command it prints can be typed is checked here.
"""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from moeits.choosing.criteria import CRITERIA
from moeits.command_line.app import application
from tests.test_house import DIALECT

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    )
}
COMMANDS: dict[str, Any] = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
FLAGS = {
    flag
    for command in COMMANDS.values()
    for parameter in command.params
    for flag in (*parameter.opts, *parameter.secondary_opts)
}

# Flags of other programs that the pages speak of: `--model` is of lm_eval.
# `--power` belongs to a signal that docs/extending.md makes up.
FOREIGN_FLAGS = {
    *("--help", "--hypothesis-profile", "--model", "--power"),
    *("--enable-eplb", "--enable-expert-parallel", "--tensor-parallel-size", "--trust-remote-code"),  # of vLLM
    *("--enforce-eager", "--language-model-only", "--model-impl"),  # of vLLM
    *("--tag",),  # of docker
    *("--ep-num-redundant-experts", "--ep-size", "--tp-size"),  # of SGLang
}
# Names that docs/extending.md makes up, and tests/test_extending.py puts where it says.
MADE_UP = {
    "cosine.Cosine",
    "largest_entry.LargestEntry",
    "inner.ALLOCATION",
    "int8_rows.CODEC",
    "mean_redundancy.CRITERION",
    "same_norm.EDIT",
}
# Fields within fields of results and footprints, and tensors of a checkpoint.
KEYS = {"flops.per_token", "gate_proj.weight_scale", "machine.experts", "memory.peak_bytes"}
# Modules that the house does not have, which is what is said of them.
NEVER = {"base.py", "common.py", "utils.py"}
# Tables of settings, of which nothing was measured.
SETTINGS = {"Recipes"}


# ------------------------------------------------------------------------------------------------ reading a page


def code_lines(page: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, with their continuations joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.S | re.M) + re.findall(r"^(?: {4}.*\n)+", page, re.M)
    for block in blocks:
        yield from (line.strip() for line in re.sub(r"\\\n\s*", " ", block).splitlines())


def spans(page: str) -> Iterator[str]:
    """What stands in backticks, outside of code blocks; a span may go over the end of a line."""
    prose = re.sub(r"^```\w*\n.*?^```|^(?: {4}[^\n]*\n)+", "", page, flags=re.S | re.M)
    for paragraph in prose.split("\n\n"):
        yield from (re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", paragraph))


def commands(page: str) -> Iterator[str]:
    """What a page says to type: `moeits ...` in a line of code, up to its comment, or in backticks."""
    for line in code_lines(page):
        line = re.sub(r"^\$ |^(?:accelerate launch|python|python3) -m (?=moeits )", "", line)
        if line.startswith("moeits "):
            yield re.split(r"\s{2,}|\s+#", re.sub(r"(?<=\S) {2,}(?=--)", " ", line))[0]
    yield from (f"{span} ..." for span in spans(page) if span.startswith("moeits "))


def wrong_with(command: str) -> str | None:
    """Why a command could not be typed as it stands; None if it could. Of one with dots the flags are looked at."""
    _, name, *arguments = [*shlex.split(command), ""][:2] + shlex.split(command)[2:]
    if name not in COMMANDS:
        return f"there is no command {name!r}"
    own = {flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.split("=")[0] for word in arguments if word.startswith("-") and len(word) > 1} - own - {"--help"}
    if unknown := {word for word in unknown if not re.fullmatch(r"-[\d.]+", word)}:
        return f"{name} has no {', '.join(sorted(unknown))}"
    if "..." in arguments or not arguments:
        return None
    try:
        COMMANDS[name].make_context(name, list(arguments))
    except Exception as error:
        return str(error)
    return None


# The files that pages give to --config: what the fenced YAML of a page says.
CONFIGS = {"half.yaml": "docs/recipe.md", "recipe.yaml": "README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_typed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shows in CONFIGS.items():
        (block,) = re.findall(r"^```yaml\n(model: .*?)^```", PAGES[shows], re.S | re.M)
        Path(name).write_text(block)
    wrong = {command: why for command in commands(PAGES[page]) if (why := wrong_with(command))}
    assert not wrong


def test_every_command_that_help_shows_can_be_typed() -> None:
    shown = [
        line.strip()
        for command in COMMANDS.values()
        for line in f"{command.help}\n{command.epilog}".splitlines()
        if line.strip().startswith("moeits ")
    ]
    assert len(shown) >= 2 * len(COMMANDS), "two examples of each command"
    assert not {command: why for command in shown if (why := wrong_with(command))}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_the_words_of_a_page_exists(page: str) -> None:
    words = [span for span in spans(PAGES[page]) if "python -m " not in span]
    said = {flag for span in words for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert not said - FLAGS - FOREIGN_FLAGS


def test_make_has_what_the_pages_say() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    said = {name for page in PAGES.values() for name in re.findall(r"`make ([\w-]+)`|^ {4}make ([\w-]+)", page, re.M)}
    assert {one or other for one, other in said} <= targets


# ------------------------------------------------------------------------------------------------ names


@cache
def modules() -> dict[str, list[str]]:
    """Every module of ours by its dotted name, by each ending of it, and by the classes that it defines."""
    names: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src" / "moeits").rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        parts = dotted.split(".")
        classes = re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.M)
        for name in (*(".".join(parts[at:]) for at in range(len(parts))), *classes):
            names.setdefault(name, []).append(dotted)
    return names


def resolves(name: str) -> bool:
    """Whether `room.module.thing`, `module.thing` or `Class.thing` is there, in moeits or another library."""
    parts = re.sub(r"^np\b", "numpy", re.sub(r"^(?=AutoModel|PreTrained)", "transformers.", name)).split(".")
    for at in range(len(parts), 0, -1):
        beginning = ".".join(parts[:at])
        rest = parts[at - 1 :] if beginning[:1].isupper() else parts[at:]
        if any(_has(importlib.import_module(module), rest) for module in modules().get(beginning, ())):
            return True
    try:
        return importlib.util.find_spec(parts[0]) is not None and _has(importlib.import_module(parts[0]), parts[1:])
    except ImportError:
        return False


def _has(value: Any, names: list[str]) -> bool:
    for name in names:
        fields = getattr(value, "__annotations__", {})
        if not hasattr(value, name):
            return name in fields
        value = getattr(value, name)
    return True


ENDINGS = (
    r"py|md|json|jsonl|toml|txt|svg|html|safetensors|jinja|yaml|js|css|parquet|sh|log|model|bpe|partial|healing|pruned"
)


def dotted_names(page: str) -> set[str]:
    """Names like `module.function` in backticks, calls and types among them; not files, nor tensors of a model."""
    said = {re.sub(r"\(.*", "", span) for span in spans(page)}
    return {
        name
        for name in said
        if re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", name)
        and not re.search(rf"\.(?:{ENDINGS})$", name)
        and not re.search(r"\.(?:weight|bias)$|^(?:model|experts|mlp)\.", name)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_function_and_module_that_a_page_names_exists(page: str) -> None:
    assert not {name for name in dotted_names(PAGES[page]) if not resolves(name)} - MADE_UP - KEYS


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    ours = {
        path
        for folder in ("src", "tests", "docs", "benchmarks", "examples", "experiments", "scripts")
        for path in (ROOT / folder).rglob("*")
    }
    endings = {"/".join(path.parts[-n:]) for path in ours for n in range(1, 8)}
    said = {span for span in spans(PAGES[page]) if re.fullmatch(r"[\w./-]+\.py", span)}
    assert not {name for name in said if name not in endings} - NEVER
    here = (ROOT / page).parent
    links = {link for link in re.findall(r"\]\(([^)#]+)", PAGES[page]) if "://" not in link}
    assert not {link for link in links if not (here / link).exists()}


def test_the_index_names_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#]+)", PAGES["docs/README.md"]))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - links == {"README.md"}


def test_every_module_that_a_page_runs_exists() -> None:
    said = {name for page in PAGES.values() for name in re.findall(r"python3? -m ([\w.]+)", page)}
    assert said
    assert not {name for name in said if importlib.util.find_spec(name) is None}


# ------------------------------------------------------------------------------------------------ numbers


COMMAND = re.compile(r"python -m [\w.]+|`?moeits \w+|`make \w+`|pytest")


def sections(page: str) -> list[str]:
    """The parts of a page under its headings. What a page of results says before the first holds for all of it."""
    parts = re.split(r"^#+ ", page, flags=re.M)
    whole = parts[0] + parts[1] if len(parts) > 1 and parts[1].startswith("Benchmarks") else ""
    return [part + whole for part in parts]


def measured_tables(section: str) -> list[str]:
    """Tables of which a third of the cells are decimal numbers, percentages or times."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", section, re.M):
        cells = [cell.strip() for row in table.splitlines()[2:] for cell in row.strip("|").split("|")]
        numbers = [cell for cell in cells if re.match(r"[-+]?\d[\d,]*(?:\.\d+)?(?: ?%| \(|$| ?[a-zA-Z]+)", cell)]
        if cells and len(numbers) >= len(cells) / 3:
            found.append(table)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_table_names_its_command(page: str) -> None:
    nameless = [
        section.splitlines()[0]
        for section in sections(PAGES[page])
        if measured_tables(section) and not COMMAND.search(section)
    ]
    assert not set(nameless) - SETTINGS


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_in_the_english_of_the_field(page: str) -> None:
    assert not [line for line in PAGES[page].splitlines() if DIALECT.search(line)]


def test_the_checks_can_fail() -> None:
    assert wrong_with("moeits pruen MODEL") == "there is no command 'pruen'"
    assert wrong_with("moeits plan E --tua 1") == "plan has no --tua"
    assert "PLAN" in (wrong_with("moeits prune MODEL") or "").upper()
    assert wrong_with("moeits simplify ... --tau 1") is None
    assert list(
        commands("x\n\n    moeits plan E --tau 1    the dial\n    moeits inspect P  # here\n\n`moeits\nscore M`")
    ) == [
        "moeits plan E --tau 1",
        "moeits inspect P",
        "moeits score M ...",
    ]
    assert resolves("pruning_plan.even_out")
    assert not resolves("plan.even_out")
    assert measured_tables("| a | b |\n| --- | --- |\n| x | 1.5 |\n| y | 2.5 |\n")
    assert not measured_tables("| a | b |\n| --- | --- |\n| x | y |\n")


def test_the_table_of_criteria_has_every_criterion() -> None:
    section = PAGES["docs/criteria.md"].partition("## The criteria\n")[2].partition("\n## ")[0]
    first = [
        line.split("|")[1] for line in section.splitlines() if line.startswith("| `") and "--criterion" not in line
    ]
    named = [name for cell in first for name in re.findall(r"`([a-z0-9-]+)`", cell)]
    assert sorted(named) == sorted(criterion.name for criterion in CRITERIA)
