"""Pruned checkpoint x its parent -> refitted checkpoint: the kept experts' down projections in closed form."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from moeits.calibration.settings import Machine, Tokens
from moeits.checkpoint.opening import Verifying
from moeits.checkpoint.parts import REFIT_NAME
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import copy_side_files, side_files
from moeits.checkpoint.writing import check_output, new_checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CalibrationError, PlanError
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.finished import Workplace, workplace
from moeits.progress import Progress, silent
from moeits.refitting.files import FittedLayers
from moeits.refitting.settings import Fitting
from moeits.runtime import checked_device, need
from moeits.settings import with_settings
from moeits.sizes import parse_size
from moeits.surgery.card import model_card
from moeits.surgery.history import History
from moeits.surgery.pruned_config import LOADER_FILE
from moeits.surgery.refit_card import refitted
from moeits.surgery.written import check_written
from moeits.version import __version__

FORMAT = 1
_FLOATS = ("F64", "F32", "F16", "BF16")
# Two-sided 95 % of a normal mean.
_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class Refitting:
    """What a refit did. Losses are nats per token on tokens that took no part."""

    source: str
    fingerprint: str
    """Of the pruned checkpoint."""
    parent: str
    parent_fingerprint: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    """Of every layer that lost experts: error on held-out tokens before and after, ridge, drift."""
    loss: Mapping[str, Any]
    """unpruned, pruned, refitted; and their paired difference with its 95 % interval over windows."""
    accepted: bool
    """Whether the loss fell for certain. If not, no weight was changed."""
    tensors: Mapping[str, tuple[str, ...]]
    """Every tensor's fate: computed, or copied byte for byte."""
    earlier: tuple[str, ...] = ()
    """Files that say what was done before since the pruning, oldest first (`surgery.history`)."""

    def facts(self) -> dict[str, Any]:
        """As refit.json keeps it."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"format": FORMAT, "kind": "refit", "version": __version__, **own}


@with_settings
def refit(
    model: str | Path,
    *,
    parent: str | Path,
    output: str | Path,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
    verifying: Verifying,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress = silent,
) -> Refitting:
    """Refit the kept experts' down projections in closed form, so that each layer puts out what it did unpruned.

    `model` is a pruned checkpoint, `parent` the one that it was pruned from. Both are run one decoder layer at a time;
    no whole model is in memory, unless `data` is `self`. Each layer's ridge is chosen on held-out tokens, and a layer
    that gains nothing there keeps its weights; so does the whole model if its held-out loss does not fall. A killed run
    goes on where it was unless `fresh`.

    Raises PlanError if the parent is not the one of the plan, CalibrationError for tokens that will not do,
    CheckpointError for a broken checkpoint, OutputError if the output cannot be written.
    """
    pruned = Checkpoint.open(model, check=architecture_of)
    whole = Checkpoint.open(parent, check=architecture_of)
    output = Path(output)
    check_output(output, sources=[pruned.folder, whole.folder], overwrite=overwrite)
    with workplace(output, fresh=fresh, progress=progress) as place:
        asked = (texts, fitting, machine, verifying)
        return refit_in(place, pruned, whole, output, *asked, progress, overwrite=overwrite)


def refit_in(
    place: Workplace,
    pruned: Checkpoint,
    whole: Checkpoint,
    output: Path,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
    verifying: Verifying,
    progress: Progress,
    *,
    overwrite: bool,
) -> Refitting:
    """A refit of opened checkpoints, whose finished layers are kept in `place`. Raises what `refit` raises."""
    side_files(pruned.folder)
    History.of(pruned.folder).told(REFIT_NAME)
    check_parent(pruned, MoELayout.of(pruned), whole, verifying, progress)
    from moeits.calibration.texts import windows_of

    windows = windows_of(whole, texts, progress, by_source=True)
    return _refit_in(place, windows, pruned, whole, output, fitting, machine, progress, overwrite=overwrite)


def refit_on(
    windows: Any,
    pruned: Checkpoint,
    whole: Checkpoint,
    output: Path,
    fitting: Fitting,
    machine: Machine,
    progress: Progress,
    *,
    overwrite: bool = False,
    fresh: bool = False,
) -> Refitting:
    """A refit on tokens that are at hand; `pruned` is known to be of `whole`. Raises what `refit` raises."""
    check_output(output, sources=[pruned.folder, whole.folder], overwrite=overwrite)
    with workplace(output, fresh=fresh, progress=progress) as place:
        return _refit_in(place, windows, pruned, whole, output, fitting, machine, progress, overwrite=overwrite)


def _refit_in(
    place: Workplace,
    windows: Any,
    pruned: Checkpoint,
    whole: Checkpoint,
    output: Path,
    fitting: Fitting,
    machine: Machine,
    progress: Progress,
    *,
    overwrite: bool,
) -> Refitting:
    layout = MoELayout.of(pruned)
    check_enough(windows.fit.size, layout)
    most_bytes, device = parse_size(machine.memory, "--memory"), checked_device(machine.device)
    finished = place.parts(
        stage="refit",
        fingerprint=pruned.fingerprint,
        parent=whole.fingerprint,
        shards=[pruned.stamps, whole.stamps],
        **windows.facts,
        **asdict(fitting),
    )
    fitted = FittedLayers(finished, layout, pruned)
    losses = fit_all(whole, pruned, windows, fitting, fitted, place.scratch(), most_bytes, device, progress)
    for checkpoint in (pruned, whole):
        checkpoint.check_unchanged()
    loss, accepted = judged(losses)
    if not accepted:
        fitted.forget_all()
    made = _record(pruned, whole, windows, fitting, fitted, loss, accepted=accepted)
    _write(pruned, whole, fitted, made, output, overwrite=overwrite, progress=progress)
    return made


def _record(
    pruned: Checkpoint,
    whole: Checkpoint,
    windows: Any,
    fitting: Fitting,
    fitted: FittedLayers,
    loss: Mapping[str, Any],
    *,
    accepted: bool,
) -> Refitting:
    computed = fitted.computed()
    return Refitting(
        source=pruned.source,
        fingerprint=pruned.fingerprint,
        parent=whole.source,
        parent_fingerprint=whole.fingerprint,
        settings=asdict(fitting),
        data=windows.facts,
        layers=tuple(fitted.facts),
        loss={**loss, "tokens": int(windows.judging.size)},
        accepted=accepted,
        tensors={"computed": computed, "copied": tuple(sorted(set(pruned.tensors) - set(computed)))},
        earlier=History.of(pruned.folder).before(REFIT_NAME),
    )


def check_parent(
    pruned: Checkpoint, layout: MoELayout, parent: Checkpoint, verifying: Verifying, progress: Progress
) -> None:
    """The parent is what the plan was made for, and the pruned checkpoint what the plan left. Raises PlanError."""
    for checkpoint in (pruned, parent):
        check_floats(checkpoint)
    path = pruned.folder / "plan.json"
    if not path.is_file():
        raise PlanError(
            f"{pruned.source} has no plan.json, so moeits did not prune it. Give the pruned checkpoint first, and "
            "what it was pruned from as --parent."
        )
    plan = PruningPlan.load(path)
    if plan.fingerprint != parent.fingerprint:
        raise PlanError(
            f"{pruned.source} was pruned from {plan.source} (fingerprint {plan.fingerprint[:12]}), but {parent.source} "
            f"has fingerprint {parent.fingerprint[:12]}. Give the checkpoint that it was pruned from as --parent."
        )
    verifying.check(plan.coverage, parent, source=plan.source, progress=progress)
    for i, moe in layout.layers.items():
        if len(plan.kept.get(i, ())) != moe.num_experts:
            raise PlanError(
                f"{pruned.source} has {moe.num_experts} experts in layer {i}, but its plan.json leaves "
                f"{len(plan.kept.get(i, ()))}: one of the two was edited. Prune the parent again."
            )


def check_floats(checkpoint: Checkpoint) -> None:
    """Its weights are numbers that can be fitted, of one model. Raises CalibrationError."""
    if architecture_of(checkpoint.config).part:
        raise CalibrationError(
            f"{checkpoint.source} is several models in one, which moeits cannot run layer by layer yet."
        )
    odd = sorted({info.dtype for info in checkpoint.tensors.values() if info.parameters > 1} - set(_FLOATS))
    if "quantization_config" in checkpoint.config or odd:
        raise CalibrationError(
            f"{checkpoint.source} is quantised ({', '.join(odd) or 'by its config.json'}). Refit the bf16 original "
            "pruned by the same plan, and quantise afterwards."
        )


def check_enough(tokens: int, layout: MoELayout) -> None:
    """An expert is sent four tokens on average at the least. Raises CalibrationError."""
    need_most = max(4 * moe.num_experts // moe.top_k for moe in layout.layers.values())
    if tokens < need_most:
        raise CalibrationError(f"{tokens} tokens are too few for a fit: give --tokens {need_most} or more.")


def fit_all(
    whole: Checkpoint,
    pruned: Checkpoint,
    windows: Any,
    fitting: Fitting,
    fitted: FittedLayers,
    beside: Path,
    most_bytes: int,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """All layers, in order; gives the losses at the end of the streams."""
    torch = need("torch", extra="load")
    from moeits.calibration.activations import Activations
    from moeits.calibration.layered import LayeredModel
    from moeits.refitting.streams import Refit

    with ExitStack() as stack:
        room = stack.enter_context(Activations(most_bytes=most_bytes // 2, beside=beside))
        models = [LayeredModel(checkpoint, device=device) for checkpoint in (whole, pruned)]
        run = Refit(
            models[0],
            models[1],
            windows,
            room,
            drifts=fitting.drifts,
            largest_ridge=fitting.largest_ridge,
            most_bytes=most_bytes // 2,
        )
        count = len(models[0])
        for i in range(count):
            known = fitted.get(i)
            if known is not None:
                run.layer(i, known={e: torch.from_numpy(w) for e, w in known[1].items()})
            else:
                weights: dict[int, np.ndarray] = {}

                def store(layer: int, expert: int, weight: Any, into: dict[int, np.ndarray] = weights) -> Any:
                    into[expert] = fitted.rounded(layer, weight.cpu().numpy())
                    return torch.from_numpy(into[expert])

                fit = run.layer(i, store)
                for checkpoint in (whole, pruned):
                    checkpoint.check_unchanged()
                if fit is not None:
                    fitted.put(i, fit.facts(), weights)
            progress("refitting layers", i + 1, count)
        return run.losses(progress)


def judged(losses: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Means, refitted - pruned with its 95 % interval over windows and for each source, and whether that is a gain.

    It is one if all of the interval is below 0, and no source that is told apart lost on average, of those that chose
    as of those that judged.
    """
    nats = {name: np.array(values) for name, values in losses["nats"].items()}
    difference = nats["refitted"] - nats["pruned"]
    half = _Z * float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
    mean = float(difference.mean())
    facts: dict[str, Any] = {name: float(values.mean()) for name, values in nats.items()}
    facts["difference"] = {"mean": mean, "low": mean - half, "high": mean + half} if np.isfinite(half) else None
    for name in ("kl_to_parent", "same_first_choice"):
        facts[name] = {model: float(np.mean(values)) for model, values in losses[name].items()}
    facts["by_source"] = _by_source(losses)
    return facts, mean + half < 0 and all(each <= 0 for each in facts["by_source"].values())


def _by_source(losses: Mapping[str, Any]) -> dict[str, float]:
    """Refitted - pruned of each source that is told apart, mean over its windows."""
    differences: dict[str, list[float]] = {}
    for part, sources in losses.get("sources", {}).items():
        rows = zip(sources, losses[part]["refitted"], losses[part]["pruned"], strict=False)
        for source, after, before in rows:
            differences.setdefault(source, []).append(after - before)
    return {source: float(np.mean(values)) for source, values in differences.items()}


def _write(
    pruned: Checkpoint,
    parent: Checkpoint,
    fitted: FittedLayers,
    made: Refitting,
    output: Path,
    *,
    overwrite: bool,
    progress: Progress,
) -> None:
    sources = [pruned.folder, parent.folder]
    with new_checkpoint(
        output, sources=sources, nbytes=pruned.nbytes, overwrite=overwrite, progress=progress
    ) as writer:
        writer.write_tensors(fitted.tensors(), max_shard_bytes=pruned.largest_shard_bytes, progress=progress)
        pruned.check_unchanged()
        copy_side_files(pruned.folder, writer)
        for name in (LOADER_FILE, "plan.json"):
            if (pruned.folder / name).is_file():
                writer.copy(pruned.folder / name, name)
        writer.write_json("config.json", pruned.config)
        check_written(writer.folder, MoELayout.of(pruned))
        history = History.of(pruned.folder)
        history.copy(writer, REFIT_NAME)
        writer.write_json(REFIT_NAME, made.facts())
        plan = PruningPlan.load(pruned.folder / "plan.json")
        afterwards = [*history.told(REFIT_NAME), refitted(made.facts())]
        card = model_card(plan.source, pruned.folder, pruned.config, plan, afterwards=afterwards)
        writer.write_text("README.md", card)
