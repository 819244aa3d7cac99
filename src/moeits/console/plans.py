"""Plans, evidence and inspections, as a person sees them."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from moeits.choosing.criteria import caveat_of
from moeits.choosing.pruning_plan import WHOLE_LAYERS, PruningPlan
from moeits.console import out, table, written
from moeits.console.explanation import show_explanation
from moeits.evidence import NOISE_MARGIN, Evidence, estimated
from moeits.experts.explaining import Explanation
from moeits.sizes import format_size
from moeits.stages.inspect import Inspection, LayerRow


def show_plan(plan: PruningPlan, arguments: dict[str, Any]) -> None:
    """Layer, experts before and after, the level where it stopped; totals with P(down) and bytes."""
    before = plan.experts_before() or {}
    table(
        ("layer", "experts", "kept", "stopped at"),
        (
            (str(layer), str(before.get(layer, "?")), str(len(kept)), _stopped_at(plan, layer))
            for layer, kept in plan.kept.items()
        ),
    )
    summary = plan.summary
    out(
        f"{summary['experts_kept']} of {summary['experts_before']} experts kept; P(down) {summary['reduction']:.2%}, "
        f"{summary['reduction_of_all']:.2%} of all parameters; "
        f"{format_size(summary['bytes_before'])} -> {format_size(summary['bytes_after'])} of tensors"
    )
    if plan.settings.get("mtp"):
        out(f"note: layers for multi-token prediction, whose experts no plan covers, are {plan.settings['mtp']}.")
    if whole := plan.settings.get(WHOLE_LAYERS):
        out(f"note: a table of tokens chooses the experts of layers {', '.join(map(str, whole))}, so all of them stay.")
    if summary.get("layers_on_noise_floor"):
        out(_noise_warning(summary["layers_on_noise_floor"], len(plan.kept)))
        if arguments.get("output"):
            out(f"Compare with the control: {control_command(plan, arguments)}")
    for note in _notes(plan):
        out(f"note: {note}")
    written_unequal = "layout" in arguments and len(set(plan.counts.values())) > 1  # a checkpoint, not a plan
    if written_unequal and "padded_bytes" not in plan.summary:
        out(
            "note: layers keep different numbers of experts: open it with moeits.load, or in transformers with "
            "trust_remote_code=True. For llama.cpp, or vLLM and SGLang without moeits, write it with --layout uniform."
        )
    written(arguments)


def control_command(plan: PruningPlan, arguments: Mapping[str, Any]) -> str:
    """What writes a random choice of the same size, as it can be typed where this plan was made or carried out."""
    output = Path(arguments["output"])
    if "evidence" in arguments:
        words = ["moeits", "plan", *map(str, arguments["evidence"])]
        like, control = output, output.with_name(f"{output.stem}-random{output.suffix}")
    else:
        words = ["moeits", "simplify", str(arguments["model"])]
        like, control = output / "plan.json", output.with_name(f"{output.name}-random")
    if arguments.get("revision"):
        words += ["--revision", arguments["revision"]]
    if arguments.get("architecture"):
        words += ["--architecture", str(arguments["architecture"])]
    if plan.settings.get("min_experts") is not None:
        words += ["--min-experts", str(plan.settings["min_experts"])]
    return shlex.join([*words, "--criterion", "random", "--like", str(like), "--output", str(control)])


def _notes(plan: PruningPlan) -> Iterator[str]:
    """What a budget did that nobody may have meant, who stayed whatever it asked for, and what is an estimate."""
    if caveat := caveat_of(plan.criterion):
        yield f"{plan.criterion} is {caveat}: whoever reports it should say so."
    if note := estimated(plan.settings, plan.summary):
        yield f"{note}."
    for setting, name in (("protected", "protected experts"), ("super_experts", "super experts")):
        if experts := plan.settings.get(setting):
            yield f"{name} stay: {of_layers(experts)}."
    if unreached := plan.summary.get("unreached"):
        count = sum(map(len, unreached.values()))
        yield (
            f"no token reached {count} of {plan.summary['experts_before']} experts ({of_layers(unreached)}), so "
            "nothing is known of them: calibrate on more tokens, or other text, if that is much."
        )
    if plan.edit:
        edited = sum(map(len, plan.edit.groups.values()))
        several = [f"{edited} kept experts are made of several"] if edited else []
        changed = ["the weights of all kept experts are changed"] if plan.edit.then or not edited else []
        yield f"{' and '.join([*several, *changed])} ({plan.edit.names}): compare with the plan without --edit."
    if plan.summary["experts_kept"] == plan.summary["experts_before"]:
        yield "nothing was removed: the model is within the budget as it is."
    if len(plan.summary.get("floored_layers") or ()) == len(plan.kept):
        floor = "top_k" if plan.settings.get("min_experts") is None else "--min-experts"
        yield (
            f"every layer stopped at its floor ({floor}), so that scores had no say in how many stay: a larger --tau, "
            "or --reduction or --max-size, removes less."
        )
    if padded := plan.summary.get("padded_bytes"):
        zeros = padded - plan.summary["bytes_after"]
        yield (
            f"layers are padded to {max(plan.counts.values())} experts: {format_size(padded)} of tensors are written, "
            f"{format_size(zeros)} of them zeros. Padding saves nothing; --layout uniform would."
        )
    fewer = {layer: facts.top_k for layer, facts in plan.layers.items() if plan.counts[layer] < facts.top_k}
    if fewer:
        layer, top_k = next(iter(fewer.items()))
        yield (
            f"{len(fewer)} of {len(plan.kept)} layers keep fewer experts than a token is sent to, so top_k is lowered "
            f"there (layer {layer}: {top_k} to {plan.counts[layer]}). A token is computed with fewer experts."
        )


def of_layers(experts: Mapping[str, Sequence[int]]) -> str:
    """Such as 'layer 1: 68; layer 2: 92', the first of many."""
    shown = [f"layer {layer}: {', '.join(map(str, ids))}" for layer, ids in experts.items()]
    return "; ".join(shown[:8]) + (f"; and {len(shown) - 8} layers more" if len(shown) > 8 else "")


def show_evidence(evidence: Evidence, arguments: dict[str, Any]) -> None:
    """Per layer: how redundant its pairs are, beside what independent weights would show."""
    found = evidence.facts()
    columns = ("layer", "experts", "mean R", "largest R", "noise floor", "largest / floor")
    if evidence.redundancy:
        table(columns, (_redundancy_row(evidence, layer, found["redundancy"]) for layer in evidence.redundancy))
    if evidence.signals:
        out(f"{'beside it, for' if evidence.redundancy else 'of'} each layer: {', '.join(evidence.signals)}")
    if note := estimated(evidence.settings, found):
        out(f"note: {note}.")
    if found["layers_on_noise_floor"]:
        out(_noise_warning(found["layers_on_noise_floor"], len(evidence.layers)))
    written(arguments)


def show_inspection(found: Inspection | Explanation, arguments: dict[str, Any]) -> None:
    """What a checkpoint or a plan holds."""
    if isinstance(found, Explanation):
        show_explanation(found, arguments)
        return
    of_plan = found.kind == "plan"
    of_which = f", fingerprint {found.fingerprint[:12]}" if found.fingerprint else ""
    out(f"{found.kind} of {found.source} ({found.model_type}){of_which}")
    table(
        ("layers", "experts", "kept") if of_plan else ("layers", "experts", "top-k"), _inspection_rows(found, of_plan)
    )
    if found.coverage is not None:
        out(str(found.coverage))
    experts = sum(row.experts for row in found.layers)
    verb = "experts kept; the checkpoint will have" if of_plan else "routed experts,"
    parameters = "?" if found.parameters is None else f"{found.parameters:,}"
    size = "?" if found.nbytes is None else format_size(found.nbytes)
    out(f"{experts} {verb} {parameters} parameters, {size} of tensors")
    if found.routed_parameters is not None and found.parameters is not None:
        out(
            f"{found.routed_parameters / found.parameters:.1%} of the parameters are routed experts, stored "
            f"{found.storage}, in {found.shards} file{'s' if found.shards != 1 else ''}"
        )
    if found.whole_layers:
        out(f"layers {', '.join(map(str, found.whole_layers))} keep all experts: a table of tokens chooses them there")
    if found.estimated:
        out(f"{found.estimated}")
    if found.budget:
        out(found.budget)


def _stopped_at(plan: PruningPlan, layer: int) -> str:
    """The redundancy that the next step would have broken up."""
    order, kept = plan.order.get(layer, ()), set(plan.kept[layer])
    still = [step for step in order if step[0] in kept]
    if tuple(still) != order[len(order) - len(still) :]:
        return "by hand"
    if not still:
        return "floor" if layer in plan.order else "-"
    level = still[0][1]
    return "-" if level is None else f"{level:.5f}"


def _redundancy_row(evidence: Evidence, layer: int, above_noise: dict[str, dict[str, float]]) -> tuple[str, ...]:
    redundancy = evidence.redundancy[layer]
    before = (str(layer), str(len(redundancy)))
    if row := above_noise.get(str(layer)):
        values = (f"{row[key]:.5f}" for key in ("mean", "max", "noise_floor"))
        return (*before, *values, f"{row['max_over_noise_floor']:.2f}")
    if len(redundancy) == 1:
        return (*before, "-", "-", "-", "-")
    pairs = redundancy[np.triu_indices(len(redundancy), 1)]
    return (*before, f"{pairs.mean():.5f}", f"{pairs.max():.5f}", "-", "-")


def _inspection_rows(found: Inspection, of_plan: bool) -> Iterator[tuple[str, str, str]]:
    """Neighbouring layers of equal counts in one row."""

    def shown(row: LayerRow) -> tuple[str, str]:
        return (str(row.experts_before or "?"), str(row.experts)) if of_plan else (str(row.experts), str(row.top_k))

    # Consecutive layers differ from their position by the same number.
    for (numbers, _), group in groupby(enumerate(found.layers), key=lambda at: (shown(at[1]), at[1].layer - at[0])):
        layers = [row.layer for _, row in group]
        yield (str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}", *numbers)


def _noise_warning(layers: list[int], of: int) -> str:
    which = "Every layer sits" if len(layers) == of else f"{len(layers)} of {of} layers sit"
    return (
        f"note: {which} on the noise floor: no pair of experts is {NOISE_MARGIN:.0%} above what independent weights "
        "would show, so scores say little there, and a random choice may be as good or better."
    )
