"""Checkpoints on disk and on the hub: read lazily, written all or nothing."""

from moeits.checkpoint.reading import DTYPES, Checkpoint, TensorInfo

__all__ = ["DTYPES", "Checkpoint", "TensorInfo"]
