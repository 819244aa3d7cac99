"""The pages of the site that `make docs` builds: `python scripts/site_pages.py FOLDER`.

The project's own pages, where they lie in the repository, so that their links hold; and two of reference, made from the
flags and the docstrings.
"""

import html
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import moeits
from moeits.command_line.app import application

ROOT = Path(__file__).parents[1]
# What the pages link to, beside each other: data of tables, programs, licences.
PAGES = ("*.md", "*.cff", "LICENSE", "docs/**/*", "examples/**/*", "benchmarks/*.md", "scripts/*.md")


def main() -> None:
    (folder,) = map(Path, sys.argv[1:])
    if folder.exists():
        shutil.rmtree(folder)
    for pattern in PAGES:
        for page in filter(Path.is_file, ROOT.glob(pattern)):
            copied = folder / page.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, copied)
    reference = folder / "reference"
    reference.mkdir()
    (reference / "commands.md").write_text("".join(commands()), encoding="utf-8")
    (reference / "python.md").write_text("".join(functions()), encoding="utf-8")


def commands() -> Iterator[str]:
    """The page of commands: what each is for, its flags by group, examples."""
    yield "# Commands and flags\n\nMade from the program's own help.\n"
    group: Any = typer.main.get_command(application())
    for name, command in group.commands.items():
        yield f"\n## moeits {name}\n\n{_prose(command.help)}\n"
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            panels.setdefault(parameter.rich_help_panel or "Arguments", []).append(parameter)
        for panel, parameters in panels.items():
            yield f"\n### {panel}\n\n| flag | what it does | default |\n| --- | --- | --- |\n"
            yield from map(_row, parameters)
        if command.epilog:
            examples = [line.strip() for line in command.epilog.splitlines() if line.strip()]
            yield "\nExamples:\n\n" + "".join(f"    {line}\n" for line in examples if not line.endswith(":"))


def _row(parameter: Any) -> str:
    spelt = ", ".join(f"`{option}`" for option in parameter.opts) if parameter.opts[0].startswith("-") else ""
    name = spelt or f"`{parameter.metavar or parameter.name.upper()}`"
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    plain = default is None or default is False or default == () or parameter.required
    shown = "required" if parameter.required else "" if plain else f"`{default}`"
    return f"| {name} | {_cell(parameter.help or '')} | {shown} |\n"


def functions() -> Iterator[str]:
    """The page of functions and classes that the package has, with their arguments."""
    yield "# Python\n\nEvery command is a function of the same name. Made from the package's docstrings.\n"
    for name in sorted(moeits.__all__):
        member = getattr(moeits, name)
        if not callable(member):
            continue
        yield f"\n## moeits.{name}\n"
        if inspect.isclass(member):
            yield f"\n{_prose(inspect.getdoc(member))}\n"
            yield from _methods(member)
        else:
            yield f"\n```python\n{_signature(name, member)}\n```\n\n{_prose(inspect.getdoc(member))}\n"


def _methods(owner: type) -> Iterator[str]:
    """What a class has that is its own and is described."""
    for name, member in vars(owner).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not inspect.getdoc(function):
            continue
        if isinstance(member, property) or inspect.isfunction(function):
            yield f"\n- **`{name}`**: {' '.join(_prose(inspect.getdoc(function)).split())}\n"


def _signature(name: str, function: Any) -> str:
    """The arguments of a function, one on a line."""
    lines = [f"moeits.{name}("]
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        default = "" if each.default is each.empty else f"={_value(each.default)}"
        lines.append(f"    {'**' if each.kind is each.VAR_KEYWORD else ''}{each.name}{default},")
    return "\n".join([*lines, ")"])


def _value(default: Any) -> str:
    return getattr(default, "__name__", repr(default))


def _prose(text: str | None) -> str:
    """As Markdown: no word between angle brackets is taken for a tag, outside of code."""
    parts = re.split(r"(`[^`]*`)", (text or "").strip())
    return "".join(part if part.startswith("`") else re.sub(r"<(?=\w)", "&lt;", part) for part in parts)


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


if __name__ == "__main__":
    main()
