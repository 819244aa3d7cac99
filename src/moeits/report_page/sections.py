"""The sections of a run's chapter: each gives a title, sentences and blocks, or None if the run has nothing for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moeits.report_page.accuracy import Row, count, metrics_of, percent, rows_of, tasks_of, with_interval
from moeits.report_page.artefacts import Run, min_experts_of
from moeits.report_page.blocks import Section, facts, section, table
from moeits.report_page.cost_sections import footprint, ledger
from moeits.report_page.evidence_sections import per_layer, redundancy, who_stays
from moeits.report_page.removal import Removal
from moeits.report_page.result_sections import accuracy, against_size, figure_2, healing
from moeits.sizes import format_size


def sections_of(run: Run, slug: str) -> list[Section]:
    """All sections that a run has something to say in."""
    scored = run.evidence is not None and run.evidence.redundancy
    removal = Removal.of(run.evidence, min_experts_of(run)) if run.evidence and scored else None
    rows = rows_of(run)
    made = (
        _summary(run, rows),
        who_stays(run, rows, removal, slug),
        redundancy(run, removal, slug),
        per_layer(run, slug),
        figure_2(run, rows, slug),
        accuracy(rows),
        against_size(rows, slug),
        healing(run, slug),
        footprint(run),
        ledger(run),
        _provenance(run, rows),
    )
    return [each for each in made if each]


def _summary(run: Run, rows: Sequence[Row]) -> Section | None:
    before = _before(run)
    known = [("model", run.source), ("architecture", run.model_type), ("fingerprint", run.fingerprint[:12])]
    if run.evidence:
        layers = run.evidence.layers
        known.append(("MoE layers", str(len(layers))))
        known.append(("routed experts", count(sum(each.num_experts for each in layers.values()))))
        known.append(("top-k", "/".join(map(str, sorted({each.top_k for each in layers.values()})))))
    if before:
        known.append(("parameters", count(before["parameters_before"])))
        known.append(("tensors", format_size(before["bytes_before"])))
    return section("summary", "Summary", _findings(rows), [facts(known)])


def _before(run: Run) -> Mapping[str, Any] | None:
    return next((p.summary for p in (*run.points, run.unpruned) if "parameters_before" in p.summary), None)


def _findings(rows: Sequence[Row]) -> list[str]:
    """What came out, in a sentence or two; nothing if nothing was evaluated."""
    tasks = tasks_of(rows)
    unpruned = next((row for row in rows if row.kind == "unpruned"), None)
    pruned = [row for row in rows if row.kind != "unpruned" and row.point.summary.get("reduction", 0) > 0]
    metrics = metrics_of(rows, tasks)
    if not metrics or unpruned is None or not pruned:
        return []
    sentences = []
    for kind in ("unhealed", "healed"):
        scored = [(row, row.mean(tasks, metrics[0])) for row in pruned if row.kind == kind]
        scored = [(row, score) for row, score in scored if score]
        if scored:
            row, score = min(scored, key=lambda each: abs(each[0].point.summary["reduction"] - 0.5))
            sentences.append(
                f"{'Healed' if kind == 'healed' else 'Un-healed'}, with {percent(row.point.summary['reduction'])} % of "
                f"the routed-expert parameters removed, it scores {with_interval(score)} % ({metrics[0]}); the "
                f"unpruned model {with_interval(unpruned.mean(tasks, metrics[0]))} %."
            )
    return sentences


def _provenance(run: Run, rows: Sequence[Row]) -> Section | None:
    settings = _flat((run.sweep or {}).get("settings") or {})
    if run.evidence:
        settings |= {"estimator": run.evidence.estimator, **_flat(run.evidence.settings, "scoring")}
    for row in rows[:1]:
        settings |= _flat(row.results.get("settings", {}), "evaluation") | _flat(
            row.results.get("versions", {}), "version"
        )
    blocks = [
        table("Settings and versions", ["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
        table("Files and their SHA-256", ["file", "SHA-256"], list(run.files.items()), folded=True),
    ]
    return section("provenance", "How it was made", [f"{run.source}, fingerprint {run.fingerprint}."], blocks)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer inner` -> value; what was not set is left out."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        label = f"{prefix} {name}".strip()
        if isinstance(each, Mapping):
            flat |= _flat(each, label)
        elif each is not None:
            flat[label] = each if isinstance(each, str) else json.dumps(each)
    return flat
