"""Whether a refit is a gain, by the losses at the end of its streams."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Two-sided 95 % of a normal mean.
_Z = 1.96


_ALL = slice(None)


def judged(losses: Mapping[str, Any], deciding: slice = _ALL) -> tuple[dict[str, Any], bool]:
    """Means, refitted - pruned with its 95 % interval over windows and for each source, and whether that is a gain.

    It is one if all of the interval is below 0, and no source that is told apart lost on average, of those that chose
    as of those that judged. Means and interval are of the windows that decide.
    """
    nats = {name: np.array(values)[deciding] for name, values in losses["nats"].items()}
    difference = nats["refitted"] - nats["pruned"]
    half = _Z * float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
    mean = float(difference.mean())
    facts: dict[str, Any] = {name: float(values.mean()) for name, values in nats.items()}
    facts["difference"] = {"mean": mean, "low": mean - half, "high": mean + half} if np.isfinite(half) else None
    for name in ("kl_to_parent", "same_first_choice"):
        facts[name] = {model: float(np.mean(values[deciding])) for model, values in losses[name].items()}
    facts["by_source"] = _by_source(losses)
    return facts, mean + half < 0 and all(each <= 0 for each in facts["by_source"].values())


def _by_source(losses: Mapping[str, Any]) -> dict[str, float]:
    """Refitted - pruned of each source that is told apart, mean over its windows."""
    differences: dict[str, list[float]] = {}
    for part, sources in losses.get("sources", {}).items():
        rows = zip(sources, losses[part]["refitted"], losses[part]["pruned"], strict=False)
        for source, after, before in rows:
            differences.setdefault(source, []).append(after - before)
    return {source: float(np.mean(values)) for source, values in differences.items()}
