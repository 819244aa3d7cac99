"""The sections of a run's chapter: each gives a title, sentences and blocks, or None if the run has nothing for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moeits.report_page.accuracy import INTERVAL, NOTHING, count, percent
from moeits.report_page.artefacts import Run, criterion_of, min_experts_of, name_of
from moeits.report_page.blocks import Block, Section, facts, notes, section, table
from moeits.report_page.cost_sections import footprint, ledger
from moeits.report_page.criteria_decision import criteria_decision
from moeits.report_page.criteria_section import criteria_compared
from moeits.report_page.decision import decision
from moeits.report_page.differences import Pairing
from moeits.report_page.evidence_sections import noise_sentence, per_layer, redundancy, who_stays
from moeits.report_page.measures import Measure, measures_of
from moeits.report_page.questions import Questions, question_in_words
from moeits.report_page.removal import Removal
from moeits.report_page.result_sections import accuracy, against_size, figure_2, healing, spot_of
from moeits.report_page.rows import Row, group_label, groups_of, rows_of
from moeits.report_page.verdict import judged_point, verdict
from moeits.sizes import format_size


def sections_of(run: Run, slug: str) -> list[Section]:
    """All sections that a run has something to say in."""
    removal = Removal.of(run.evidence, min_experts_of(run), criterion_of(run)) if run.evidence else None
    rows = rows_of(run)
    if run.criteria:
        first = criteria_decision(run.criteria, run)
        compared = (first, criteria_compared(run.criteria, slug), ledger(run), _provenance(run, rows))
        return [each for each in compared if each]
    pairs = Pairing(rows)
    made = (
        decision(run, rows, pairs),
        _summary(run, rows, pairs),
        _left_out(run),
        who_stays(run, rows, removal, slug),
        redundancy(run, removal, slug),
        per_layer(run, slug),
        figure_2(run, rows, slug),
        accuracy(rows, pairs),
        against_size(rows, slug),
        healing(run, slug),
        footprint(run),
        ledger(run),
        _provenance(run, rows),
    )
    return [each for each in made if each]


def _summary(run: Run, rows: Sequence[Row], pairs: Pairing) -> Section | None:
    before = _before(run)
    known = [("architecture", run.model_type)]
    if run.evidence:
        layers = run.evidence.layers
        known.append(("MoE layers", str(len(layers))))
        known.append(("routed experts", count(sum(each.num_experts for each in layers.values()))))
        known.append(("top-k", "/".join(map(str, sorted({each.top_k for each in layers.values()})))))
    if before:
        known.append(("parameters", count(before["parameters_before"])))
        known.append(("tensors", format_size(before["bytes_before"])))
    table = headline(rows)
    said = verdict(rows, pairs)
    noise = run.evidence.above_noise() if run.evidence else {"redundancy": {}}
    if not said and noise["redundancy"]:
        said = [noise_sentence(noise)]
    return section("summary", "Summary", said, [table, facts(known), notes(_measured_on(rows, table))])


def _left_out(run: Run) -> Section | None:
    """A row for each model of the run that could not be read."""
    if not run.left_out:
        return None
    rows = [[name, why] for name, why in run.left_out.items()]
    intro = ["These models are in no table and no plot, since a file of theirs could not be read."]
    return section("left-out", "Left out", intro, [table("What could not be read", ["folder", "why"], rows, words=2)])


def _before(run: Run) -> Mapping[str, Any] | None:
    return next((p.summary for p in (*run.points, run.unpruned) if "parameters_before" in p.summary), None)


def headline(rows: Sequence[Row]) -> Block | None:
    """The choice that removes closest to half, beside the unpruned model and random choices of as many experts."""
    alike = Questions(rows).alike()
    measures, half = measures_of(alike), judged_point(alike)
    if not measures or half is None:
        return None
    shown = [row for row in alike if row.kind == "unpruned" or row.point in (half, *half.controls)]
    lines = [[group_label(group), *(_value(measure, group) for measure in measures)] for group in groups_of(shown)]
    name = name_of(half)
    removed = (
        f"{name[:1].upper()}{name[1:]}, {percent(half.summary['reduction'])} % of the routed-expert parameters removed"
    )
    caption = "; ".join([removed, *(measure.word for measure in measures)])
    strong = [number for number, line in enumerate(lines) if line[0] == "unpruned"]
    return table(caption, ["model, experts", *(measure.short for measure in measures)], lines, strong=strong)


def _measured_on(rows: Sequence[Row], shown: Block | None) -> list[str]:
    """On what the results were found, and what the intervals that are shown are about; nothing without results."""
    asked = "; ".join(f"{task}, {question_in_words(row, task)}" for task, row in Questions(rows).first.items())
    interval = f" {INTERVAL}" if shown and any("±" in cell for row in shown["rows"] for cell in row) else ""
    return [f"Measured on {asked}.{interval}"] if asked else []


def _value(measure: Measure, rows: Sequence[Row]) -> str:
    """`53.3 ± 4.9`; of several the mean, with the lowest and the highest."""
    spot = spot_of(measure, rows)
    if spot is None:
        return NOTHING
    value, low, high = map(measure.form.format, spot)
    if len(rows) > 1:
        return f"{value} ({low} to {high})"
    return value + (f" ± {measure.form.format(spot[2] - spot[0])}" if spot[2] > spot[0] else "")


def _provenance(run: Run, rows: Sequence[Row]) -> Section | None:
    asked = run.sweep or run.criteria
    settings = _flat(asked["settings"] if asked else {})
    if run.evidence:
        settings |= {"estimator": run.evidence.estimator, **_flat(run.evidence.settings, "scoring")}
    for row in rows[:1]:
        settings |= _flat(row.results.settings, "evaluation") | _flat(row.results.versions, "version")
    blocks = [
        table("Settings and versions", ["setting", "value"], [[n, str(v)] for n, v in settings.items()], words=2),
        table("Files and their SHA-256", ["file", "SHA-256"], list(run.files.items()), words=2, folded=True),
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
            flat[label] = (
                f"{each:.6g}" if isinstance(each, float) else each if isinstance(each, str) else json.dumps(each)
            )
    return flat
