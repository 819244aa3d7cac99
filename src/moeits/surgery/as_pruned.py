"""Whether a checkpoint is still what its plan leaves of its parent, byte for byte."""

from collections.abc import Iterator, Sequence

from moeits.checkpoint.fingerprints import sampled_spans
from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.checkpoint.sources import opened, read_from, read_range
from moeits.checkpoint.writing import ByteRange, Part
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import PlanError
from moeits.experts.layout import MoELayout
from moeits.experts.promises import check_not_factored, check_not_padded
from moeits.progress import Progress
from moeits.surgery.carried_out import carried_out
from moeits.surgery.history import History
from moeits.surgery.settings import Writing

# Read at a time of a tensor that is compared whole.
_PIECE = 1 << 22


def check_as_pruned(
    pruned: Checkpoint, parent: Checkpoint, plan: PruningPlan, *, full: bool, progress: Progress
) -> None:
    """Every tensor is what the plan leaves, but those that moeits itself computed since, as its files say.

    Of each tensor every byte is compared, or with `full` false those that a fingerprint samples. Raises PlanError;
    CheckpointError for experts that are stored as factors or padded.
    """
    check_not_factored(pruned.config, pruned.source)
    check_not_padded(pruned.config, pruned.source)
    made = carried_out(parent, MoELayout.of(parent), plan, Writing(), plan.coverage).tensors
    if odd := sorted({tensor.name for tensor in made} ^ set(pruned.tensors)):
        raise PlanError(_edited(pruned, odd[0]))
    computed = History.of(pruned.folder).computed()
    for done, tensor in enumerate(made):
        info = pruned.tensors[tensor.name]
        if (info.dtype, info.shape) != (tensor.dtype, tensor.shape) or (
            computed is not None and tensor.name not in computed and not _same(info, tensor.parts, full=full)
        ):
            raise PlanError(_edited(pruned, tensor.name))
        progress("comparing with the parent", done + 1, len(made))


def _edited(pruned: Checkpoint, name: str) -> str:
    return (
        f"{name} of {pruned.source} is not what its plan.json leaves of its parent: one of the three was edited since. "
        "Prune the parent again."
    )


def _same(info: TensorInfo, parts: Sequence[Part], *, full: bool) -> bool:
    """Whether the stored bytes are those of the parts, one after the other; only a piece of each is held at a time."""
    spans, begin = list(_pieces(info.nbytes) if full else sampled_spans(info.nbytes)), 0
    with opened(info.shard) as file:
        for part in parts:
            made = part() if callable(part) else part
            end = begin + (made.length if isinstance(made, ByteRange) else len(made))
            for low, high in _within(spans, begin, end):
                stored = read_from(file, info.offset + low, high - low)
                if stored.tobytes() != _bytes_of(made, low - begin, high - begin):
                    return False
            begin = end
    return begin == info.nbytes


def _within(spans: Sequence[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Of spans, (first byte, bytes), what lies from `begin` to `end`: first byte, and the first after it."""
    for start, length in spans:
        low, high = max(start, begin), min(start + length, end)
        if low < high:
            yield low, high


def _bytes_of(made: ByteRange | bytes, low: int, high: int) -> bytes:
    if isinstance(made, ByteRange):
        return read_range(made.shard, made.offset + low, high - low).tobytes()
    return made[low:high]


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, nbytes, _PIECE):
        yield start, min(_PIECE, nbytes - start)
