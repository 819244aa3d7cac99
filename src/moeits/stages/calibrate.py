"""Checkpoint x tokens -> token signals of every expert, from the stock model's own layers, run one at a time."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moeits.calibration.genetic import CANDIDATES, Search, counts_to_search, members_of, not_foreseen, only_row
from moeits.calibration.settings import Also, Machine, Tokens, writing_itself
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.devices import checked_device
from moeits.errors import CalibrationError, SettingError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of, check_stock_class
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.experts.quantized import BF16_COPY, quantized_as
from moeits.files import check_file_output
from moeits.finished import FinishedParts, Workplace, workplace
from moeits.foreseen import Foreseen, Work, free_bytes
from moeits.progress import Progress, silent
from moeits.refitting.memory import held_bytes, needed_bytes
from moeits.runtime import need
from moeits.settings import with_settings
from moeits.signals import MOST_ENUMERATED
from moeits.signals.watched import ALSO, OF_TRIALS, SEARCHED, SPECIALISTS, VECTORS
from moeits.sizes import parse_size

# What a finished layer has of a search until it is decided which sets of neighbouring layers go together.
CANDIDATES_OF_LAYER = "candidates"

# Tokens on which backward elimination tries who can go.
SELECTION = 4096


def asked_for(needs: Collection[str]) -> tuple[int, set[str]]:
    """For signals that are needed: on how many tokens who can go is tried out, and what else is to be kept."""
    return SELECTION if {*needs} & {*OF_TRIALS} else 0, {ALSO[name] for name in needs if name in ALSO}


@dataclass(frozen=True)
class _Trials:
    """On what, and how, it is tried out who can go."""

    tokens: int
    windows: int
    search: Search | None
    domains_by: int | None
    """The seed of the domains of which there are specialists; None without them."""


@with_settings
def calibrate(
    model: str | Path | Checkpoint,
    *,
    output: str | Path | None = None,
    texts: Tokens,
    machine: Machine,
    opening: Opening,
    selection: int = SELECTION,
    also: Also,
    search_sets: str | int | Path | PruningPlan | None = None,
    statistics: str | Path | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Evidence | Any:
    """Watch every expert at work on some tokens: how often it is chosen, what it adds, which can go with little harm.

    The stock model is run one decoder layer at a time, so no whole model is in memory, unless `data` is `self`.
    Signals: frequency, router-score, ean-sum, ean-mean, reap (gates as the model uses them), coactivation,
    largest-activation, and reconstruction, by backward elimination on `selection` of the tokens, unless that is 0. The
    tokens are those that `refit` with the same settings fits on or chooses by, and none that judges there. A killed run
    goes on where it was unless `fresh`. With `statistics` (REAP's observer, SGLang's recorder, an imatrix, a JSONL
    order) the signals are those that another tool found, and nothing is run. `mean_outputs` adds mean-output, E x H
    numbers a layer, `input_norms` the norms of what each weight is multiplied with, without and with gates (Wanda,
    MoE-Pruner): 2 E (H + I) numbers a layer. `rounding_errors` tries each expert with weights of 1 to 4 bits, which
    takes about as long as four passes more; `specialists` chooses MoP's sets, E x E numbers. `search_sets` searches
    each layer for a set of so many experts, or of as many as a plan keeps, by MoE-I2's genetic algorithm from the seed
    of the tokens. With `dry_run` a `Foreseen` says what it would take, and nothing is done.

    Raises CalibrationError for unfit tokens, CheckpointError, OutputError.
    """
    if selection and not 64 <= selection <= 10**6:
        raise SettingError(f"--selection {selection} is out of range: it is 0, or from 64 to 1000000 tokens.")
    checkpoint = opening.open(model, check=architecture_of)
    if output is not None:
        check_file_output(output := Path(output), inputs=[checkpoint.folder, statistics])
    if statistics is not None:
        return _taken_in(Path(statistics), checkpoint, output, also, search_sets, dry_run=dry_run)
    check_runs(checkpoint)
    counts = _asked_counts(checkpoint, search_sets, also, selection)
    if dry_run:
        return _foreseen(checkpoint, output, texts, machine, selection, also, searches=counts is not None)
    with workplace(output, fresh=fresh, progress=progress) as place:
        from moeits.calibration.texts import windows_of

        asked = (windows_of(checkpoint, texts, progress), machine, opening, selection, progress)
        evidence = calibrated(checkpoint, place, *asked, also=also.names, counts=counts)
        if output is not None:
            evidence.save(output)
    return evidence


def _asked_counts(
    checkpoint: Checkpoint, search_sets: str | int | Path | PruningPlan | None, also: Also, selection: int
) -> dict[int, int] | None:
    """Of what sizes sets are searched for. Raises SettingError for a search, or specialists, without what they need."""
    if also.specialists and not selection:
        raise SettingError("--specialists chooses them on the tokens of --selection, which is 0: give 64 or more.")
    if also.specialists:
        need("scipy", extra="aligned")
    return None if search_sets is None else counts_to_search(search_sets, checkpoint, selection)


def _foreseen(
    checkpoint: Checkpoint,
    output: Path | None,
    texts: Tokens,
    machine: Machine,
    selection: int,
    also: Also,
    *,
    searches: bool,
) -> Foreseen:
    from moeits.calibration.texts import check_texts

    check_texts(checkpoint, texts)
    work = watching_work(checkpoint, texts, selection, machine, rounding=also.rounding_errors)
    experts = [moe.num_experts for moe in MoELayout.of(checkpoint).layers.values()]
    nbytes = sum(8 * count * (count + 12) for count in experts)
    return Foreseen(
        source=checkpoint.source,
        output=None if output is None else str(output),
        reads_bytes=checkpoint.nbytes,
        writes_bytes=nbytes,
        disk_bytes=2 * nbytes,
        disk_free_bytes=free_bytes(output),
        memory_bytes=_memory(checkpoint, texts, machine),
        work=work,
        not_foreseen=(*writing_itself(texts), *not_foreseen(searches=searches)),
    )


def _memory(checkpoint: Checkpoint, texts: Tokens, machine: Machine) -> int:
    most = parse_size(machine.memory, "--memory")
    return held_bytes(checkpoint, needed_bytes(checkpoint, texts.tokens, most, refit=False), refit=False)


def watching_work(
    checkpoint: Checkpoint, texts: Tokens, selection: int, machine: Machine, *, rounding: bool = False
) -> tuple[Work, ...]:
    """The work of watching experts on these tokens, those that choose settings among them."""
    from moeits.calibration.rehearsal import watching

    tokens = texts.tokens + texts.held_out // 2
    device = checked_device(machine.device)
    return watching(
        checkpoint,
        tokens,
        window=texts.window,
        selection=min(selection, tokens),
        device=device,
        passes=5 if rounding else 1,
    )


def calibrated(
    checkpoint: Checkpoint,
    place: Workplace,
    windows: Any,
    machine: Machine,
    opening: Opening,
    selection: int,
    progress: Progress,
    *,
    also: Collection[str] = (),
    counts: Mapping[int, int] | None = None,
) -> Evidence:
    """The evidence of a checkpoint on tokens that are at hand; finished layers are kept in `place`.

    `also` names what else of `calibrate`'s it should have: mean_outputs, input_norms, rounding_errors, specialists;
    `counts` are those of sets that are searched for, by layer. Raises what `calibrate` raises.
    """
    layout = MoELayout.of(checkpoint)
    check_runs(checkpoint)
    if "specialists" in also:
        need("scipy", extra="aligned")
    most_bytes, device = parse_size(machine.memory, "--memory"), checked_device(machine.device)
    names, by = windows.watched_by
    settings = {name: fact for name, fact in windows.facts.items() if name != "held_out_tokens"}
    settings |= {
        "tokens": int(by.size),
        "selection": min(selection, int(by.size)),
        "watched": names,
        "watched_tokens": np.bincount(by.ravel(), minlength=len(names)).tolist(),
        **dict.fromkeys(sorted(also), True),
    }
    search = None if counts is None else Search(counts=counts, seed=windows.facts["seed"])
    settings |= {} if search is None else {"search": search.facts}
    of = {"fingerprint": checkpoint.told_by, "shards": checkpoint.stamps, "device": device, "counts": counts}
    finished = place.parts(stage="calibrate", **of, **settings)
    from moeits.calibration.routing import Sums

    sums_of = partial(Sums, sources=len(names), **dict.fromkeys({*also} - {"specialists"}, True))
    few, seed = settings["selection"], windows.facts["seed"]
    trials = _Trials(few, -(-few // by.shape[1]), search, seed if "specialists" in also else None)
    asked = (windows.watched, by, trials, sums_of, finished, most_bytes, place.scratch(), device, progress)
    layers = _all_layers(checkpoint, *asked)
    checkpoint.check_unchanged()
    return Evidence(
        inventory=Inventory.of(checkpoint, layout, coverage=opening.coverage(checkpoint, progress)),
        settings=settings,
        signals={
            name: {layer: values[name] for layer, values in layers.items()} for name in next(iter(layers.values()))
        },
    )


def check_runs(checkpoint: Checkpoint) -> None:
    """Its layers can be run as they lie on disk. Raises CalibrationError."""
    check_stock_class(checkpoint.config, checkpoint.source)
    if how := quantized_as(checkpoint):
        raise CalibrationError(
            f"{checkpoint.source} is quantized ({how}), and its layers are run on weights that are numbers. Calibrate "
            f"{BF16_COPY}, or take what another tool counted (--statistics), and prune this one by that plan with "
            "--any-fingerprint."
        )


def _taken_in(
    statistics: Path, checkpoint: Checkpoint, output: Path | None, also: Also, search_sets: Any, *, dry_run: bool
) -> Evidence | Foreseen:
    """Evidence of what another tool found. Raises SettingError where more was asked for, which only running tells."""
    from moeits.calibration.imported import imported

    if asked := also.names | ({"search_sets"} if search_sets is not None else set()):
        flags = " and ".join("--" + name.replace("_", "-") for name in sorted(asked))
        raise SettingError(f"--statistics runs no layer, and {flags} would need that: give one or the other.")
    inventory = Inventory.of(checkpoint, MoELayout.of(checkpoint))
    evidence = Evidence(
        inventory=inventory, settings={"statistics": statistics.name}, signals=imported(statistics, inventory)
    )
    if dry_run:
        where, free = None if output is None else str(output), free_bytes(output)
        return Foreseen(source=checkpoint.source, output=where, reads_bytes=0, disk_bytes=0, disk_free_bytes=free)
    if output is not None:
        evidence.save(output)
    return evidence


def _all_layers(
    checkpoint: Checkpoint,
    tokens: np.ndarray,
    by: np.ndarray,
    trials: _Trials,
    sums_of: Callable[[int], Any],
    finished: FinishedParts,
    most_bytes: int,
    beside: Path,
    device: str,
    progress: Progress,
) -> dict[int, dict[str, np.ndarray]]:
    """Layer -> the arrays of its signals by name."""
    from moeits.calibration.activations import Activations
    from moeits.calibration.layered import LayeredModel
    from moeits.calibration.reception import ReceptionField
    from moeits.calibration.stream import Stream

    layers: dict[int, dict[str, np.ndarray]] = {}
    with Activations(most_bytes=most_bytes, beside=beside) as room, need("torch", extra="load").no_grad():
        stream = Stream.begin(LayeredModel(checkpoint, device=device), tokens, room)
        layers_with_experts = [*stream.model.layout.layers]
        field = ReceptionField(stream, trials.windows, layers_with_experts, room) if trials.search else None
        for i in range(len(stream.model)):
            with stream.model.layer(i) as live:
                if field:
                    field.before(live)
                known = _of_layer(stream, live, i, trials, by, sums_of, finished)
                if field:
                    field.after(live, i, members_of(known.pop(CANDIDATES_OF_LAYER)) if live.moe else [])
                if live.moe is not None:
                    layers[i] = known
            progress("calibrating layers", i + 1, len(stream.model))
    for i, chosen in field.chosen.items() if field else ():
        layers[i][SEARCHED] = only_row(chosen, len(layers[i]["drop-error"]))
    return layers


def _of_layer(
    stream: Any,
    live: Any,
    i: int,
    trials: _Trials,
    by: np.ndarray,
    sums_of: Callable[[int], Any],
    finished: FinishedParts,
) -> dict[str, np.ndarray]:
    """All tokens through a layer, and what it shows, if that was not seen before; nothing of a dense one."""
    known = finished.arrays(f"layer-{i}") if live.moe is not None else {}
    if known and not _are_whole(known, sums_of(live.moe.num_experts), trials):
        known = None
    if known is not None:
        for part in stream.parts():
            stream.hidden[part] = stream.run(live, i, part).cpu()
        return known
    known = _watch(stream, live, i, trials, by, sums_of(live.moe.num_experts))
    stream.model.checkpoint.check_unchanged()
    finished.keep_arrays(f"layer-{i}", known)
    return known


def _are_whole(arrays: Mapping[str, np.ndarray], sums: Any, trials: _Trials) -> bool:
    """Whether these can be the signals of a layer, all of them: what lies on a disk may be damaged."""
    experts = len(sums.largest)
    shapes = {name: values.shape for name, values in sums.signals().items()}
    if trials.tokens:
        shapes |= dict.fromkeys(("reconstruction", "reconstruction-error", "drop-error"), (experts,))
    if trials.domains_by is not None:
        shapes[SPECIALISTS] = (experts, experts)
    if trials.tokens and experts <= MOST_ENUMERATED:
        shapes |= {"naee": (experts, experts), "naee-error": (experts,)}
    if trials.search and (found := arrays.get(CANDIDATES_OF_LAYER)) is not None:  # at most so many
        shapes[CANDIDATES_OF_LAYER] = (min(max(len(found), 1), CANDIDATES), experts)
    for name in {*VECTORS} & shapes.keys() & arrays.keys():  # of a width that only the layer tells
        shapes[name] = (experts, arrays[name].shape[-1])
    return {name: values.shape for name, values in arrays.items()} == shapes and all(
        values.dtype == np.float64 and np.isfinite(values).all() for values in arrays.values()
    )


def _watch(stream: Any, live: Any, i: int, trials: _Trials, by: np.ndarray, sums: Any) -> dict[str, np.ndarray]:
    """Run a layer on all tokens, and keep what it shows."""
    from moeits.calibration.routing import reconstruction, tried_on

    torch = need("torch", extra="load")
    steps = {}
    with live.watched() as seen:
        if trials.tokens:
            stream.run(live, i, slice(0, trials.windows))
            tried = tried_on(live, seen)
            steps = reconstruction(tried)
            if trials.search:
                steps[CANDIDATES_OF_LAYER] = trials.search.candidates(tried.error, tried.experts, i)
            if trials.domains_by is not None:
                steps[SPECIALISTS] = _specialists(tried, steps, [trials.domains_by, i])
            del tried
        for part in stream.parts():
            stream.hidden[part] = stream.run(live, i, part).cpu()
            sums.take(live, seen, torch.from_numpy(by[part].reshape(-1)))
    return {**sums.signals(), **steps}


def _specialists(tried: Any, steps: Mapping[str, np.ndarray], seed: list[int]) -> np.ndarray:
    """The sets of MoP, whose generalists are those of `naee`: the best subset, or those that go last."""
    from moeits.calibration.specialists import sets_of_specialists

    best_first = np.argsort(-steps["reconstruction"], kind="stable")

    def generalists(count: int) -> list[int]:
        subsets = steps.get("naee")
        chosen = best_first[:count] if subsets is None else np.flatnonzero(subsets[count - 1])
        return [int(expert) for expert in chosen]

    return sets_of_specialists(tried, generalists, np.random.default_rng(seed))
