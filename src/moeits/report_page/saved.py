"""What pruning saved, in large: bytes, parameters and memory; and that a token costs what it did."""

from collections.abc import Iterator, Mapping
from typing import Any

from moeits.report_page.accuracy import count
from moeits.report_page.artefacts import Point, Run
from moeits.sizes import format_size


def saved_cards(run: Run, point: Point) -> Iterator[dict[str, Any]]:
    """Bytes of tensors and parameters; the peak memory where both were measured; what a token takes."""
    summary = point.summary
    before, after = summary["bytes_before"], summary["bytes_after"]
    yield {
        "name": "Saved, tensors",
        "value": share(1 - after / before if before else 0),
        "notes": [
            f"{format_size(before)} to {format_size(after)}",
            f"{count(summary['parameters_before'])} to {count(summary['parameters_after'])} parameters",
            _memory(run.unpruned.footprint, point.footprint),
        ],
    }
    yield {"name": "A token costs", **_token(run, point)}


def _memory(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Peak memory while generating; that it was not measured, where it was not."""
    peaks = [((each or {}).get("memory") or {}).get("peak_bytes") for each in (before, after)]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return "peak memory not measured"
    return f"peak memory {' to '.join(map(format_size, known))}"


def share(part: float) -> str:
    """A share in whole percent: `37 %`."""
    return f"{100 * part:.0f} %"


def _token(run: Run, point: Point) -> dict[str, Any]:
    """`the same`, as long as every layer keeps as many experts as run per token."""
    speeds = _speeds(run.unpruned.footprint, point.footprint)
    if run.evidence is None:
        floor = point.plan.settings.get("min_experts") if point.plan else None
        if floor is not None:
            return {"value": "not known", "notes": ["the run has no evidence to tell experts per token from", *speeds]}
        return {"value": "the same", "notes": ["as many experts run per token", *speeds]}
    layers = run.evidence.layers
    fewer = [layer for layer, kept in point.counts.items() if kept < layers[layer].top_k]
    top_k = "/".join(map(str, sorted({facts.top_k for facts in layers.values()})))
    if fewer:
        said = f"fewer than the {top_k} experts per token stay in {len(fewer)} of {len(layers)} layers"
        return {"value": "less", "notes": [said, *speeds]}
    return {"value": "the same", "notes": [f"{top_k} experts run per token, as before", *speeds]}


def _speeds(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """Tokens per second while generating, where both were measured on the same machine."""
    speeds = [speed for each in (before, after) if (speed := (each or {}).get("decode"))]
    if len(speeds) < 2 or not before or not after or before.get("machine") != after.get("machine"):
        return []
    was, now = (
        f"{each['tokens_per_second']:,.1f} ({each['slowest']:,.1f} to {each['fastest']:,.1f})" for each in speeds
    )
    return [f"measured, tokens/s: {was} unpruned, {now} now"]
