"""What the models cost to run, before and after, and what it cost to make them: the green ledger."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from moeits.report_page.accuracy import NOTHING, count, percent
from moeits.report_page.artefacts import Point, Run, name_of
from moeits.report_page.blocks import Section, notes, section, table
from moeits.sizes import format_size


def footprint(run: Run) -> Section | None:
    """A row for each number, a column for each measured model, the unpruned one first."""
    models = {"unpruned" if point is run.unpruned else name_of(point): point.footprint for point in _measured(run)}
    columns = {name: _column(found) for name, found in models.items() if found}
    if not columns:
        return None
    names = list(next(iter(columns.values())))
    rows = [[name, *(column[name] for column in columns.values())] for name in names]
    reasons = [
        f"{what.replace('_', ' ')}: {why}"
        for found in models.values()
        for what, why in (found or {}).get("not_measured", {}).items()
        if what != "reduction"
    ]
    return section(
        "footprint",
        "Footprint",
        ["Speeds are medians, with the slowest and the fastest of the repeats in brackets."],
        [table("What each model costs", ["", *columns], rows), notes(list(dict.fromkeys([*reasons, *_modes(models)])))],
    )


def _measured(run: Run) -> list[Point]:
    return [point for point in (run.unpruned, *reversed(run.points)) if point.footprint]


def _column(found: Mapping[str, Any]) -> dict[str, str]:
    parameters, flops, memory, energy = (found.get(name) or {} for name in ("parameters", "flops", "memory", "energy"))
    return {
        "parameters": count(parameters.get("total")),
        "active per token": count(parameters.get("active_per_token")),
        "routed": count(parameters.get("routed")),
        "tensors": format_size(found["tensor_bytes"]),
        "on disk": format_size(found["folder_bytes"]),
        "zero weights, %": _or_nothing(found.get("sparsity"), percent),
        "FLOPs per token": count(flops.get("per_token")),
        "peak memory": _or_nothing(memory.get("peak_bytes"), format_size),
        "loading, s": _or_nothing(found.get("load_seconds"), "{:.2f}".format),
        "reading, tokens/s": _speed(found.get("prefill")),
        "generating, tokens/s": _speed(found.get("decode")),
        "J per generated token": _or_nothing(energy.get("joules_per_token"), "{:.3g}".format),
    }


def _or_nothing(value: Any, form: Any) -> str:
    return NOTHING if value is None else form(value)


def _speed(speed: Mapping[str, Any] | None) -> str:
    if not speed:
        return NOTHING
    return f"{speed['tokens_per_second']:,.1f} ({speed['slowest']:,.1f} to {speed['fastest']:,.1f})"


def _modes(models: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    found = [((each or {}).get("energy") or {}).get("mode") for each in models.values()]
    return [f"Energy by codecarbon: {mode}." for mode in dict.fromkeys(found) if mode]


def ledger(run: Run) -> Section | None:
    """Seconds and joules of every stage, and after how many generated tokens each model has paid them back."""
    entries = (run.ledger or {}).get("entries", [])
    if not entries:
        return None
    stages = list(dict.fromkeys(entry["stage"] for entry in entries))
    rows = [[stage, *_spent([entry for entry in entries if entry["stage"] == stage])] for stage in stages]
    total = ["together", *_spent(entries)]
    sentences = [_payback(point, run, entries) for point in reversed(run.points) if point.footprint]
    modes = sorted({entry["mode"] for entry in entries if entry.get("mode")})
    sentences += [f"Energy by codecarbon: {mode}." for mode in modes]
    if not modes:
        sentences.append("Energy was not measured while this run was made (moeits sweep --energy).")
    costs = table("What it cost to make", ["stage", "times", "seconds", "joules"], [*rows, total], strong=[len(rows)])
    return section("ledger", "Green ledger", [], [costs, notes(sentences)])


def _spent(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    joules = joules_of(entries)
    seconds = sum(entry["seconds"] for entry in entries)
    return [str(len(entries)), f"{seconds:,.1f}", NOTHING if joules is None else f"{joules:,.0f}"]


def joules_of(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """The joules of these entries together; None if those of any are not known."""
    found = [entry.get("joules") for entry in entries]
    return None if None in found else sum(joules for joules in found if joules is not None)


def payback_tokens(spent: float, before: float, after: float) -> int | None:
    """After how many generated tokens the joules spent are saved, at so many joules a token before and after.

    None if a token costs no less than before: then they never are.
    """
    return ceil(spent / (before - after)) if after < before else None


def _payback(point: Point, run: Run, entries: Sequence[Mapping[str, Any]]) -> str:
    # Scoring and the unpruned model's evaluation serve all points; each is charged with the whole of them.
    own = [entry for entry in entries if entry.get("point") in (None, point.name)]
    spent = joules_of(own)
    before, after = (
        (((each.footprint or {}).get("energy") or {}).get("joules_per_token")) for each in (run.unpruned, point)
    )
    if spent is None or before is None or after is None:
        return f"{name_of(point)}: not known when it is paid back, for some energy was not measured."
    tokens = payback_tokens(spent, before, after)
    if tokens is None:
        return f"{name_of(point)}: never paid back, for a token takes {after:.3g} J and not fewer than {before:.3g} J."
    return f"{name_of(point)}: the {spent:,.0f} J it took are paid back after {tokens:,} generated tokens."
