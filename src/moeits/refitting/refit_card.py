"""What the card of a refitted checkpoint says: the pruned one's card, and how it was refitted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_UNTOUCHED = "that are left are those of the source, bit for bit; nothing was trained."
_REFITTED = (
    "that are left are those of the source, bit for bit, but for the down projections named in `refit.json`, which "
    "were\nrefitted in closed form, see below; nothing was trained."
)
_BEFORE = "## Not measured here"


def refitted_card(pruned: Path, facts: Mapping[str, Any]) -> str:
    """README.md of the refitted checkpoint, from the pruned one's folder and the facts of refit.json."""
    path = pruned / "README.md"
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {facts['source']}, refitted\n"
    if facts["accepted"]:
        card = card.replace(_UNTOUCHED, _REFITTED)
    section = _section(facts)
    before, at, after = card.partition(_BEFORE)
    return f"{before}{section}\n{at}{after}" if at else f"{card.rstrip()}\n\n{section}"


def _section(facts: Mapping[str, Any]) -> str:
    data, loss = facts["data"], facts["loss"]
    fitted = [layer for layer in facts["layers"] if layer["ridge"] is not None]
    outcome = (
        f"{len(facts['tensors']['computed'])} tensors were computed; every other one is the pruned checkpoint's, byte "
        "for byte."
        if facts["accepted"]
        else "**No weight was changed**: the loss on tokens that took no part did not fall for certain."
    )
    return f"""## Refit

Ridge regression of the kept experts' down projections on what each layer of {facts["parent"]} gives, layer by layer, on
{data["tokens"]:,} tokens ({", ".join(data["sources"])}); the ridge of each layer chosen on other tokens.
{len(fitted)} of {len(facts["layers"])} layers were fitted. {outcome} `refit.json` has the errors of every layer.

| on {loss["tokens"]:,} tokens that took no part | nats per token |
| --- | ---: |
| unpruned | {loss["unpruned"]:.4f} |
| pruned | {loss["pruned"]:.4f} |
| refitted | {loss["refitted"]:.4f} |
"""
