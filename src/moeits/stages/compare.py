"""Two results item by item: a difference with its interval, which two accuracies side by side do not give."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np

from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.results import Results
from moeits.evidence import write_whole

FORMAT = 1
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of two models on the same items: b - a, with its 95 % interval by a paired bootstrap."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    items: int
    only_a: int | None = None
    """Items that only a has right; None where an item is not simply right or wrong."""
    only_b: int | None = None
    mcnemar_p: float | None = None
    """Two-sided exact McNemar test: the chance of so uneven a split of the items that only one has right."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models, metric by metric. `perplexity` is in nats per token and bits per byte: smaller is better."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    notes: tuple[str, ...]
    """What else than the models may have made a difference: a sentence each."""
    resamples: int
    seed: int
    tasks: Mapping[str, Mapping[str, Difference]]
    perplexity: Mapping[str, Difference]

    def facts(self) -> dict[str, Any]:
        """The comparison as a JSON value."""
        return {"format": FORMAT, "kind": "comparison", **asdict(self)}


def compare(
    a: str | Path | Results,
    b: str | Path | Results,
    *,
    output: str | Path | None = None,
    tasks: str | Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """What b does better or worse than a, metric by metric, over the items that both were asked.

    The interval is the middle 95 % of a paired bootstrap over items (over documents for perplexity). With `tasks` only
    those are compared. Raises EvaluationError if the two were not asked the same in the same way.
    """
    if resamples < 100:
        raise SettingError(f"--resamples {resamples} makes no sense: give 100 or more.")
    a, b = _loaded(a), _loaded(b)
    names = _common_tasks(a, b, tasks)
    rng = np.random.default_rng(seed)
    both_texts = tasks is None and a.perplexity is not None and b.perplexity is not None
    comparison = Comparison(
        a=_model(a),
        b=_model(b),
        notes=tuple(_other_differences(a, b)),
        resamples=resamples,
        seed=seed,
        tasks={name: dict(_task_differences(name, a, b, resamples, rng)) for name in names},
        perplexity=_perplexity_differences(a, b, resamples, rng) if both_texts else {},
    )
    if output is not None:
        write_whole(Path(output), (json.dumps(comparison.facts(), indent=2) + "\n").encode())
    return comparison


def paired_interval(
    difference: np.ndarray, weight: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Middle 95 % of sum(difference) / sum(weight) over resampled items.

    One entry per item in both arrays. Alike entries are drawn together: right-or-wrong items cost three numbers a
    resample.
    """
    kinds, counts = np.unique(np.stack([difference, weight], axis=1), axis=0, return_counts=True)
    n = int(counts.sum())
    drawn = rng.multinomial(n, counts / n, size=resamples)
    low, high = np.percentile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), [2.5, 97.5])
    return float(low), float(high)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: twice the binomial tail at one half, at most 1."""
    n = only_a + only_b
    tail = sum(comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def _task_differences(
    name: str, a: Results, b: Results, resamples: int, rng: np.random.Generator
) -> Iterable[tuple[str, Difference]]:
    for metric, ours in a.samples[name].items():
        if metric in ("doc_hash", "loglikelihoods") or metric not in b.samples[name]:
            continue
        before, after = np.asarray(ours, float), np.asarray(b.samples[name][metric], float)
        right_or_wrong = set(np.unique([before, after])) <= {0.0, 1.0}
        only_a, only_b = int((before > after).sum()), int((after > before).sum())
        low, high = paired_interval(after - before, np.ones(len(before)), resamples, rng)
        yield (
            metric,
            Difference(
                a=float(before.mean()),
                b=float(after.mean()),
                difference=float((after - before).mean()),
                low=low,
                high=high,
                items=len(before),
                only_a=only_a if right_or_wrong else None,
                only_b=only_b if right_or_wrong else None,
                mcnemar_p=mcnemar_p(only_a, only_b) if right_or_wrong else None,
            ),
        )


def _perplexity_differences(a: Results, b: Results, resamples: int, rng: np.random.Generator) -> dict[str, Difference]:
    """Nats per token and bits per byte, which are one number in two units: both models read the same tokens."""
    one, other = a.perplexity or {}, b.perplexity or {}
    for key, word in (("sha256", "texts"), ("window_tokens", "windows"), ("tokens", "tokenizers")):
        if one[key] != other[key]:
            raise EvaluationError(
                f"The perplexities are not comparable: they are of different {word} ({one[key]} and {other[key]}). "
                "Evaluate both models with the same --perplexity and --window, or name --tasks to compare those only."
            )
    units = [np.asarray(each.samples["perplexity"]["nats"]) for each in (a, b)]
    tokens = np.asarray(a.samples["perplexity"]["tokens"], float)
    low, high = paired_interval(units[1] - units[0], tokens, resamples, rng)

    def in_unit(key: str, factor: float) -> Difference:
        difference = other[key] - one[key]
        return Difference(
            a=one[key], b=other[key], difference=difference, low=low * factor, high=high * factor, items=len(tokens)
        )

    bits_per_byte = one["tokens"] / one["bytes"] / log(2)
    return {"nats_per_token": in_unit("nats_per_token", 1.0), "bits_per_byte": in_unit("bits_per_byte", bits_per_byte)}


# ------------------------------------------------------------------------------------------------ the same question


def _common_tasks(a: Results, b: Results, tasks: str | Sequence[str] | None) -> list[str]:
    """The tasks to compare. Raises EvaluationError if the two were not asked the same items with the same shots."""
    if tasks is not None:
        names = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    else:
        names = list(dict.fromkeys((*a.tasks, *b.tasks)))
    for name in names:
        for results, which in ((a, "first"), (b, "second")):
            if name not in results.tasks:
                raise EvaluationError(
                    f"The results are of different tasks: the {which} has no {name} "
                    f"(it has {', '.join(results.tasks) or 'none'}). Name --tasks that both have."
                )
        _check_same_question(name, a, b)
    if not names and (a.perplexity is None or b.perplexity is None):
        raise EvaluationError("The results have nothing in common: one has tasks, the other a perplexity.")
    return names


def _check_same_question(name: str, a: Results, b: Results) -> None:
    one, other = a.tasks[name], b.tasks[name]
    if one["num_fewshot"] != other["num_fewshot"]:
        raise EvaluationError(
            f"The results are of different shots: {name} was asked with {one['num_fewshot']} examples in the first "
            f"and {other['num_fewshot']} in the second. Evaluate both with the same --num-fewshot."
        )
    processes = [results.settings.get("processes", 1) for results in (a, b)]
    if one["num_fewshot"] and processes[0] != processes[1]:
        # Each process draws its examples from the same seed for its own items only.
        raise EvaluationError(
            f"The results are of different examples: {name} was asked by {processes[0]} processes in the first and "
            f"{processes[1]} in the second, and the harness draws other examples then. Evaluate both with as many."
        )
    if one["num_fewshot"] and one.get("files") != other.get("files"):
        raise EvaluationError(
            f"The results are of different examples: the files of {name} were not the same in both. Evaluate both with "
            "the same --data-dir."
        )
    context = [results.settings.get("context_tokens") for results in (a, b)]
    if context[0] != context[1] and any((row.get("prompts") or {}).get("requests_cut") for row in (one, other)):
        raise EvaluationError(
            f"The results are of different prompts: {name} was cut to {context[0]} tokens in the first and to "
            f"{context[1]} in the second. Evaluate both with fewer shots, so that nothing is cut."
        )
    if one["version"] != other["version"]:
        raise EvaluationError(
            f"The results are of different versions of {name}: {one['version']} and {other['version']}. Evaluate both "
            "with one lm-evaluation-harness."
        )
    if a.samples[name]["doc_hash"] != b.samples[name]["doc_hash"]:
        raise EvaluationError(
            f"The results are of different items of {name}: {one['n_samples']['effective']} in the first, "
            f"{other['n_samples']['effective']} in the second, and not the same ones. Evaluate both with the same data "
            "and --limit."
        )


def _other_differences(a: Results, b: Results) -> Iterable[str]:
    """The precision is a choice that may be compared, as any other of a model's; it must only be said."""
    for setting in ("dtype", "backend"):
        one, other = a.settings.get(setting), b.settings.get(setting)
        if one != other:
            yield f"The first was run with --{setting} {one}, the second with {other}: that is part of the difference."


def _loaded(results: str | Path | Results) -> Results:
    return results if isinstance(results, Results) else Results.load(results)


def _model(results: Results) -> dict[str, Any]:
    return {key: results.model[key] for key in ("source", "fingerprint", "parameters", "bytes")}
