"""What the choices of a comparison are made with, and what its rows found and took."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.choosing.needs import scoring_for, scoring_for_all, watches
from moeits.choosing.pruning_plan import PruningPlan
from moeits.criteria_file import CostOfRow, CriteriaFile, CriteriaRow
from moeits.errors import EvaluationError
from moeits.evaluation.results import Results
from moeits.evidence import Evidence, merged
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.finished import workplace
from moeits.run_files import LedgerEntry
from moeits.signals.settings import Scoring
from moeits.signals.watched import SEARCHED, flag_of
from moeits.stages.calibrate import SELECTION, asked_for, calibrated
from moeits.stages.compare import compare
from moeits.stages.score import score
from moeits.trials.rows import (
    CALIBRATING,
    HEALING,
    PRUNING,
    REFITTING,
    SCORING,
    TOKENS,
    CriteriaFolder,
    RowFolder,
    RowWork,
)
from moeits.typed_json import Count, read_typed


def evidence_for(work: RowWork, run: CriteriaFolder, criteria: Iterable[str], counts: Mapping[int, int]) -> Evidence:
    """What these criteria must know, by one scoring and one calibration, of which the run keeps the files.

    `counts` are those of all rows: how many experts of each layer stay.
    """
    names = sorted(set(criteria))
    found = [Evidence(inventory=Inventory.of(work.checkpoint, MoELayout.of(work.checkpoint)))]
    scoring = scoring_for_all(names, Scoring())
    if scoring is not None:
        found.append(_scored(work, run, names, scoring))
    if any(map(watches, names)):
        found.append(_calibrated(work, run, names, counts))
    return merged(found)


def _scored(work: RowWork, run: CriteriaFolder, names: Sequence[str], scoring: Scoring) -> Evidence:
    if run.evidence.exists():
        known = Evidence.load(run.evidence)
        scored = [name for name in names if scoring_for(name, Scoring()) is not None]
        if all(known.known(need) for name in scored for need in criterion_named(name).needs):
            return known
    with work.ledger.stage(SCORING):
        return score(work.checkpoint, output=run.evidence, scoring=scoring, progress=work.progress)


def _calibrated(work: RowWork, run: CriteriaFolder, names: Sequence[str], counts: Mapping[int, int]) -> Evidence:
    """What these criteria watch, and what the run has watched already: rows that are there were chosen by that."""
    needs = {need for name in names if watches(name) for need in criterion_named(name).needs}
    if run.signals.exists():
        known = Evidence.load(run.signals)
        if all(known.known(need) for need in needs if flag_of(need)):
            return known
        needs |= known.signals.keys()
    asked = (work.windows, work.machine, Opening(), SELECTION, work.progress)
    with work.ledger.stage(CALIBRATING), workplace(run.signals, progress=work.progress) as place:
        also, searched = asked_for(needs)[1], counts if SEARCHED in needs else None
        evidence = calibrated(work.checkpoint, place, *asked, also=also, counts=searched)
        evidence.save(run.signals)
    return evidence


def empty_record(checkpoint: Checkpoint, like: PruningPlan, settings: Mapping[str, Any]) -> CriteriaFile:
    """The file of a comparison that has no rows yet."""
    return {
        "source": checkpoint.source,
        "model_type": checkpoint.config["model_type"],
        "fingerprint": checkpoint.fingerprint,
        "settings": dict(settings),
        "experts_before": like.summary["experts_before"],
        "experts_kept": like.summary["experts_kept"],
        "text": None,
        "rows": [],
    }


def record_of(
    work: RowWork, run: CriteriaFolder, like: PruningPlan, settings: Mapping[str, Any], rows: Iterable[RowFolder]
) -> CriteriaFile:
    """The file of a comparison. Raises EvaluationError if results of it were not of one text."""
    unpruned = Results.load(run.unpruned.unhealed)
    text = unpruned.perplexity
    assert text is not None
    entries = work.ledger.entries()
    made = [
        _row(unpruned, run, entries, row, state, file)
        for row in dict.fromkeys(rows)
        for state, file in _results_of(row).items()
        if file.exists()
    ]
    return {
        **empty_record(work.checkpoint, like, settings),
        "text": {
            "file": text["file"],
            "sha256": text["sha256"],
            "documents": text["documents"],
            "tokens": text["tokens"],
            "window_tokens": text["window_tokens"],
            "nats_per_token": text["nats_per_token"],
        },
        "rows": made,
    }


def _results_of(row: RowFolder) -> dict[str, Path]:
    """State of a choice -> where its results are."""
    return {
        "pruned": row.unhealed,
        "refitted": row.refitted.unhealed,
        "healed": row.healed,
        "refitted, healed": row.refitted.healed,
    }


class _RefitFile(TypedDict):
    """Of refit.json, what a row says."""

    accepted: bool
    data: "_Tokens"


class _Tokens(TypedDict):
    tokens: Count
    held_out_tokens: Count
    sources: list[str]


def _row(
    unpruned: Results, run: CriteriaFolder, entries: Sequence[LedgerEntry], row: RowFolder, state: str, file: Path
) -> CriteriaRow:
    plan = PruningPlan.load(row.plan)
    refitted = _refit_of(row) if state.startswith("refitted") else None
    found = compare(unpruned, Results.load(file)).perplexity["nats_per_token"]
    watched = Evidence.load(run.signals).settings if watches(plan.criterion) else None
    tokens, data = 0, list[str]()
    if watched is not None:
        tokens, data = int(watched["tokens"]), list(watched["sources"])
    if refitted is not None:
        tokens += refitted["data"]["tokens"] + refitted["data"]["held_out_tokens"]
        data += [source for source in refitted["data"]["sources"] if source not in data]
    own = _entries_of(entries, row, state, plan.criterion)
    return {
        "name": row.name,
        "criterion": plan.criterion,
        "seed": plan.settings.get("seed") if criterion_named(plan.criterion).needs_seed else None,
        "state": state,
        "nats_per_token": found.b,
        "rise": found.difference,
        "low": found.low,
        "high": found.high,
        "accepted": None if refitted is None else refitted["accepted"],
        "cost": _cost(own, tokens, data),
    }


def _refit_of(row: RowFolder) -> _RefitFile:
    return read_typed(
        row.refitted.refit,
        _RefitFile,
        error=EvaluationError,
        what="what moeits refit wrote",
        remedy="Remove the folder of this row, and compare again.",
        kind="refit",
    )


def _entries_of(entries: Sequence[LedgerEntry], row: RowFolder, state: str, criterion: str) -> list[LedgerEntry]:
    """What the ledger says of making one row; what it shares with others is charged to each in full."""
    shared = {SCORING} if scoring_for(criterion, Scoring()) is not None else set()
    shared |= {TOKENS, CALIBRATING} if watches(criterion) else set()
    own, stages = row.name, {PRUNING}
    if state.startswith("refitted"):
        own, stages, shared = row.refitted.name, {PRUNING, REFITTING}, shared | {TOKENS}
    stages |= {HEALING} if state.endswith("healed") else set()
    return [
        entry
        for entry in entries
        if (entry.get("point") is None and entry["stage"] in shared)
        or (entry.get("point") == own and entry["stage"] in stages)
    ]


def _cost(entries: Sequence[LedgerEntry], tokens: int, data: list[str]) -> CostOfRow:
    joules = [entry.get("joules") for entry in entries]
    peaks = [peak for entry in entries if (peak := entry.get("peak_bytes")) is not None]
    return {
        "seconds": sum(entry["seconds"] for entry in entries),
        "joules": None if None in joules else sum(each for each in joules if each is not None),
        "peak_bytes": max(peaks, default=None),
        "tokens": tokens,
        "data": data,
    }
