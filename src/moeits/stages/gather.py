"""The shards of a scoring -> the evidence that one process would have written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeits.errors import EvidenceError
from moeits.evidence import SHARD, Evidence
from moeits.files import check_file_output
from moeits.scoring.work_shards import WorkShard, shard_of


def gather(parts: Sequence[str | Path | Evidence], *, output: str | Path | None = None) -> Evidence:
    """Put the shards of a scoring together: all that `moeits score --shard` wrote, each once, in any order.

    The result is bit for bit what one scoring of all layers gives. With `output` it is also written there.

    Raises EvidenceError for shards that are missing, given twice, or of different checkpoints, settings or versions of
    moeits; OutputError if the evidence cannot be written.
    """
    given = [parts] if isinstance(parts, (str, Path, Evidence)) else list(parts)
    if output is not None:
        check_file_output(Path(output), inputs=given)
    read = [_Part.of(each, at) for at, each in enumerate(given, 1)]
    if not read:
        raise EvidenceError("There are no shards: give all that moeits score --shard wrote.")
    for other in read[1:]:
        _check_alike(read[0], other)
    _check_complete(read)
    whole = _together([each.evidence for each in sorted(read, key=lambda part: part.shard.number)])
    if output is not None:
        whole.save(output)
    return whole


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Evidence of one shard, and what a sentence calls it."""

    name: str
    evidence: Evidence
    shard: WorkShard
    version: str

    @classmethod
    def of(cls, given: str | Path | Evidence, at: int) -> "_Part":
        name = f"evidence {at}" if isinstance(given, Evidence) else str(given)
        evidence = given if isinstance(given, Evidence) else Evidence.load(given)
        shard, version = shard_of(evidence, name)
        return cls(name=name, evidence=evidence, shard=shard, version=version)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, and the number of shards."""
        own = {name: value for name, value in self.evidence.settings.items() if name != SHARD}
        return {"estimator": self.evidence.estimator, **own}


def _check_alike(one: _Part, other: _Part) -> None:
    """Raises EvidenceError if two shards are not of one scoring."""
    first, second = one.evidence, other.evidence
    if first.fingerprint != second.fingerprint:
        raise EvidenceError(
            f"The shards are of two checkpoints: {one.name} of {first.source} ({first.fingerprint[:12]}), {other.name} "
            f"of {second.source} ({second.fingerprint[:12]}). Give shards of one."
        )
    if one.version != other.version:
        raise EvidenceError(
            f"{one.name} was scored by moeits {one.version}, {other.name} by {other.version}. Score one of them again."
        )
    if one.settings != other.settings or one.shard.of != other.shard.of:
        raise EvidenceError(f"{one.name} and {other.name} were scored with other settings: {_difference(one, other)}.")
    if replace(second.inventory, source=first.source) != first.inventory:
        raise EvidenceError(
            f"{one.name} and {other.name} say different things of one checkpoint, or of how much of it was hashed. "
            "Score both with the same --verify and --architecture."
        )


def _difference(one: _Part, other: _Part) -> str:
    if one.shard.of != other.shard.of:
        return f"{one.shard.of} shards and {other.shard.of}"
    names = sorted({*one.settings, *other.settings})
    name = next(name for name in names if one.settings.get(name) != other.settings.get(name))
    return f"{name} is {one.settings.get(name)!r:.60} and {other.settings.get(name)!r:.60}"


def _check_complete(read: Sequence[_Part]) -> None:
    """Every shard is there once. Raises EvidenceError."""
    found: dict[int, str] = {}
    for part in read:
        if part.shard.number in found:
            raise EvidenceError(f"{found[part.shard.number]} and {part.name} are both shard {part.shard}. Give one.")
        found[part.shard.number] = part.name
    of = read[0].shard.of
    if missing := [number for number in range(1, of + 1) if number not in found]:
        some = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise EvidenceError(
            f"Of {of} shards {some} {'is' if len(missing) == 1 else 'are'} missing: score with --shard "
            f"{missing[0]}/{of}{'' if len(missing) == 1 else ', and so on'}."
        )


def _together(parts: Sequence[Evidence]) -> Evidence:
    first = parts[0]
    names = list(first.signals)
    return replace(
        first,
        settings={name: value for name, value in first.settings.items() if name != SHARD},
        redundancy=_joined([part.redundancy for part in parts]),
        floor=_joined([part.floor for part in parts]),
        signals={name: _joined([part.signals[name] for part in parts]) for name in names},
    )


def _joined(by_layer: Sequence[Mapping[int, np.ndarray]]) -> dict[int, np.ndarray]:
    return {layer: values for each in by_layer for layer, values in each.items()}
