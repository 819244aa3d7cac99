"""A healing, as a person sees it."""

import os
from collections.abc import Mapping
from typing import Any

from moeits.console import out, table, written
from moeits.sizes import format_size
from moeits.stages.heal import Healing


def show_healing(healing: Healing, arguments: dict[str, Any]) -> None:
    """What was trained on what, and the held-out loss before, after and merged."""
    if os.environ.get("RANK", "0") != "0":
        return  # one of the helpers of accelerate launch; the main process speaks
    data = healing.data
    for note in healing.notes:
        out(f"note: {note}")
    out(
        f"{data['rows']:,} rows: {data['used']:,} used, {data['held_out']:,} held out, {data['dropped']:,} dropped, "
        f"{data['spare']:,} not needed, {data['cut']:,} cut; "
        f"{data['sequences']:,} sequences, {data['trained_tokens']:,} trained tokens"
    )
    steps = f"{healing.recipe.steps:,} {'step' if healing.recipe.steps == 1 else 'steps'}"
    out(
        f"{', '.join(healing.recipe.targets)}: {healing.trainable_parameters:,} parameters trained for {steps}, "
        f"{healing.seconds:.0f} s, {format_size(healing.peak_memory_bytes)} at most"
    )
    if healing.energy["joules"] is not None:
        out(f"{healing.energy['joules']:,.0f} J, {healing.energy['mode']}")
    table(
        ("held-out loss", "nats per token"),
        (
            ("pruned", _loss(healing.loss_before)),
            (f"adapter, step {healing.best_step}", _loss(healing.loss_after)),
            ("merged", _loss(healing.loss_merged)),
        ),
    )
    written(arguments)


def show_healed(facts: Mapping[str, Any]) -> None:
    """Of the facts of healing.json: the held-out loss before and after."""
    before, after = (_loss(facts[name]) for name in ("loss_before", "loss_merged"))
    out(f"healed: held-out loss {before} -> {after} nats per token")


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
