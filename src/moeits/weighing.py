"""Several sources of tokens: what each of them counts, and token signals as sums that each source has of its own."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import isfinite

import numpy as np

from moeits.errors import EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.signals.watched import OF_TRIALS, ROUNDING_BITS, VECTORS, rounding_error

SUMS = ("count", "gates", "norms", "gated")
"""Of each expert, over the tokens of a source that chose it: how many, gates, norms of the output, gate times norm."""

OF_SUMS = ("frequency", "router-score", "ean-sum", "ean-mean", "reap")
"""The signals that such sums make."""

# They are of the tokens as they were drawn: an order of removal that was tried out, and who is chosen with whom.
_NOT_SUMS = (
    *OF_TRIALS,
    *("coactivation", "dern"),
    *VECTORS,
    *map(rounding_error, ROUNDING_BITS),
)
_ITEM = re.compile(r"(.+?):([^:,]*)(?:,|$)")


def source_and_weight(item: str) -> tuple[str, float | None]:
    """An item of `--data` such as chat.jsonl:3 as the source and what it counts; a file of that name is a file.

    Raises SettingError for a weight that is not above 0.
    """
    name, _, number = item.rpartition(":")
    if not name or os.path.lexists(item):
        return item, None
    try:
        weight = float(number)
    except ValueError:  # C:\texts.jsonl, or a name with a colon
        return item, None
    return name.strip(), _checked(weight, f"--data {item}")


def weights_of(text: str) -> dict[str, float]:
    """`--weights` such as chat.jsonl:3,code.jsonl:1, source by source. Raises SettingError for what is not that."""
    items, end = list(_ITEM.finditer(text.strip())), 0
    weights: dict[str, float] = {}
    for item in items:
        try:
            weight = float(item[2])
        except ValueError:
            break
        weights[item[1].strip()] = _checked(weight, f"--weights {item[1]}:{item[2]}")
        end = item.end()
    if not weights or end != len(text.strip()):
        raise SettingError(
            f"--weights {text[:60]} is not a list of sources and weights, such as chat.jsonl:3,code.jsonl:1."
        )
    return weights


def _checked(weight: float, asked: str) -> float:
    if not (isfinite(weight) and weight > 0):
        raise SettingError(f"{asked[:80]} is out of range: a weight is above 0, and finite.")
    return weight


def signals_of(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Token signals of a layer, (E,) each, from the sums of its sources, (sources, E) each.

    Of an expert that no token reached every signal is 0: nothing is divided by 0.
    """
    count, gates, norms, gated = (sums[name].sum(0) for name in SUMS)
    reached, choices = np.where(count > 0, count, 1.0), count.sum() or 1.0
    return {
        "frequency": count / choices,
        "router-score": gates,
        "ean-sum": norms,
        "ean-mean": norms / reached,
        "reap": gated / reached,
    }


def own_sums(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of each source as signals of their own, (E,) each, by the number of the source."""
    return {f"sources.{i}.{name}": row for name in SUMS for i, row in enumerate(sums[name])}


def reweighed(evidence: Evidence, weights: Mapping[str, float], needs: Collection[str]) -> Evidence:
    """The evidence as if its sources had shares of the tokens by these weights; those not named have the weight 1.

    Sums are weighed, so no model is run. The total stays that of all tokens. Raises EvidenceError if there are no sums
    of each source, SettingError for a source that was not watched, or if what the criterion `needs` is not of sums.
    """
    names, tokens = _sources_of(evidence)
    if unknown := [name for name in weights if name not in names]:
        raise SettingError(f"--weights {unknown[0][:60]} was not watched: the evidence is of {', '.join(names)[:200]}.")
    if set(needs) & set(_NOT_SUMS):
        raise SettingError(
            "--weights weighs sums, and reconstruction tries out who can go, on tokens as they were drawn: give the "
            "weights to moeits calibrate --data, or choose by reap, ean-sum, ean-mean, frequency or router-score."
        )
    if not set(needs) & set(OF_SUMS):
        raise SettingError(
            "--weights weighs what tokens show, which this criterion does not look at: choose by reap, ean-sum, "
            "ean-mean, frequency or router-score."
        )
    wanted = np.array([weights.get(name, 1.0) for name in names])
    factors = (wanted / wanted.sum() * sum(tokens) / np.array(tokens))[:, None]
    signals = {name: dict(values) for name, values in evidence.signals.items() if name not in _NOT_SUMS}
    for layer in evidence.layers:
        sums = {name: np.stack([_sum(evidence, i, name, layer) for i in range(len(names))]) for name in SUMS}
        for name, values in signals_of({name: factors * rows for name, rows in sums.items()}).items():
            signals[name][layer] = values
    settings = {**evidence.settings, "weights": dict(zip(names, map(float, wanted), strict=True))}
    return replace(evidence, signals=signals, settings=settings)


def _sources_of(evidence: Evidence) -> tuple[list[str], list[int]]:
    """The sources that were watched, and how many tokens of each."""
    names, tokens = (evidence.settings.get(name) for name in ("watched", "watched_tokens"))
    if not isinstance(names, list) or not isinstance(tokens, list) or not names or len(names) != len(tokens):
        raise EvidenceError(
            f"The evidence of {evidence.source} has no sums of each source to be weighed: make it again with "
            "moeits calibrate MODEL --data chat.jsonl,code.jsonl --output signals.safetensors"
        )
    if not all(isinstance(count, int) and count > 0 for count in tokens):
        raise EvidenceError(
            f"The evidence of {evidence.source} counts tokens that cannot be. Calibrate the model again."
        )
    return [str(name) for name in names], tokens


def _sum(evidence: Evidence, source: int, name: str, layer: int) -> np.ndarray:
    values = evidence.of_experts(f"sources.{source}.{name}").get(layer)
    if values is None or (values < 0).any():
        raise EvidenceError(
            f"The evidence of {evidence.source} lacks sums of layer {layer}. Calibrate the model again."
        )
    return values
