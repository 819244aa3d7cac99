"""A run that was not made, as a person sees it."""

from moeits.console import out
from moeits.foreseen import Foreseen, Work
from moeits.scoring.rehearsal import Rehearsal
from moeits.sizes import format_size

# Work of less than this share of the whole is not named.
_NAMED = 0.01


def show_foreseen(found: Foreseen) -> None:
    """Sizes, disk, memory and time, each with its unit."""
    out("dry run: nothing was written")
    if isinstance(found, Rehearsal):
        _show_sizes(found)
    if found.reads_bytes is not None:
        wrote = "" if found.writes_bytes is None else f", writes {format_size(found.writes_bytes)}"
        out(f"tensors      reads {format_size(found.reads_bytes)}{wrote}")
    if found.disk_free_bytes is not None:
        most = "at most " if isinstance(found, Rehearsal) and found.bytes_after is None else ""
        out(f"disk         {most}{format_size(found.disk_bytes)}; {format_size(found.disk_free_bytes)} free")
    if found.memory_bytes is not None:
        out(f"memory       about {format_size(found.memory_bytes)} of weights and activations, beside the program")
    _show_time(found)
    for sentence in found.not_foreseen:
        out(f"note: {sentence}")


def _show_sizes(found: Rehearsal) -> None:
    kept = "as scores decide" if found.experts_kept is None else f"{found.experts_kept:,}"
    after = "as scores decide" if found.bytes_after is None else format_size(found.bytes_after)
    out(f"experts      {found.experts_before:,} -> {kept}")
    out(f"tensors      {format_size(found.bytes_before)} -> {after}")
    if found.scoring_seconds is not None and found.scoring_memory_bytes is not None:
        out(
            f"scoring      {duration(found.scoring_seconds)} (an estimate, from one pair timed on this machine), "
            f"{format_size(found.scoring_memory_bytes)} of weights held at a time"
        )
    if found.watched_tokens is not None and found.watching_memory_bytes is not None:
        out(
            f"calibration  {found.watched_tokens:,} tokens through every layer, about "
            f"{format_size(found.watching_memory_bytes)} of memory"
        )


def _show_time(found: Foreseen) -> None:
    if found.seconds is None:
        return
    out(f"time         {duration(found.seconds)}, if nobody else is at work here; timed on a small piece of each:")
    for work in found.work:
        if work.seconds_each is None or _counts(work, found.seconds):
            out(f"             {_named(work)}")


def _counts(work: Work, seconds: float) -> bool:
    return (work.seconds_each or 0) * work.times >= _NAMED * seconds


def _named(work: Work) -> str:
    times = "" if work.times == 1 else f"{work.times:,.0f} x "
    took = "not known" if work.seconds_each is None else duration(work.seconds_each * work.times)
    return f"{times}{work.what}: {took}"


def duration(seconds: float) -> str:
    """About how long, in the unit that a person would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"
