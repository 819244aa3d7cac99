"""Footprints and reports, as a person sees them."""

from pathlib import Path
from typing import Any

from moeits.console import out, written
from moeits.sizes import format_size
from moeits.stages.measure import Footprint
from moeits.stages.report import Report


def show_report(made: Report, arguments: dict[str, Any]) -> None:
    """Where the page is, and how large; and which card gained results. Tables that go to no file are printed."""
    for line in (made.text or "").splitlines():
        out(line)
    if made.nbytes is not None:
        out(f"written: {arguments['output']} ({format_size(made.nbytes)}; {', '.join(made.runs)})")
    if arguments.get("card"):
        out(f"written: {Path(arguments['card']) / 'README.md'}")


def show_footprint(found: Footprint, arguments: dict[str, Any]) -> None:
    """Every number with its unit; what was not measured, with the reason."""
    counts = found.parameters
    out(f"{found.model['source']} ({found.model['model_type']})")
    out(f"parameters    {counts.total:,}; {counts.active_per_token:,} active per token, {counts.routed:,} routed")
    out(f"size          {format_size(found.tensor_bytes)} of tensors, {format_size(found.folder_bytes)} on disk")
    if found.reduction is not None:
        out(f"P(down)       {found.reduction:.2%}")
    if found.sparsity is not None:
        out(f"zero weights  {found.sparsity:.3%}")
    if found.flops:
        out(f"FLOPs         {found.flops['per_token']:,.0f} per token, reading {found.flops['tokens']}")
    if found.memory:
        out(f"peak memory   {format_size(found.memory['peak_bytes'])} of the {found.memory['of']}")
    if found.load_seconds is not None:
        out(f"loading       {found.load_seconds:.1f} s")
    for name, speed in (("reading", found.prefill), ("generating", found.decode)):
        if speed:
            out(
                f"{name:<13} {speed['tokens_per_second']:,.1f} tokens/s, median of {speed['repeats']} "
                f"({speed['slowest']:,.1f} to {speed['fastest']:,.1f})"
            )
    if found.energy:
        out(f"energy        {found.energy['joules_per_token']:.3g} J per generated token ({found.energy['mode']})")
    for name, reason in found.not_measured.items():
        out(f"not measured: {name.replace('_', ' ')}. {reason}")
    written(arguments)
