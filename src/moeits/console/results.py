"""Results and comparisons, as a person sees them."""

import os
from collections.abc import Mapping
from typing import Any

from moeits.console import out, table, written
from moeits.evaluation.results import Results
from moeits.stages.compare import Comparison, Difference


def show_results(results: Results, arguments: dict[str, Any]) -> None:
    """Task, shots, items and both accuracies with their standard errors; then what was cut, and the perplexity."""
    if os.environ.get("RANK", "0") != "0":
        return  # under `accelerate launch` every process comes here, and one of them speaks
    if results.tasks:
        columns = ("task", "shots", "items", "acc", "acc_norm", "chance")
        table(columns, (_task_row(name, row) for name, row in results.tasks.items()))
    if warning := _cut_warning(results):
        out(warning)
    if results.perplexity is not None:
        found = results.perplexity
        out(
            f"{found['nats_per_token']:.4f} nats per token, {found['bits_per_byte']:.4f} bits per byte on "
            f"{found['file']} ({found['tokens']:,} tokens in windows of {found['window_tokens']})"
        )
        if "kl_to_parent" in found:
            out(
                f"to {found['parent']}: KL {found['kl_to_parent']:.4f} nats per token, the same first choice at "
                f"{found['same_first_choice']:.1%} of the tokens"
            )
    if results.generations is not None:
        answers = results.generations
        out(
            f"of {answers['prompts']} answers {answers['ended']:.0%} end within {answers['new_tokens']} tokens, "
            f"{answers['looped']:.0%} loop"
        )
    written(arguments)


def show_comparison(comparison: Comparison, arguments: dict[str, Any]) -> None:
    """Metric by metric: a, b, the difference with its interval, and who had right what the other had not."""
    out(f"a is {comparison.a['source']}, b is {comparison.b['source']}")
    for note in comparison.notes:
        out(f"note: {note}")
    for task, metrics in comparison.tasks.items():
        _show_differences(f"{task}, {next(iter(metrics.values())).items} items", metrics)
    if comparison.perplexity:
        items = comparison.perplexity["nats_per_token"].items
        _show_differences(f"perplexity, {items} documents or windows (less is better)", comparison.perplexity)
    if arguments.get("output"):
        written(arguments)


def _task_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
    accuracies = (_with_error(row, metric) for metric in ("acc", "acc_norm"))
    return (name, str(row["num_fewshot"]), str(row["n_samples"]["effective"]), *accuracies, chance)


def _with_error(row: Mapping[str, Any], metric: str) -> str:
    if row.get(metric) is None:
        return "-"
    error = row.get(f"{metric}_stderr")
    return f"{row[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _cut_warning(results: Results) -> str:
    """One note on all tasks whose prompts did not fit; empty if all did."""
    cut = {name: row for name, row in results.tasks.items() if row["prompts"] and row["prompts"]["requests_cut"]}
    if not cut:
        return ""
    prompts = {name: row["prompts"] for name, row in cut.items()}
    each = "; ".join(
        f"{name} {found['requests_cut']} of {found['requests']} ({found['items_cut']} of "
        f"{cut[name]['n_samples']['effective']} items)"
        for name, found in prompts.items()
    )
    return (
        f"note: prompts were cut from the left in {len(cut)} of {len(results.tasks)} tasks, since the longest has "
        f"{max(found['longest_tokens'] for found in prompts.values())} tokens and the context "
        f"{results.settings['context_tokens']}, so not all examples were seen: {each}. With fewer shots they fit: "
        "--num-fewshot."
    )


def _show_differences(title: str, metrics: Mapping[str, Difference]) -> None:
    out(title)
    columns = ("metric", "a", "b", "b - a", "95 % from", "95 % to", "only a", "only b", "McNemar p")
    table(columns, ((metric, *_numbers(found)) for metric, found in metrics.items()))
    for metric, found in metrics.items():
        out(f"{metric}: {found.verdict(metric)}")


def _numbers(found: Difference) -> tuple[str, ...]:
    counts = ("-", "-", "-")
    if found.only_a is not None:
        counts = (str(found.only_a), str(found.only_b), f"{found.mcnemar_p:.2g}")
    interval = (f"{found.low:+.4f}", f"{found.high:+.4f}")
    return (f"{found.a:.4f}", f"{found.b:.4f}", f"{found.difference:+.4f}", *interval, *counts)
