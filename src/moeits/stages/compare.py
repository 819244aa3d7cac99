"""Two results item by item: a difference with its interval, which two accuracies side by side do not give."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, exp, lgamma, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.results import PerplexityFacts, Results
from moeits.files import check_file_output, write_whole

FORMAT = 1
RESAMPLES = 10_000
_MOST_RESAMPLES = 1_000_000
# Counts that are held at once while resamples are drawn: 32 MiB of them.
_MOST_DRAWN = 2**22
# Of more kinds of items than these, the mean is normal to within what the draw of the resamples changes.
_MOST_KINDS = 10_000
# Fewer items than these, on which only one model is right, leave an interval to chance.
_FEW_ITEMS = 10
# Steps of a binomial tail after which the rest is below the last digit.
_TAIL_ENDS = 1e-17
_LOWER_IS_BETTER = (
    "nats_per_token",
    "bits_per_byte",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "brier_score",
)


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

    def verdict(self, metric: str) -> str:
        """What the interval lets one say, in words; of few items a warning."""
        if self.difference == self.low == self.high == 0:
            said = "a and b came out the same on every item"
        elif self.low <= 0 <= self.high:
            said = "no difference can be told"
        else:
            better = (self.difference > 0) != (metric in _LOWER_IS_BETTER)
            said = f"b is {'better' if better else 'worse'} by {abs(self.difference):.4g}"
        return f"{said}; {self._warning()}" if self._warning() else said

    def _warning(self) -> str:
        what, decisive = "there are only", self.items
        if self.only_a is not None and (self.only_a or self.only_b):
            what, decisive = "the two differ on only", self.only_a + (self.only_b or 0)
        if decisive >= _FEW_ITEMS:
            return ""
        return f"{what} {decisive} item{'' if decisive == 1 else 's'}, so the interval is a rough guess"


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
    those are compared. Raises EvaluationError if the two were not asked the same in the same way,
    SettingError for settings out of range, OutputError.
    """
    if not 100 <= resamples <= _MOST_RESAMPLES:
        raise SettingError(f"--resamples {resamples} is out of range: give 100 to {_MOST_RESAMPLES:,}.")
    if output is not None:
        check_file_output(Path(output), inputs=(a, b))
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
    resample. Of very many kinds it is 1.96 standard errors to both sides (of a ratio, by the delta method), to which
    the bootstrap comes then.
    """
    kinds, counts = np.unique(np.stack([difference, weight], axis=1), axis=0, return_counts=True)
    if len(kinds) > _MOST_KINDS:
        return _normal_interval(difference, weight)
    n = int(counts.sum())
    ratios = np.empty(resamples)
    chunk = max(1, _MOST_DRAWN // len(kinds))
    for start in range(0, resamples, chunk):
        drawn = rng.multinomial(n, counts / n, size=min(chunk, resamples - start))
        ratios[start : start + chunk] = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _normal_interval(difference: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    ratio = difference.sum() / weight.sum()
    error = sqrt(((difference - ratio * weight) ** 2).sum()) / weight.sum()
    return float(ratio - 1.96 * error), float(ratio + 1.96 * error)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: twice the binomial tail at one half, at most 1."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n <= 1000:
        return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    # From its last term downwards: each is smaller than the one before it by a ratio below one.
    term, tail = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2)), 0.0
    while k >= 0 and term > _TAIL_ENDS * tail:
        tail += term
        term *= k / (n - k + 1)
        k -= 1
    return min(1.0, 2 * tail)


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
    one, other = a.perplexity, b.perplexity
    assert one is not None
    assert other is not None
    _check_same_text(one, other)
    for results, which in ((a, "first"), (b, "second")):
        if "perplexity" not in results.samples:
            raise EvaluationError(f"The {which} results have no samples of the perplexity. Evaluate again.")
    units = [np.asarray(each.samples["perplexity"]["nats"], float) for each in (a, b)]
    tokens = np.asarray(a.samples["perplexity"]["tokens"], float)
    if a.samples["perplexity"]["tokens"] != b.samples["perplexity"]["tokens"]:
        raise EvaluationError("The perplexities are of different documents, so they cannot be paired. Evaluate again.")
    low, high = paired_interval(units[1] - units[0], tokens, resamples, rng)

    def in_unit(before: float, after: float, factor: float) -> Difference:
        return Difference(
            a=before, b=after, difference=after - before, low=low * factor, high=high * factor, items=len(tokens)
        )

    bits_per_byte = one["tokens"] / one["bytes"] / log(2)
    return {
        "nats_per_token": in_unit(one["nats_per_token"], other["nats_per_token"], 1.0),
        "bits_per_byte": in_unit(one["bits_per_byte"], other["bits_per_byte"], bits_per_byte),
    }


def _check_same_text(one: PerplexityFacts, other: PerplexityFacts) -> None:
    shared = (
        ("texts", one["sha256"], other["sha256"]),
        ("windows", one["window_tokens"], other["window_tokens"]),
        ("tokenizers", one["tokens"], other["tokens"]),
    )
    for word, before, after in shared:
        if before != after:
            raise EvaluationError(
                f"The perplexities are not comparable: they are of different {word} ({before} and {after}). "
                "Evaluate both models with the same --perplexity and --window, or name --tasks to compare those only."
            )


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
            f"{processes[1]} in the second, and the harness then draws other examples. Use the same number for both."
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
    for results, which in ((a, "first"), (b, "second")):
        if not results.samples.get(name, {}).get("doc_hash"):
            raise EvaluationError(
                f"The {which} results have no samples of {name}, so items cannot be paired. Evaluate again."
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
    model = results.model
    return {
        "source": model["source"],
        "fingerprint": model["fingerprint"],
        "parameters": model["parameters"],
        "bytes": model["bytes"],
    }
