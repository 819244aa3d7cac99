"""The plots of the page. Each function takes what is to be seen and gives the text of an inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeits.report_page.drawing import ACCENT, INK, LINE, MUTED, SERIES, WARM, Drawing
from moeits.report_page.removal import Removal


def size_path(removal: Removal, name: str) -> tuple[str, dict[str, float]]:
    """Parameters left against tau, every step of it; and where its x axis lies, for the slider's marker."""
    low, high = removal.tau_range()
    taus = np.linspace(low, high, 400)
    left = [removal.parameters_at(float(tau)) for tau in taus]
    unit, word = _unit(max(left))
    drawing = Drawing(height=2.6)
    axes = drawing.axes
    axes.fill_between(taus, np.array(left) / unit, step="mid", color=ACCENT, alpha=0.12, linewidth=0)
    axes.step(taus, np.array(left) / unit, where="mid", color=ACCENT)
    axes.set_ylim(0, max(left) / unit * 1.05)
    axes.set_xlim(low, high)
    axes.set_xlabel("tau")
    axes.set_ylabel(f"parameters left{word}")
    label = f"Parameters left against tau: from {min(left):,} at tau {low:g} to {max(left):,} at tau {high:g}."
    pixels = drawing.x_pixels()
    return drawing.svg(name, label), pixels


def kept_per_layer(layers: Sequence[int], before: Sequence[int], kept: Mapping[str, Sequence[int]], name: str) -> str:
    """Experts kept in each layer, a line per tau; the experts that were there as a grey bar behind them."""
    drawing = Drawing(height=3.2)
    axes = drawing.axes
    axes.bar(layers, before, color=LINE, width=0.85, label="before", alpha=0.6)
    shades = np.linspace(1, 0.35, max(len(kept), 1))
    for (label, counts), alpha in zip(kept.items(), shades, strict=True):
        axes.plot(layers, counts, marker="o", color=ACCENT, alpha=float(alpha), label=label)
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: len(layers) // 12])
    axes.set_ylim(0, max(before) * 1.05)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("experts kept")
    axes.grid(axis="x", visible=False)
    drawing.legend()
    return drawing.svg(name, f"Experts kept in each of {len(layers)} layers at {len(kept)} values of tau.")


def figure_2(
    points: Sequence[Mapping[str, Any]], unpruned: float | None, what: str, name: str, *, scale: float = 100
) -> str:
    """Accuracy against tau, healed and not, with 95 % intervals, beside the share of parameters left."""
    drawing = Drawing(height=3.8)
    axes = drawing.axes
    left = axes.twinx()
    taus = [point["tau"] for point in points]
    shares = [100 * point["share"] for point in points]
    left.plot(taus, shares, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="parameters left, %")
    left.set_ylim(0, 105)
    left.set_ylabel("parameters left, %", color=MUTED)
    left.grid(visible=False)
    left.spines[:].set_visible(False)
    left.tick_params(colors=MUTED, length=0)
    for kind, colour, marker in (("unhealed", WARM, "s"), ("healed", ACCENT, "o")):
        _with_intervals(axes, [(p["tau"], *p[kind]) for p in points if p.get(kind)], colour, marker, kind, scale)
    if unpruned is not None:
        axes.axhline(unpruned * scale, color=INK, linewidth=1, label="unpruned")
    axes.set_xlabel("tau (small removes much)")
    axes.set_ylabel(what)
    drawing.legend()
    return drawing.svg(name, f"{what} against tau, healed and not, beside the share of parameters left.")


def _with_intervals(
    axes: Any, rows: Sequence[tuple[float, float, float | None]], colour: str, marker: str, label: str, scale: float
) -> None:
    if not rows:
        return
    x, y, error = zip(*rows, strict=True)
    axes.plot(x, np.array(y) * scale, color=colour, marker=marker, label=label)
    if all(e is not None for e in error):
        half = 1.96 * scale * np.array(error)
        axes.fill_between(x, np.array(y) * scale - half, np.array(y) * scale + half, color=colour, alpha=0.13, lw=0)


def pareto(series: Mapping[str, Sequence[tuple[float, float, float | None]]], what: str, name: str) -> str:
    """Accuracy against bytes: a series per way of pruning, an interval on each point. Up and to the left is better."""
    drawing = Drawing(height=3.8)
    axes = drawing.axes
    unit = 2**20 if max(x for rows in series.values() for x, _, _ in rows) < 2**30 else 2**30
    for number, (label, rows) in enumerate(series.items()):
        x, y, error = zip(*sorted(rows), strict=True)
        bars = [1.96 * 100 * e if e is not None else 0 for e in error]
        colour = INK if label == "unpruned" else SERIES[number % len(SERIES)]
        marker = "D" if label == "unpruned" else "os^vPX*"[number % 7]
        axes.errorbar(
            np.array(x) / unit, np.array(y) * 100, yerr=bars, color=colour, marker=marker, label=label, elinewidth=0.8
        )
    axes.set_xlabel("tensors, MiB" if unit == 2**20 else "tensors, GiB")
    axes.set_ylabel(what)
    drawing.legend()
    return drawing.svg(name, f"{what} against bytes of tensors. Up and to the left is better.")


def healing_curves(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], name: str) -> str:
    """Loss against the step of healing, a colour per pruned model: training as a thin line, held-out dotted."""
    drawing = Drawing(height=3.2)
    axes = drawing.axes
    for number, (label, kinds) in enumerate(curves.items()):
        colour = SERIES[number % len(SERIES)]
        if kinds.get("training"):
            axes.plot(*zip(*kinds["training"], strict=True), color=colour, linewidth=0.9, alpha=0.6, label=label)
        if kinds.get("held_out"):
            own = {} if kinds.get("training") else {"label": label}
            axes.plot(*zip(*kinds["held_out"], strict=True), color=colour, marker="o", linestyle=":", **own)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    drawing.legend()
    return drawing.svg(name, "Loss against the step of healing, on training text and on held-out text.")


def _unit(largest: float) -> tuple[float, str]:
    for unit, word in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= unit:
            return unit, word
    return 1, ""
