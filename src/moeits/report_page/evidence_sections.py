"""What the evidence shows: who stays, how redundant the experts are, how many each layer keeps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from moeits.evidence import NOISE_MARGIN, estimated
from moeits.report_page import figures
from moeits.report_page.accuracy import NOTHING, count, percent
from moeits.report_page.artefacts import Point, Run, name_of, points_by_line
from moeits.report_page.blocks import Block, Section, figure, section, spread, table
from moeits.report_page.drawing import colours_of, picture
from moeits.report_page.measures import Measure, measures_of
from moeits.report_page.questions import Questions
from moeits.report_page.removal import TAU_STEP, Removal
from moeits.report_page.rows import Row
from moeits.sizes import format_size


def who_stays(run: Run, rows: Sequence[Row], removal: Removal | None, slug: str) -> Section | None:
    """The dial of tau, and the experts that stay at it."""
    if removal is None:
        return None
    tau, (low, high) = _first_tau(run, removal), removal.tau_range()
    svg, axis = figures.size_path(removal, f"{slug}-path")
    kept, before = removal.kept_at(tau), {layer: order.num_experts for layer, order in removal.orders.items()}
    data = {**removal.facts(), "axis": axis, "measured": measured_on(removal, rows)}
    intro = [
        f"Every layer was taken apart once, {_first_to_go(removal)}, down to its floor. A tau only says where to "
        "stop, so all its answers are in that one order: move the dial and see which experts stay."
    ]
    measure = next(iter(measures_of(rows)), None) if data["measured"] else None
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
        "measured": measure.short if measure else "",
        "unpruned": _unpruned(measure, rows),
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
    return section("who-stays", "Who stays", intro, [slider])


def _unpruned(measure: Measure | None, rows: Sequence[Row]) -> str:
    scores = (measure.of(row) for row in rows if row.kind == "unpruned") if measure else ()
    return next((measure.form.format(score[0]) for score in scores if measure and score), NOTHING)


def _first_to_go(removal: Removal) -> str:
    return "the most redundant pair first" if removal.criterion == "moeits" else f"in the order of {removal.criterion}"


def _first_tau(run: Run, removal: Removal) -> float:
    """Where the dial stands at first: at the point of the sweep that removes closest to half."""
    taus = [(abs(point.summary.get("reduction", 0) - 0.5), tau) for point in run.points for tau in point.taus]
    low, high = removal.tau_range()
    wanted = min(taus)[1] if taus else (low + high) / 2
    return min(max(round(low + round((wanted - low) / TAU_STEP) * TAU_STEP, 10), low), high)


def measured_on(removal: Removal, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was measured of the very experts that the dial keeps somewhere, by the count that stays in each layer."""
    alike = Questions(rows).alike()
    found: dict[tuple[int, ...], list[str]] = {}
    for measure in measures_of(alike)[:1]:
        for row in alike:
            counts = _counts_on_the_dial(removal, row)
            if counts and (score := measure.of(row)):
                word = "healed " if row.kind == "healed" else ""
                found.setdefault(counts, []).append(word + measure.form.format(score[0]))
    return [{"kept": counts, "text": ", ".join(texts)} for counts, texts in found.items()]


def _counts_on_the_dial(removal: Removal, row: Row) -> tuple[int, ...] | None:
    """How many experts of each layer a model keeps, if they are those that the elimination orders leave."""
    if row.point.plan is None:
        everything = tuple(order.num_experts for order in removal.orders.values())
        return everything if row.point.name == "unpruned" else None
    kept = {layer: row.point.plan.kept.get(layer, ()) for layer in removal.orders}
    left = {layer: order.kept_after(order.num_experts - len(kept[layer])) for layer, order in removal.orders.items()}
    return tuple(map(len, kept.values())) if kept == left else None


def redundancy(run: Run, removal: Removal | None, slug: str) -> Section | None:
    """A picture of every layer's redundancies, in the order of removal."""
    if removal is None or run.evidence is None or not run.evidence.redundancy:
        return None
    matrices = {layer: _in_order(run.evidence.redundancy[layer], removal, layer) for layer in removal.orders}
    values = np.concatenate([matrix[~np.isnan(matrix)] for matrix in matrices.values()])
    noise = run.evidence.above_noise()
    floor = float(np.mean([each["noise_floor"] for each in noise["redundancy"].values()] or [0.0]))
    low, high = colour_range(values, floor)
    maps = [_map(run, removal, layer, matrix, low, high, noise) for layer, matrix in matrices.items()]
    intro = [
        "Redundancy of every pair of experts, by normalized mutual information of their weights. Experts are in the "
        "order of removal, the last to go at the top left; what the dial keeps is framed."
    ]
    if note := estimated(run.evidence.settings, noise):
        intro.append(f"{note[0].upper()}{note[1:]}.")
    if noise["redundancy"]:
        intro.append(noise_sentence(noise))
    bar = picture(np.linspace(low, high, 64)[None, :], low, high)
    ends = (f"{end:.4f}" + (f", {end / floor:.1f} x noise" if floor > 0 else "") for end in (low, high))
    heatmaps = {
        "kind": "heatmaps",
        "run": slug,
        "maps": maps,
        "bar": bar,
        **dict(zip(("low", "high"), ends, strict=True)),
    }
    return section("redundancy", "Redundancy", intro, [heatmaps, _noise_table(noise), _order_table(removal)])


def colour_range(values: np.ndarray, floor: float) -> tuple[float, float]:
    """What the colours of the maps span: what nearly all pairs have, and twice the noise floor at the least.

    One outlier should not make a map of one colour, nor the noise one that looks like structure.
    """
    return float(values.min()), max(float(np.quantile(values, 0.995)), 2 * floor)


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """How many layers stand above the noise floor, and what that means for the choice."""
    layers = len(noise["redundancy"])
    above = layers - len(noise["layers_on_noise_floor"])
    where = "No layer has a pair" if above == 0 else f"{above} of {layers} layers have a pair"
    meaning = {
        0: "Scores say little here of who is redundant, and a random choice may be as good or better.",
        layers: "So the weights do tell its experts apart.",
    }.get(above, "In the others scores say little of who is redundant.")
    return (
        f"{where} of experts {100 * NOISE_MARGIN:g} % or more above the noise floor, the score of independent weights "
        f"with the same histograms. {meaning}"
    )


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
    return table("Redundancy in numbers", columns, rows, folded=True)


def _order_table(removal: Removal) -> Block:
    rows = [
        [str(layer), " ".join(map(str, order.removed[: removal.most_steps[layer]]))]
        for layer, order in removal.orders.items()
    ]
    columns = ["layer", "experts in the order in which they go, down to the floor"]
    return table("Order of removal", columns, rows, words=2, folded=True)


def per_layer(run: Run, slug: str) -> Section | None:
    """Experts kept in each layer at the points of the run, as a plot and as numbers."""
    points = [point for point in run.points if point.plan]
    if not points:
        return None
    kept = {name: alike[0].counts for name, alike in points_by_line(run).items()}
    layers = sorted(next(iter(kept.values())))
    before = _counts_before(run, layers)
    shown, swept = spread(list(kept), 5), any(point.taus for point in points)
    draw = partial(
        figures.kept_per_layer,
        layers,
        [before[i] for i in layers],
        {name: [kept[name][i] for i in layers] for name in reversed(shown)},
        colours_of(list(kept)),
        f"{slug}-kept",
    )
    numbers = table(
        "Experts kept in each layer, in numbers",
        ["layer", "before", *reversed(kept)],
        [[str(i), str(before[i]), *(str(kept[name][i]) for name in reversed(kept))] for i in layers],
        folded=True,
    )
    sizes = table(
        SIZES_CAPTION,
        ["tau" if swept else "model", "experts kept", "parameters", "tensors", "P(down), %", "of all parameters, %"],
        [_size_row(point) for point in reversed(points)],
        folded=True,
    )
    some = f", for {len(shown)} of {len(kept)} points" if len(shown) < len(kept) else ""
    caption = f"Experts kept in each layer{some}."
    return section("per-layer", "Experts kept per layer", [], [figure(draw, caption), numbers, sizes])


SIZES_CAPTION = "Sizes"


def _counts_before(run: Run, layers: Sequence[int]) -> dict[int, int]:
    """Experts of each layer before pruning: of the evidence, else as many as the plans' ids show at least."""
    if run.evidence:
        return {layer: facts.num_experts for layer, facts in run.evidence.layers.items()}
    plans = [point.plan for point in run.points if point.plan]

    def ids(layer: int) -> Iterator[int]:
        for plan in plans:
            yield from plan.kept[layer]
            yield from (expert for expert, _ in plan.order.get(layer, ()))

    return {layer: max(ids(layer)) + 1 for layer in layers}


def _size_row(point: Point) -> list[str]:
    s = point.summary
    return [
        ", ".join(f"{tau:g}" for tau in point.taus) or name_of(point),
        count(s["experts_kept"]),
        count(s["parameters_after"]),
        format_size(s["bytes_after"]),
        percent(s["reduction"]),
        percent(s["reduction_of_all"]),
    ]
