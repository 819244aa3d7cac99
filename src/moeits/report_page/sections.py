"""The sections of a run's chapter: each gives a title, sentences and blocks, or None if the run has nothing for it.

A block is a dict with a `kind` that the template knows: facts, table, folded, figure, slider, heatmaps, notes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeits.report_page import figures
from moeits.report_page.accuracy import (
    Row,
    accuracy_table,
    count,
    evaluation_notes,
    metrics_of,
    percent,
    perplexity_table,
    rows_of,
    tasks_of,
    with_interval,
)
from moeits.report_page.artefacts import Point, Run
from moeits.report_page.drawing import picture
from moeits.report_page.removal import TAU_STEP, Removal
from moeits.sizes import format_size

Section = dict[str, Any]
Block = dict[str, Any]


def sections_of(run: Run, slug: str) -> list[Section]:
    """All sections that a run has something to say in."""
    removal = Removal.of(run.evidence, _min_experts(run)) if run.evidence and run.evidence.redundancy else None
    rows = rows_of(run)
    made = (
        _summary(run, rows),
        _who_stays(run, rows, removal, slug),
        _redundancy(run, removal, slug),
        _per_layer(run, slug),
        _figure_2(run, rows, slug),
        _accuracy(rows),
        _pareto(rows, slug),
        _healing(run, slug),
        _footprint(run),
        _provenance(run, rows),
    )
    return [section for section in made if section]


def _section(slug: str, title: str, intro: Sequence[str], blocks: Sequence[Block | None]) -> Section | None:
    present = [block for block in blocks if block]
    return {"slug": slug, "title": title, "intro": list(intro), "blocks": present} if present or intro else None


def _min_experts(run: Run) -> int | None:
    settings: Mapping[str, Any] = (run.sweep or {}).get("settings") or next(
        (p.plan["settings"] for p in run.points if p.plan), {}
    )
    return settings.get("min_experts")


# ------------------------------------------------------------------------------------------------------- summary


def _summary(run: Run, rows: Sequence[Row]) -> Section | None:
    before = _before(run)
    facts = [("model", run.source), ("architecture", run.model_type), ("fingerprint", run.fingerprint[:12])]
    if run.evidence:
        layers = run.evidence.layers
        facts.append(("MoE layers", str(len(layers))))
        facts.append(("routed experts", count(sum(each.num_experts for each in layers.values()))))
        facts.append(("top-k", "/".join(map(str, sorted({each.top_k for each in layers.values()})))))
    if before:
        facts.append(("parameters", count(before["parameters_before"])))
        facts.append(("tensors", format_size(before["bytes_before"])))
    return _section("summary", "Summary", _findings(rows), [{"kind": "facts", "rows": facts}])


def _before(run: Run) -> Mapping[str, Any] | None:
    return next((p.summary for p in (*run.points, run.unpruned) if "parameters_before" in p.summary), None)


def _findings(rows: Sequence[Row]) -> list[str]:
    """What came out, in a sentence or two; nothing if nothing was evaluated."""
    tasks = tasks_of(rows)
    unpruned = next((row for row in rows if row.kind == "unpruned"), None)
    pruned = [row for row in rows if row.kind != "unpruned" and row.point.summary.get("reduction", 0) > 0]
    metrics = metrics_of(rows, tasks)
    if not metrics or unpruned is None or not pruned:
        return []
    sentences = []
    for kind in ("unhealed", "healed"):
        scored = [(row, row.mean(tasks, metrics[0])) for row in pruned if row.kind == kind]
        scored = [(row, score) for row, score in scored if score]
        if scored:
            row, score = min(scored, key=lambda each: abs(each[0].point.summary["reduction"] - 0.5))
            sentences.append(
                f"{'Healed' if kind == 'healed' else 'Un-healed'}, with {percent(row.point.summary['reduction'])} % of "
                f"the routed-expert parameters removed, it scores {with_interval(score)} % ({metrics[0]}); the "
                f"unpruned model {with_interval(unpruned.mean(tasks, metrics[0]))} %."
            )
    return sentences


# ------------------------------------------------------------------------------------------------------- who stays


def _who_stays(run: Run, rows: Sequence[Row], removal: Removal | None, slug: str) -> Section | None:
    if removal is None:
        return None
    tau, (low, high) = _first_tau(run, removal), removal.tau_range()
    svg, axis = figures.size_path(removal, f"{slug}-path")
    kept, before = removal.kept_at(tau), {layer: order.num_experts for layer, order in removal.orders.items()}
    data = {**removal.facts(), "axis": axis, "measured": _measured(rows)}
    intro = [
        "Every layer was taken apart once, the most redundant pair first, down to its floor. A tau only says where to "
        "stop, so all its answers are in that one order: move the dial and see which experts stay."
    ]
    slider = {
        "kind": "slider",
        "run": slug,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "step": TAU_STEP,
        "tau": f"{tau:g}",
        "kept": sum(kept.values()),
        "before": count(sum(before.values())),
        "parameters": count(removal.parameters_at(tau)),
        "nbytes": "",
        "reduction": "",
        "measured": data["measured"],
        "svg": svg,
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "layers": [
            {
                "layer": layer,
                "kept": kept[layer],
                "cells": [
                    expert in set(order.kept_after(order.num_experts - kept[layer])) for expert in range(before[layer])
                ],
            }
            for layer, order in removal.orders.items()
        ],
    }
    return _section("who-stays", "Who stays", intro, [slider])


def _first_tau(run: Run, removal: Removal) -> float:
    """Where the dial stands at first: at the point of the sweep that removes closest to half."""
    taus = [(abs(point.summary.get("reduction", 0) - 0.5), tau) for point in run.points for tau in point.taus]
    low, high = removal.tau_range()
    wanted = min(taus)[1] if taus else (low + high) / 2
    return min(max(round(low + round((wanted - low) / TAU_STEP) * TAU_STEP, 10), low), high)


def _measured(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was measured at some number of experts: shown where the dial meets it."""
    tasks = tasks_of(rows)
    found: dict[int, list[str]] = {}
    for row in rows:
        for metric in metrics_of(rows, tasks)[:1]:
            if (score := row.mean(tasks, metric)) and "experts_kept" in row.point.summary:
                word = "healed " if row.kind == "healed" else ""
                found.setdefault(row.point.summary["experts_kept"], []).append(f"{word}{100 * score[0]:.1f} %")
    return [{"experts": experts, "text": ", ".join(texts)} for experts, texts in found.items()]


# ------------------------------------------------------------------------------------------------------- redundancy


def _redundancy(run: Run, removal: Removal | None, slug: str) -> Section | None:
    if removal is None or run.evidence is None:
        return None
    matrices = {layer: _in_order(run.evidence.redundancy[layer], removal, layer) for layer in removal.orders}
    values = np.concatenate([matrix[~np.isnan(matrix)] for matrix in matrices.values()])
    # The colours span what nearly all pairs have: one outlier should not make a map of one colour.
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    noise = run.evidence.above_noise()
    maps = [_map(run, removal, layer, matrix, low, high, noise) for layer, matrix in matrices.items()]
    on_floor = noise["layers_on_noise_floor"]
    intro = [
        "Redundancy of every pair of experts, by normalized mutual information of their weights. Experts stand in the "
        "order of removal, the last to go at the top left; what the dial keeps is framed."
    ]
    if on_floor:
        intro.append(
            f"In {len(on_floor)} of {len(matrices)} layers no pair stands clearly above the noise floor, the score of "
            "independent weights with the same histograms: the choice there is little better than chance."
        )
    bar = picture(np.linspace(low, high, 64)[None, :], low, high)
    heatmaps = {"kind": "heatmaps", "run": slug, "maps": maps, "low": f"{low:.4f}", "high": f"{high:.4f}", "bar": bar}
    return _section("redundancy", "Redundancy", intro, [heatmaps, _noise_table(noise), _order_table(removal)])


def _in_order(matrix: np.ndarray, removal: Removal, layer: int) -> np.ndarray:
    """The matrix with its experts in reverse order of removal; the diagonal is not a pair, so it is left blank."""
    order = removal.orders[layer]
    last = order.kept_after(len(order.removed))
    experts = [*last, *reversed(order.removed)]
    arranged = matrix[np.ix_(experts, experts)].copy()
    np.fill_diagonal(arranged, np.nan)
    return arranged


def _map(
    run: Run, removal: Removal, layer: int, matrix: np.ndarray, low: float, high: float, noise: Mapping[str, Any]
) -> dict[str, Any]:
    facts = noise["redundancy"].get(str(layer))
    words = (
        f"mean {facts['mean']:.4f}, largest {facts['max']:.4f}, noise floor {facts['noise_floor']:.4f}" if facts else ""
    )
    kept = removal.kept_at(_first_tau(run, removal))[layer]
    return {
        "layer": layer,
        "image": picture(matrix, low, high),
        "alt": f"Layer {layer}, {len(matrix)} experts: {words or 'redundancy of each pair'}.",
        "note": f"mean {facts['mean'] / facts['noise_floor']:.2f} x noise" if facts else "",
        "share": f"{100 * kept / len(matrix):g}",
    }


def _noise_table(noise: Mapping[str, Any]) -> Block | None:
    rows = [
        [
            layer,
            *(f"{facts[key]:.5f}" for key in ("mean", "max", "noise_floor")),
            f"{facts['max_over_noise_floor']:.2f}",
        ]
        for layer, facts in noise["redundancy"].items()
    ]
    columns = ["layer", "mean R", "largest R", "noise floor", "largest / floor"]
    return {"kind": "folded", "caption": "Redundancy in numbers", "columns": columns, "rows": rows, "strong": []}


def _order_table(removal: Removal) -> Block:
    rows = [
        [str(layer), " ".join(map(str, order.removed[: removal.most_steps[layer]]))]
        for layer, order in removal.orders.items()
    ]
    columns = ["layer", "experts in the order in which they go, down to the floor"]
    return {"kind": "folded", "caption": "Order of removal", "columns": columns, "rows": rows, "strong": []}


# ------------------------------------------------------------------------------------------------------- per layer


def _per_layer(run: Run, slug: str) -> Section | None:
    points = [point for point in run.points if point.plan]
    if not points:
        return None
    assert all(point.plan for point in points)
    kept = {_name(point): {int(i): len(k) for i, k in (point.plan or {})["kept"].items()} for point in points}
    layers = sorted(next(iter(kept.values())))
    before = _counts_before(run, layers)
    shown = _spread(list(kept), 5)
    plot = figures.kept_per_layer(
        layers,
        [before[i] for i in layers],
        {name: [kept[name][i] for i in layers] for name in reversed(shown)},
        f"{slug}-kept",
    )
    table = {
        "kind": "folded",
        "caption": "Experts kept in each layer, in numbers",
        "columns": ["layer", "before", *reversed(kept)],
        "rows": [[str(i), str(before[i]), *(str(kept[name][i]) for name in reversed(kept))] for i in layers],
        "strong": [],
    }
    sizes = {
        "kind": "folded",
        "caption": "Sizes at each tau",
        "columns": ["tau", "experts kept", "parameters", "tensors", "P(down), %", "of all parameters, %"],
        "rows": [_size_row(point) for point in reversed(points)],
        "strong": [],
    }
    caption = "Experts kept in each layer" + (
        f", for {len(shown)} of {len(kept)} points." if len(shown) < len(kept) else "."
    )
    return _section(
        "per-layer", "Experts kept per layer", [], [{"kind": "figure", "svg": plot, "caption": caption}, table, sizes]
    )


def _counts_before(run: Run, layers: Sequence[int]) -> dict[int, int]:
    """Experts of each layer before pruning: of the evidence, else as many as the plan's ids show at least."""
    if run.evidence:
        return {layer: facts.num_experts for layer, facts in run.evidence.layers.items()}
    before = dict.fromkeys(layers, 0)
    for point in run.points:
        plan = point.plan or {}
        for layer in layers:
            ids = [*plan["kept"][str(layer)], *(expert for expert, _ in plan["order"].get(str(layer), ()))]
            before[layer] = max(before[layer], max(ids) + 1)
    return before


def _size_row(point: Point) -> list[str]:
    s = point.summary
    return [
        ", ".join(f"{tau:g}" for tau in point.taus) or point.name,
        count(s["experts_kept"]),
        count(s["parameters_after"]),
        format_size(s["bytes_after"]),
        percent(s["reduction"]),
        percent(s["reduction_of_all"]),
    ]


def _name(point: Point) -> str:
    return f"tau {point.taus[0]:g}" if point.taus else point.name


def _spread(items: list[str], most: int) -> list[str]:
    """At most that many of the items, evenly spread, the ends among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ------------------------------------------------------------------------------------------------------- Figure 2


def _figure_2(run: Run, rows: Sequence[Row], slug: str) -> Section | None:
    tasks = tasks_of(rows)
    metric = next(iter(metrics_of(rows, tasks)), None)
    swept = [point for point in (*run.points, run.unpruned) if point.taus and point.summary]
    if metric is None or len({p.name for p in swept if p.unhealed or p.healed}) < 2:
        return None
    by_point = {(row.point.name, row.kind): row.mean(tasks, metric) for row in rows}
    unpruned = by_point.get(("unpruned", "unpruned"))
    points = sorted(
        (
            {
                "tau": tau,
                "share": point.summary["parameters_after"] / point.summary["parameters_before"],
                "unhealed": by_point.get((point.name, "unhealed")) or (unpruned if point is run.unpruned else None),
                "healed": by_point.get((point.name, "healed")),
            }
            for point in swept
            for tau in point.taus
        ),
        key=lambda each: each["tau"],
    )
    what = f"{metric}, %" + (f", mean of {len(tasks)} tasks" if len(tasks) > 1 else f", {tasks[0]}")
    svg = figures.figure_2(points, unpruned[0] if unpruned else None, what, f"{slug}-figure-2")
    caption = (
        "The paper's Figure 2 for this model: what tau costs, and what healing gives back. Bands are 95 % intervals."
    )
    return _section("figure-2", "Accuracy against tau", [], [{"kind": "figure", "svg": svg, "caption": caption}])


# ------------------------------------------------------------------------------------------------------- accuracy


def _accuracy(rows: Sequence[Row]) -> Section | None:
    if not rows:
        return None
    blocks: list[Block | None] = [accuracy_table(rows, metric) for metric in metrics_of(rows, tasks_of(rows))]
    blocks += [perplexity_table(rows), {"kind": "notes", "notes": evaluation_notes(rows)}]
    intro = (
        []
        if any(row.kind == "unpruned" for row in rows)
        else ["The unpruned model was not evaluated in this run, so nothing here says what pruning cost."]
    )
    return _section("accuracy", "Accuracy", intro, blocks)


def _pareto(rows: Sequence[Row], slug: str) -> Section | None:
    series, what = pareto_series(rows)
    if sum(map(len, series.values())) < 3:
        return None
    svg = figures.pareto(series, what, f"{slug}-pareto")
    caption = "Accuracy against bytes of tensors. Up and to the left is better; bars are 95 % intervals."
    return _section("pareto", "Accuracy against size", [], [{"kind": "figure", "svg": svg, "caption": caption}])


def pareto_series(
    rows: Sequence[Row], prefix: str = ""
) -> tuple[dict[str, list[tuple[float, float, float | None]]], str]:
    """(bytes, accuracy, standard error) of every row, by kind and criterion; and what the accuracy is."""
    tasks = tasks_of(rows)
    metric = next(iter(metrics_of(rows, tasks)), None)
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in rows:
        score = row.mean(tasks, metric) if metric else None
        if score and row.nbytes:
            label = row.kind if row.kind == "unpruned" else f"{row.label.split(',')[0].split(' ')[0]}, {row.kind}"
            series.setdefault(prefix + label, []).append((row.nbytes, *score))
    return series, f"{metric}, %" + (f", mean of {len(tasks)} tasks" if len(tasks) > 1 else "")


# ------------------------------------------------------------------------------------------------------- healing


def _healing(run: Run, slug: str) -> Section | None:
    healed = [point for point in (*run.points, run.unpruned) if point.healing]
    curves = {_name(point): curve for point in healed if (curve := _curve(point.healing or {}))}
    if not healed:
        return None
    blocks: list[Block | None] = []
    if curves:
        shown = {name: curves[name] for name in _spread(list(curves), 8)}
        svg = figures.healing_curves(shown, f"{slug}-healing")
        blocks.append({"kind": "figure", "svg": svg, "caption": "Training loss while healing."})
    return _section("healing", "Healing", [], blocks)


def _curve(healing: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    log = healing.get("log") or []
    steps = [(entry["step"], entry["loss"]) for entry in log if "step" in entry and "loss" in entry]
    return ([step for step, _ in steps], [loss for _, loss in steps]) if steps else None


# ------------------------------------------------------------------------------------------------------- footprint


def _footprint(run: Run) -> Section | None:  # noqa: ARG001
    return None


# ------------------------------------------------------------------------------------------------------- provenance


def _provenance(run: Run, rows: Sequence[Row]) -> Section | None:
    settings = _flat((run.sweep or {}).get("settings") or {})
    if run.evidence:
        settings |= {"estimator": run.evidence.estimator, **_flat(run.evidence.settings, "scoring")}
    for row in rows[:1]:
        settings |= _flat(row.results.get("settings", {}), "evaluation") | _flat(
            row.results.get("versions", {}), "version"
        )
    blocks: list[Block | None] = [
        _words("Settings and versions", ["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
        {
            **_words("Files and their SHA-256", ["file", "SHA-256"], [[n, h] for n, h in run.files.items()]),
            "kind": "folded",
        },
    ]
    intro = [f"{run.source}, fingerprint {run.fingerprint}."]
    return _section("provenance", "How it was made", intro, blocks)


def _words(caption: str, columns: list[str], rows: list[list[str]]) -> Block:
    return {"kind": "table", "caption": caption, "columns": columns, "rows": rows, "strong": []}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer inner` -> value; what was not set is left out."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        label = f"{prefix} {name}".strip()
        if isinstance(each, Mapping):
            flat |= _flat(each, label)
        elif each is not None:
            flat[label] = each if isinstance(each, str) else json.dumps(each)
    return flat
