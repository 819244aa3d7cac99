"""What the tensors of a checkpoint seem to be, as a person sees it."""

from collections.abc import Iterable
from typing import Any

from moeits.console import out, table
from moeits.experts.explaining import Explanation, Named

_MOST_SHAPES = 3


def show_explanation(found: Explanation, arguments: dict[str, Any]) -> None:
    """Names, roles and reasons; what is not certain; the entry, and whether the checkpoint fits it."""
    known = "which moeits knows" if found.known else "which moeits does not know"
    out(f"checkpoint of {found.source} ({found.model_type}, {known})")
    table(("tensors", "shape", "role", "name"), map(_row, found.names))
    for role, why in dict.fromkeys((each.role, each.why) for each in found.names):
        out(f"{role}: {why}")
    if found.experts is not None:
        out(f"{found.experts} experts in each of {len(found.layers)} layers: {_ranges(found.layers)}")
    for doubt in found.missing:
        out(f"not certain: {doubt}")
    if found.like:
        out(f"the table's descriptions of these fit it as they are: {', '.join(found.like)}")
    if found.entry is None:
        out("no description to start from. docs/extending.md says how to write one.")
        return
    out("")
    for line in found.entry.splitlines():
        out(line)
    out("")
    out(_verdict(found, str(arguments.get("path", "MODEL"))))


def _row(named: Named) -> tuple[str, str, str, str]:
    shapes = [" x ".join(map(str, shape)) or "a number" for shape in named.shapes[:_MOST_SHAPES]]
    more = ", ..." if len(named.shapes) > _MOST_SHAPES else ""
    return str(named.count), ", ".join(shapes) + more, named.role, named.name


def _verdict(found: Explanation, model: str) -> str:
    if found.known:
        return "moeits knows the family, so this is for another one that is alike; give it the other model_type."
    if not found.fits:
        return f"By this description it is refused: {found.why_not} Mend the entry, and give it as --architecture."
    return (
        "By this description every tensor has one role. Save it, look at it, and try: moeits simplify "
        f"{model} --architecture FILE.toml ..."
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Such as 1 to 4, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
