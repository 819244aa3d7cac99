"""What the models cost to run, before and after, and what it cost to make them: the green ledger."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from moeits.report_page.accuracy import NOTHING, count, percent
from moeits.report_page.artefacts import Point, Run, name_of
from moeits.report_page.blocks import Block, Section, notes, section, spread, table
from moeits.sizes import format_size


def footprint(run: Run) -> Section | None:
    """A row for each number, a column for each measured model, the unpruned one first."""
    models = {name: found for name, found in _measured(run).items() if found}
    if not models:
        return None
    reasons = [
        f"{what.replace('_', ' ')}: {why}"
        for found in models.values()
        for what, why in found.get("not_measured", {}).items()
        if what != "reduction"
    ]
    intro = [
        "Speeds are medians, with the slowest and the fastest of the repeats in brackets. They compare the models only "
        "where the machine, the dtype and the kernel of the experts are the same: the last rows say."
    ]
    few = [name for name in models if name in ("unpruned", *spread([n for n in models if n != "unpruned"], 3))]
    tables = [_table("What each model costs", {name: models[name] for name in few}, thinned=len(few) < len(models))]
    if len(few) < len(models):
        tables.append(_table("What each model costs: all models", models, folded=True))
    return section("footprint", "Footprint", intro, [*tables, notes(list(dict.fromkeys([*reasons, *_modes(models)])))])


def _table(
    caption: str, models: Mapping[str, Mapping[str, Any]], *, folded: bool = False, thinned: bool = False
) -> Block:
    columns = {name: _column(found) for name, found in models.items()}
    rows = [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    return table(caption, ["", *columns], rows, folded=folded, thinned=thinned)


def _measured(run: Run) -> dict[str, Mapping[str, Any] | None]:
    points = (run.unpruned, *reversed(run.points))
    return {"unpruned" if point is run.unpruned else name_of(point): point.footprint for point in points}


def _column(found: Mapping[str, Any]) -> dict[str, str]:
    parts = ("parameters", "flops", "memory", "energy", "machine")
    parameters, flops, memory, energy, machine = (found.get(name) or {} for name in parts)
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
        "dtype": _or_nothing(machine.get("dtype"), str),
        "device": _or_nothing(machine.get("device"), str),
        "threads": _or_nothing(machine.get("threads"), str),
        "kernel of the experts": _or_nothing(machine.get("experts"), str),
    }


def _or_nothing(value: Any, form: Any) -> str:
    return NOTHING if value is None else form(value)


def _speed(speed: Mapping[str, Any] | None) -> str:
    if not speed:
        return NOTHING
    return f"{speed['tokens_per_second']:,.1f} ({speed['slowest']:,.1f} to {speed['fastest']:,.1f})"


def _modes(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [(each.get("energy") or {}).get("mode") for each in models.values()]
    return [f"Energy by codecarbon: {mode}." for mode in dict.fromkeys(found) if mode]


# How a sweep begins the names of stages that its random choices took.
CONTROL = "control: "


def ledger(run: Run) -> Section | None:
    """Seconds and joules of every stage, and after how many generated tokens each model has paid them back."""
    entries = run.ledger["entries"] if run.ledger else []
    if not entries:
        return None
    product = [entry for entry in entries if not entry["stage"].startswith(CONTROL)]
    control = [entry for entry in entries if entry not in product]
    rows = [*_stages(product), ["together", *_spent(product)], *_stages(control)]
    measured = [point for point in reversed(run.points) if point.footprint]
    sentences = [_payback(point, run, entries) for point in measured] if any(map(_has_joules, entries)) else []
    if control:
        sentences.append("The control, random choices of the same size, is charged to no model.")
    modes = sorted({mode for entry in entries if (mode := entry.get("mode"))})
    sentences += [f"Energy by codecarbon: {mode}." for mode in modes]
    if not modes:
        verb = "compare-criteria" if run.criteria else "sweep"
        sentences.append(f"Energy was not measured while this run was made (moeits {verb} --energy).")
    strong, columns = [len(_stages(product))], ["stage", "times", "seconds", "joules"]
    counted = any(map(_has_joules, entries))
    # A column of dashes says less than the sentence below it.
    shown = columns if counted else columns[:-1]
    costs = table("What it cost to make", shown, [row[: len(shown)] for row in rows], strong=strong)
    return section("ledger", "Green ledger" if counted else "Time taken", [], [costs, notes(sentences)])


def _has_joules(entry: Mapping[str, Any]) -> bool:
    return entry.get("joules") is not None


def _stages(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    stages = dict.fromkeys(entry["stage"] for entry in entries)
    return [[stage, *_spent([entry for entry in entries if entry["stage"] == stage])] for stage in stages]


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
    known: list[Mapping[str, Any]] = [each.footprint or {} for each in (run.unpruned, point)]
    footprints = [each.get("energy") or {} for each in known]
    before, after = (energy.get("joules_per_token") for energy in footprints)
    if spent is None or before is None or after is None:
        return f"{name_of(point)}: not known when it is paid back, for some energy was not measured."
    modes = [each.get("mode") or "" for each in (*own, *footprints)]
    estimated = "an estimated " if any("cpu estimated" in mode for mode in modes) else ""
    tokens = payback_tokens(spent, before, after)
    if tokens is None:
        return f"{name_of(point)}: never paid back, for a token takes {after:.3g} J and not fewer than {before:.3g} J."
    return (
        f"{name_of(point)}: the {spent:,.0f} J it took are paid back after {estimated or 'about '}{_round(tokens):,} "
        "generated tokens."
    )


def _round(number: int) -> int:
    """Two digits of it: its energies are known no better."""
    return int(float(f"{number:.2g}"))
