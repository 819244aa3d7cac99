"""Matplotlib figures as inline SVG that takes its colours and its font from the page, in light and in dark.

Figures are drawn in stand-in colours, which become CSS variables in the text of the SVG. Ids are made unique, so that
many figures share one page, and nothing in the result depends on when or where it was drawn.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from moeits.runtime import need

# Stand-in colour in the drawing -> CSS variable in the page.
INK, MUTED, LINE, ACCENT, WARM, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", WARM: "warm", PAPER: "paper"}
# Colours of further series, legible on both grounds.
SERIES = (ACCENT, WARM, "#8a63c9", "#3f8f3a", "#b8891d", "#c0466b", "#4a7fc4", "#7a7a7a")
# Of a legend above a plot: characters that fit in a line, what a swatch takes of them, and most entries in a line.
_LINE, _SWATCH, _MOST_IN_LINE = 66, 7, 4
# Lines of a legend that the heights of the plots allow for, and how high a further one is.
_LINES_WITHIN, _LINE_INCHES = 2, 0.21

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moeits",
    # A run's name may have a dollar in it, or an underscore; it is not a formula.
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


class Drawing:
    """One plot: a matplotlib figure while it is drawn, then the text of an SVG."""

    def __init__(self, *, width: float = 5.6, height: float = 3.2, panels: Sequence[float] = (1,)) -> None:
        """One panel, or several below each other that share their x axis, with heights in these proportions."""
        matplotlib = need("matplotlib", extra="report")
        figures = need("matplotlib.figure", extra="report")
        self._matplotlib = matplotlib
        with matplotlib.rc_context(_STYLE):
            self.figure = figures.Figure(figsize=(width, height), dpi=72, layout="constrained")
            found = self.figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=panels)
            self.panels: list[Any] = [row[0] for row in found]
            self.axes: Any = self.panels[0]
            for axes in self.panels:
                axes.set_axisbelow(True)

    def legend(self) -> None:
        """All labels above the plot, each once, without a frame, in as many columns as their words leave room for."""
        pairs = [pair for axes in self.panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        entries = {label: handle for handle, label in pairs}
        if not entries:
            return
        widest = _SWATCH + max(map(len, entries))
        columns = max(1, min(_MOST_IN_LINE, _LINE // widest))
        lines = ceil(len(entries) / columns)
        # The plot keeps its height, however many lines stand above it.
        self.figure.set_figheight(self.figure.get_figheight() + _LINE_INCHES * max(0, lines - _LINES_WITHIN))
        with self._matplotlib.rc_context(_STYLE):
            self.figure.legend(
                list(entries.values()),
                list(entries),
                loc="outside upper left",
                ncols=columns,
                columnspacing=3.2,  # on a telephone the words are set larger than here
                labelcolor=INK,
            )

    def svg(self, name: str, label: str) -> str:
        """The figure as inline SVG. `name` makes its ids unique, `label` is what a screen reader says."""
        out = io.StringIO()
        with self._matplotlib.rc_context(_STYLE):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(out, format="svg", metadata=nothing)
        text = out.getvalue()
        text = text[text.index("<svg") :]
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'\bid="', f'id="{name}-', text)
        text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
        text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{_attr(label)}">', text)
        return re.sub(r"\n\s*", "\n", text)

    def x_pixels(self) -> dict[str, float]:
        """Where the x axis lies in the SVG's own units, so that the page can move a marker along it."""
        self.figure.draw_without_rendering()
        # Laid out once more while it is saved, the axes would move away from what is said here.
        self.figure.set_layout_engine("none")
        box, (low, high) = self.axes.get_window_extent(), self.axes.get_xlim()
        # SVG has 72 units an inch, the figure's own pixels are `dpi` an inch; its y axis points down.
        unit = 72 / self.figure.dpi
        height = self.figure.get_figheight() * 72
        return {
            "left": box.x0 * unit,
            "right": box.x1 * unit,
            "top": height - box.y1 * unit,
            "bottom": height - box.y0 * unit,
            "low": low,
            "high": high,
        }


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name of an ordered series, the same in every plot of it."""
    return dict(zip(names, reversed(shades(len(names))), strict=True))


def shades(number: int) -> list[str]:
    """Colours of an ordered series, from small to large, legible on both grounds."""
    colours = need("matplotlib", extra="report").colormaps["plasma"]
    hexed = need("matplotlib.colors", extra="report").to_hex
    return [hexed(colours(share)) for share in np.linspace(0.78, 0.28, number)]


def named(label: str) -> str:
    """A label as matplotlib shows it: those that begin with an underscore are left out of its legends."""
    return "\N{WORD JOINER}" + label if label.startswith("_") else label


def picture(values: np.ndarray, low: float, high: float) -> str:
    """A matrix as a picture of one pixel per entry, as a data URI; NaN is transparent."""
    matplotlib, image = need("matplotlib", extra="report"), need("matplotlib.image", extra="report")
    colours = matplotlib.colormaps["cividis"].with_extremes(bad=(0, 0, 0, 0))
    out = io.BytesIO()
    image.imsave(out, values, vmin=low, vmax=high, cmap=colours, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _attr(text: str) -> str:
    return html.escape(text, quote=True).replace("\\", "\\\\")


def standalone(svg: str) -> str:
    """An inline SVG as a file of its own, which follows light and dark by itself."""
    light, dark = _palette("light"), _palette("dark")
    style = f"<style>svg{{{light};font-family:sans-serif}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, body = svg.split(">", 1)
    return f"{head.replace('<svg', f'<svg {names}', 1)}>{style}{body}".rstrip() + "\n"


def _palette(name: str) -> str:
    colours = {
        "light": ("#1c1e21", "#5d6168", "#dcd8cd", "#0b6b72", "#b4521a", "#fbfaf6"),
        "dark": ("#e9e6df", "#a3a8ae", "#363b41", "#62c4c3", "#f19a63", "#14171a"),
    }[name]
    return ";".join(f"--{variable}:{colour}" for variable, colour in zip(_VARIABLES.values(), colours, strict=True))
