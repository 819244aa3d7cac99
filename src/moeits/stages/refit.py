"""Pruned checkpoint x its parent -> refitted checkpoint: the kept experts' down projections in closed form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moeits.calibration.settings import Machine, Tokens, writing_itself
from moeits.checkpoint.opening import Describing, Verifying
from moeits.checkpoint.parts import REFIT_NAME
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import copy_side_files
from moeits.checkpoint.writing import check_output, new_checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.devices import checked_device
from moeits.experts.families import architecture_of, recorded_family
from moeits.experts.layout import MoELayout
from moeits.finished import Workplace, workplace
from moeits.foreseen import Foreseen, Work, copying, free_bytes
from moeits.progress import Progress, silent
from moeits.refitting.all_layers import fit_all
from moeits.refitting.files import FittedLayers
from moeits.refitting.judgement import judged
from moeits.refitting.memory import held_bytes, needed_bytes
from moeits.refitting.requirements import check_can_be_fitted, check_pair
from moeits.refitting.settings import Fitting
from moeits.settings import with_settings
from moeits.sizes import parse_size
from moeits.surgery.card import model_card
from moeits.surgery.history import History
from moeits.surgery.pruned_config import LOADER_FILE
from moeits.surgery.refit_card import refitted as on_card
from moeits.surgery.written import check_written
from moeits.version import __version__

FORMAT = 1


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
    """Whether the loss fell for certain, and rose on no source. If not, no weight was changed."""
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
    describing: Describing,
    overwrite: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Refitting | Any:
    """Refit the kept experts' down projections in closed form, so that each layer puts out what it did unpruned.

    The shared expert's is fitted with them where a layer has one, unless `also` is `none`.

    `model` is a pruned checkpoint, `parent` the one that it was pruned from. Both are run one decoder layer at a time;
    no whole model is in memory, unless `data` is `self`. Each layer's ridge is chosen on held-out tokens, and a layer
    that gains nothing there keeps its weights; so does the whole model if its held-out loss does not fall; where `data`
    is `self`, bundled text judges beside the model's own. A killed run goes on where it was unless `fresh`. With
    `dry_run` a `Foreseen` says what it would take, and nothing is done.

    Raises PlanError if the parent is not the one of the plan, CalibrationError for tokens that will not do,
    CheckpointError for a broken checkpoint, OutputError if the output cannot be written.
    """
    pruned = describing.described(model, check=architecture_of)
    whole = describing.described(parent, check=architecture_of, known=recorded_family(pruned.config))
    output = Path(output)
    check_output(output, sources=[pruned.folder, whole.folder], overwrite=overwrite)
    if dry_run:
        check_pair(pruned, whole, verifying, progress)
        check_can_be_fitted(pruned, texts.tokens, machine.memory)
        return _foreseen(pruned, whole, output, texts, fitting, machine)
    with workplace(output, fresh=fresh, progress=progress) as place:
        check_pair(pruned, whole, verifying, progress)
        check_can_be_fitted(pruned, texts.tokens, machine.memory)
        from moeits.calibration.texts import windows_of

        windows = windows_of(whole, texts, progress)
        return refitted(place, windows, pruned, whole, output, fitting, machine, progress, overwrite=overwrite)


def _foreseen(
    pruned: Checkpoint, whole: Checkpoint, output: Path, texts: Tokens, fitting: Fitting, machine: Machine
) -> Foreseen:
    from moeits.calibration.texts import check_texts

    check_texts(whole, texts)
    most, tokens = parse_size(machine.memory, "--memory"), texts.tokens + texts.held_out
    copy = copying(pruned.nbytes, pruned.shards[0], output)
    return Foreseen(
        source=pruned.source,
        output=str(output),
        reads_bytes=whole.nbytes + 2 * pruned.nbytes,
        writes_bytes=pruned.nbytes,
        disk_bytes=pruned.nbytes,
        disk_free_bytes=free_bytes(output),
        memory_bytes=held_bytes(pruned, needed_bytes(pruned, tokens, most, refit=True), refit=True),
        work=(*refit_work(whole, pruned, texts, fitting, machine), copy),
        not_foreseen=writing_itself(texts),
    )


def refit_work(
    whole: Checkpoint, pruned: Checkpoint, texts: Tokens, fitting: Fitting, machine: Machine
) -> tuple[Work, ...]:
    """The work of a refit of this pair on these tokens."""
    from moeits.refitting.rehearsal import refitting

    return refitting(whole, pruned, texts, fitting, checked_device(machine.device))


def refitted(
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
    """A refit of checkpoints that are a pair, on tokens that are at hand; finished layers are kept in `place`."""
    layout = MoELayout.of(pruned)
    most_bytes, device = parse_size(machine.memory, "--memory"), checked_device(machine.device)
    finished = place.parts(
        stage="refit",
        fingerprint=pruned.fingerprint,
        parent=whole.fingerprint,
        shards=[pruned.stamps, whole.stamps],
        device=device,
        **windows.facts,
        **asdict(fitting),
    )
    fitted = FittedLayers(finished, layout, pruned)
    losses = fit_all(whole, pruned, windows, fitting, fitted, place.scratch(), most_bytes, device, progress)
    for checkpoint in (pruned, whole):
        checkpoint.check_unchanged()
    loss, accepted = judged(losses, windows.deciding)
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
        loss={**loss, "tokens": int(windows.judging[windows.deciding].size)},
        accepted=accepted,
        tensors={"computed": computed, "copied": tuple(sorted(set(pruned.tensors) - set(computed)))},
        earlier=History.of(pruned.folder).before(REFIT_NAME),
    )


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
        copy_side_files(pruned, writer)
        for name in (LOADER_FILE, "plan.json"):
            if (pruned.folder / name).is_file():
                writer.copy(pruned.folder / name, name)
        writer.write_json("config.json", pruned.config)
        check_written(writer.folder, MoELayout.of(pruned))
        history = History.of(pruned.folder)
        history.copy(writer, REFIT_NAME)
        writer.write_json(REFIT_NAME, made.facts())
        plan = PruningPlan.load(pruned.folder / "plan.json")
        afterwards = [*history.told(REFIT_NAME), on_card(made.facts())]
        card = model_card(plan.source, pruned.folder, pruned.config, plan, afterwards=afterwards)
        writer.write_text("README.md", card)
