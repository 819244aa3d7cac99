"""Sizes and times of shards, which tell whether somebody wrote to them since."""

from collections.abc import Sequence

from moeits.checkpoint.sources import Shard
from moeits.errors import CheckpointError

Stamps = tuple[tuple[str, int, int], ...]


def stamps_of(shards: Sequence[Shard]) -> Stamps:
    """Name and stamp of every shard: bytes and, of a file, the time of the last change (ns)."""
    return tuple((shard.name, *shard.stamp()) for shard in shards)


def check_stamps(shards: Sequence[Shard], before: Stamps, *, where: str) -> None:
    """The shards are as they were; those without stamps are not looked at. Raises CheckpointError if they changed."""
    changed = sorted({stamp[0] for stamp in set(before) ^ set(stamps_of(shards))}) if before else []
    if changed:
        raise CheckpointError(
            f"{where} changed while it was read: {', '.join(changed[:3])}. Wait until nothing writes to it, "
            "then start again."
        )
