"""The plots of the page. Each function takes what is to be seen and gives the text of an inline SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeits.criteria_file import ShownRow
from moeits.report_page.drawing import ACCENT, INK, LINE, MUTED, SERIES, WARM, Drawing, named
from moeits.report_page.removal import Removal
from moeits.report_page.rows import HEALED


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


def kept_per_layer(
    layers: Sequence[int],
    before: Sequence[int],
    kept: Mapping[str, Sequence[int]],
    colours: Mapping[str, str],
    name: str,
) -> str:
    """Experts kept in each layer, a line of steps per point of the run; those that were there as a grey bar behind."""
    drawing = Drawing(height=3.2)
    axes = drawing.axes
    axes.bar(layers, before, color=LINE, width=1, label="before", alpha=0.6)
    edges = np.array([layers[0] - 0.5, *(np.array(layers[1:]) + np.array(layers[:-1])) / 2, layers[-1] + 0.5])
    for label, counts in kept.items():
        axes.stairs(counts, edges, baseline=None, color=colours[label], linewidth=2.2, label=named(label))
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: len(layers) // 12])
    axes.set_ylim(0, max(before) * 1.05)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("experts kept")
    axes.grid(axis="x", visible=False)
    drawing.legend()
    return drawing.svg(name, f"Experts kept in each of {len(layers)} layers at {len(kept)} points.")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a series looks: one colour, one meaning, in every plot of the page."""

    colour: str
    marker: str
    line: str = "-"
    hollow: bool = False

    def of_lines(self) -> dict[str, Any]:
        """As matplotlib takes it."""
        inside = {"markerfacecolor": "none"} if self.hollow else {}
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, **inside}


STYLES: Mapping[str, Style] = {
    "unpruned": Style(colour=INK, marker="D"),
    "unpruned, healed": Style(colour=INK, marker="o", hollow=True),
    "MoEITS": Style(colour=WARM, marker="s"),
    "MoEITS, healed": Style(colour=ACCENT, marker="o"),
    "random": Style(colour=MUTED, marker="s", line="--", hollow=True),
    "random, healed": Style(colour=MUTED, marker="o", line=":", hollow=True),
}
# Of further criteria. A shape each, since where runs stand beside each other a colour is a run's.
_FURTHER_COLOURS, _FURTHER_MARKERS = SERIES[2:], "^vPX*<>"


def styles_of(series: Iterable[str]) -> dict[str, Style]:
    """The style of every series of a run: those that the page knows have their own, each further criterion another.

    A healed model has the shape and the colour of its criterion, hollow and dotted.
    """
    names = list(dict.fromkeys(series))
    further = list(dict.fromkeys(name.removesuffix(HEALED) for name in sorted(names) if name not in STYLES))
    styles = dict(STYLES)
    for number, criterion in enumerate(further):
        colour, marker = (each[number % len(each)] for each in (_FURTHER_COLOURS, _FURTHER_MARKERS))
        styles[criterion] = Style(colour=colour, marker=marker)
        styles[criterion + HEALED] = Style(colour=colour, marker=marker, line=":", hollow=True)
    return {name: styles[name] for name in names}


def of_run(style: Style, number: int) -> Style:
    """The same style in the colour of a run, where runs stand beside each other."""
    return replace(style, colour=SERIES[number % len(SERIES)])


# Models of sizes so far apart would lie on one another.
_MANY_TIMES = 20

Spot = tuple[float, float, float, float]
"""x, y, and between what y lies."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What one panel of Figure 2 shows."""

    what: str
    curves: Mapping[str, Sequence[Spot]]
    unpruned: Spot | None
    chance: float | None


def figure_2(
    panels: Sequence[Panel], left: Sequence[tuple[float, float]], styles: Mapping[str, Style], name: str
) -> str:
    """Accuracy and held-out loss against tau, beside the control; the share of parameters left in a panel below."""
    drawing = Drawing(height=1.3 + 2.3 * len(panels), panels=(*[2.3] * len(panels), 0.8))
    for axes, panel in zip(drawing.panels, panels, strict=False):
        if panel.unpruned:
            _, value, bottom, top = panel.unpruned
            axes.axhspan(bottom, top, color=INK, alpha=0.08, linewidth=0)
            axes.axhline(value, color=INK, linewidth=1, label="unpruned")
        if panel.chance is not None:
            axes.axhline(panel.chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="chance")
        for label, spots in panel.curves.items():
            x, y, low, high = map(np.array, zip(*sorted(spots), strict=True))
            style = styles[label]
            axes.fill_between(x, low, high, color=style.colour, alpha=0.13, linewidth=0)
            axes.plot(x, y, **style.of_lines(), label=named(label))
        axes.set_ylabel(panel.what)
    small = drawing.panels[-1]
    small.plot(*zip(*sorted(left), strict=True), color=MUTED, linewidth=1.5)
    small.set_ylim(0, 105)
    small.set_ylabel("size, %")
    small.set_xlabel("tau (small removes much)")
    drawing.legend()
    what = " and ".join(panel.what for panel in panels)
    return drawing.svg(name, f"{what}, against tau; below, the share of parameters left, in percent.")


def pareto(series: Mapping[str, tuple[Style, Sequence[Spot]]], what: str, better: str, name: str) -> str:
    """A measure against bytes: a series per way of pruning, an interval on each point."""
    drawing = Drawing(height=3.6)
    axes = drawing.axes
    unit = 2**20 if max(x for _, spots in series.values() for x, *_ in spots) < 2**30 else 2**30
    for label, (style, spots) in series.items():
        x, y, low, high = map(np.array, zip(*sorted(spots), strict=True))
        axes.errorbar(x / unit, y, yerr=(y - low, high - y), **style.of_lines(), label=named(label), elinewidth=0.8)
    sizes = [x for _, spots in series.values() for x, *_ in spots]
    if max(sizes) > _MANY_TIMES * min(sizes):
        axes.set_xscale("log")
        # The usual labels of powers are formulas, which this page's text is not.
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("tensors, MiB" if unit == 2**20 else "tensors, GiB")
    axes.set_ylabel(what)
    drawing.legend()
    return drawing.svg(name, f"{what} against bytes of tensors. {better} and to the left is better.")


_OF_STATES = {
    "pruned": Style(colour=WARM, marker="s"),
    "refitted": Style(colour=ACCENT, marker="o"),
    "healed": Style(colour=WARM, marker="s", hollow=True),
    "refitted, healed": Style(colour=ACCENT, marker="o", hollow=True),
}


def criteria(rows: Sequence[ShownRow], name: str) -> str:
    """What each choice loses, a line per choice and a mark per state, each with its interval."""
    labels = list(dict.fromkeys(row.label for row in rows))
    states = list(dict.fromkeys(row.state for row in rows))
    drawing = Drawing(height=1.2 + 0.22 * len(labels) * max(2, len(states)))
    axes = drawing.axes
    axes.axvline(0, color=INK, linewidth=1)
    for number, state in enumerate(states):
        shown = [row for row in rows if row.state == state]
        offset = 0.22 * (number - (len(states) - 1) / 2)
        places = [labels.index(row.label) + offset for row in shown]
        ends = ([row.rise - row.low for row in shown], [row.high - row.rise for row in shown])
        look = {**_OF_STATES[state].of_lines(), "linestyle": "none"}
        axes.errorbar([row.rise for row in shown], places, xerr=ends, label=state, elinewidth=1.2, **look)
    axes.set_yticks(range(len(labels)), [named(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("rise of the loss, nats per token")
    drawing.legend()
    return drawing.svg(name, f"Rise of the loss over the unpruned model for {len(labels)} choices.")


def healing_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], colours: Mapping[str, str], name: str
) -> str:
    """Loss against the step of healing, a colour per pruned model: training as a thin line, held-out dotted."""
    drawing = Drawing(height=3.4)
    axes = drawing.axes
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "training": ("training text", {"linewidth": 0.9, "alpha": 0.7}),
        "held_out": ("held-out text", {"marker": "o", "linestyle": ":"}),
    }
    for label, curve in curves.items():
        axes.plot([], [], color=colours[label], linewidth=4, label=named(label))
        for kind, points in curve.items():
            axes.plot(*zip(*points, strict=True), color=colours[label], **kinds[kind][1])
    for kind, (word, style) in kinds.items():
        if any(kind in curve for curve in curves.values()):
            axes.plot([], [], color=MUTED, label=word, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    drawing.legend()
    return drawing.svg(name, "Loss against the step of healing, on training text and on held-out text.")


def _unit(largest: float) -> tuple[float, str]:
    for unit, word in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= unit:
            return unit, word
    return 1, ""
