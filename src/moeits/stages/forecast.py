"""Checkpoint x reductions -> what each size would cost, with and without a refit, before anything is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeits.calibration.settings import Machine, Tokens, writing_itself
from moeits.checkpoint.opening import Opening, Source
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.choosing.limits import Limits
from moeits.choosing.needs import scoring_for, watches
from moeits.choosing.settings import Budget, Choice
from moeits.devices import checked_device
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output, write_whole
from moeits.finished import FinishedParts, Workplace, workplace
from moeits.foreseen import Foreseen, free_bytes
from moeits.progress import Progress, silent
from moeits.refitting.memory import held_bytes, needed_bytes
from moeits.refitting.requirements import check_can_be_fitted
from moeits.refitting.settings import Fitting
from moeits.settings import with_settings
from moeits.signals.settings import Resources, Scoring
from moeits.signals.watched import SEARCHED
from moeits.sizes import parse_size
from moeits.stages.calibrate import asked_for, calibrated
from moeits.stages.plan import plan
from moeits.stages.refit import refit_work
from moeits.stages.score import scored
from moeits.trials.rehearsal import choosing_work, pruned_at_random
from moeits.trials.settings import Forecasting
from moeits.trials.sizes import Prediction, SizeForecast, forecast_size
from moeits.version import __version__

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What sizes of one model would cost, as forecast.json holds it. Losses are nats per token."""

    source: str
    model_type: str
    fingerprint: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    """The tokens: those that are fitted on, those that choose, those that judge."""
    unpruned: float
    """Loss of the model as it is, on the tokens that judge."""
    sizes: tuple[SizeForecast, ...]
    """By reduction, the smallest first."""
    budget: float
    safe: Mapping[str, float | None]
    """`pruned` and `refitted`: the largest reduction up to which the whole interval of the rise is below the budget."""

    def facts(self) -> dict[str, Any]:
        """The forecast as a JSON value."""
        return {"format": FORMAT, "kind": "forecast", "moeits": __version__, **asdict(self)}


@with_settings
def forecast(
    model: str | Path,
    *,
    output: str | Path | None = None,
    sizes: Forecasting,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
    source: Source,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Forecast | Any:
    """What would each size cost: errors of the layers, and rise of loss, KL and top-1 agreement on held-out tokens.

    Each of `reductions` is planned by `criterion`, and pruned and refitted in memory, one decoder layer at a time; no
    checkpoint is written. The answer is the largest reduction whose rise stays below `budget`, with its whole 95 %
    interval over windows. docs/forecast.md says how far it can be trusted. A killed run goes on with the next size.
    With `dry_run` a `Foreseen` says what it would take, and nothing is done.

    Raises BudgetOutOfReach for a reduction below the floors, CalibrationError for tokens that will not do,
    CheckpointError, SettingError, OutputError.
    """
    checkpoint = source.open(model, check=architecture_of)
    if output is not None:
        check_file_output(output := Path(output), inputs=[checkpoint.folder])
    check_can_be_fitted(checkpoint, texts.tokens, machine.memory)
    _check_within_reach(Inventory.of(checkpoint, MoELayout.of(checkpoint)), sizes)
    if dry_run:
        return _foreseen(checkpoint, output, sizes, texts, fitting, machine)
    from moeits.calibration.texts import judged_on, windows_of

    watched = windows_of(checkpoint, texts, progress)
    windows = watched if sizes.judge is None else judged_on(sizes.judge, watched, checkpoint, texts)
    settings = {"criterion": sizes.criterion, **asdict(fitting)}
    made_with = {"fingerprint": checkpoint.fingerprint, "data": windows.facts, **settings, "moeits": __version__}
    with workplace(output, fresh=fresh, progress=progress) as place:
        device = checked_device(machine.device)
        finished = place.parts(stage="forecast", shards=checkpoint.stamps, device=device, **made_with)
        tokens = (watched, windows, sizes, texts.seed)
        made = _Run(checkpoint, *tokens, fitting, machine, place, finished, progress).forecast(settings)
        if output is not None:
            write_whole(output, (json.dumps(made.facts(), indent=1) + "\n").encode())
    return made


def _foreseen(
    checkpoint: Checkpoint,
    output: str | Path | None,
    sizes: Forecasting,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
) -> Foreseen:
    """Every size is taken to be the middle one, whose experts are chosen at random."""
    from moeits.calibration.texts import check_texts

    check_texts(checkpoint, texts)
    shares, most = sizes.shares, parse_size(machine.memory, "--memory")
    tokens = texts.tokens + texts.held_out
    work = [*choosing_work(checkpoint, [sizes.criterion], texts, machine)]
    middle = pruned_at_random(checkpoint, shares[len(shares) // 2])
    work += [each.repeated(len(shares)) for each in refit_work(checkpoint, middle, texts, fitting, machine)]
    return Foreseen(
        source=checkpoint.source,
        output=None if output is None else str(output),
        reads_bytes=2 * len(shares) * checkpoint.nbytes,
        writes_bytes=0,
        disk_bytes=0,
        disk_free_bytes=free_bytes(output),
        memory_bytes=held_bytes(checkpoint, needed_bytes(checkpoint, tokens, most, refit=True), refit=True),
        work=tuple(work),
        not_foreseen=writing_itself(texts),
    )


def _check_within_reach(inventory: Inventory, sizes: Forecasting) -> None:
    """No size is below the floors, and one evidence answers for all of them. Raises BudgetOutOfReach, SettingError."""
    if SEARCHED in criterion_named(sizes.criterion).needs:
        raise SettingError(
            f"--criterion {sizes.criterion} searches sets of one size, and a forecast has several: forecast by "
            "moe-i2 or reconstruction."
        )
    for reduction in sizes.shares:
        Limits(inventory, Choice(criterion=sizes.criterion)).check(Budget(reduction=reduction))


def safe_reduction(sizes: Sequence[tuple[float, Prediction]], budget: float) -> float | None:
    """The largest reduction such that at it, and at all smaller ones, the whole interval of the rise is below."""
    safe = None
    for reduction, found in sorted(sizes, key=lambda size: size[0]):
        if found.high >= budget:
            break
        safe = reduction
    return safe


@dataclass(frozen=True)
class _Run:
    """A forecast under way."""

    checkpoint: Checkpoint
    watched: Any
    """The windows by which experts are chosen; `windows` may have others that judge."""
    windows: Any
    sizes: Forecasting
    seed: int
    fitting: Fitting
    machine: Machine
    place: Workplace
    finished: FinishedParts
    progress: Progress

    def forecast(self, settings: Mapping[str, Any]) -> Forecast:
        """All sizes, and the answer."""
        unpruned, each = self.all_sizes()
        return Forecast(
            source=self.checkpoint.source,
            model_type=self.checkpoint.config["model_type"],
            fingerprint=self.checkpoint.fingerprint,
            settings=settings,
            data=self.windows.facts,
            unpruned=unpruned,
            sizes=each,
            budget=float(self.sizes.budget),
            safe={
                "pruned": safe_reduction([(size.reduction, size.pruned) for size in each], self.sizes.budget),
                "refitted": safe_reduction([(size.reduction, size.refitted) for size in each], self.sizes.budget),
            },
        )

    def all_sizes(self) -> tuple[float, tuple[SizeForecast, ...]]:
        """Loss of the unpruned model, and every size; what an earlier run finished is not done again."""
        evidence: Evidence | None = None
        unpruned, made = 0.0, []
        for done, reduction in enumerate(self.sizes.shares):
            self.progress("sizes", done, len(self.sizes.shares))
            kept = self.finished.value("size", reduction=reduction)
            if kept is None:
                evidence = evidence or self._evidence()
                kept = self._one(evidence, reduction)
                self.finished.keep_value("size", kept, reduction=reduction)
            unpruned = float(kept["samples"]["unpruned"])
            made.append(_size_of(kept["row"]))
        self.progress("sizes", len(made), len(made))
        return unpruned, tuple(made)

    def _one(self, evidence: Evidence, reduction: float) -> dict[str, Any]:
        chosen = plan(evidence, reduction=reduction, criterion=self.sizes.criterion, seed=self.seed)
        unpruned, size = forecast_size(
            self.checkpoint,
            chosen,
            reduction,
            self.windows,
            self.fitting,
            self.machine,
            self.place.scratch(),
            self.progress,
        )
        return {"row": asdict(size), "samples": {"unpruned": unpruned}}

    def _evidence(self) -> Evidence:
        """What the criterion must know."""
        name = self.sizes.criterion
        if watches(name):
            selection, also = asked_for(criterion_named(name).needs)
            asked = (self.watched, self.machine, Opening(), selection, self.progress)
            return calibrated(self.checkpoint, self.place, *asked, also=also)
        scoring = scoring_for(name, Scoring())
        if scoring is not None:
            return scored(self.checkpoint, self.place, scoring, Resources(), Opening(), self.progress)
        return Evidence(inventory=Inventory.of(self.checkpoint, MoELayout.of(self.checkpoint)))


def _size_of(row: Mapping[str, Any]) -> SizeForecast:
    predictions = {name: Prediction(**row[name]) for name in ("pruned", "refitted")}
    return SizeForecast(**{**row, "layers": tuple(row["layers"]), **predictions})
