"""A forecast, as a person sees it."""

from typing import Any

from moeits.console import out, table, written
from moeits.sizes import format_size
from moeits.stages.forecast import Forecast
from moeits.trials.sizes import Prediction, SizeForecast


def show_forecast(found: Forecast, arguments: dict[str, Any]) -> None:
    """A row per size and state, and the answer."""
    columns = ("removed", "experts", "tensors", "", "errors of layers", "rise of loss", "95 % interval", "KL", "top-1")
    table(columns, (row for size in found.sizes for row in _rows(size)))
    out(f"loss of the unpruned model: {found.unpruned:.4f} nats per token, on {_judges(found.data)}")
    for name, how in (("refitted", "with a refit"), ("pruned", "without one")):
        out(_answer(found, name, how))
    if unreached := sum(len(layer["unreached"]) for layer in found.sizes[-1].layers):
        out(f"note: no token reached {unreached} of the experts kept at the last size; a refit leaves their weights.")
    out("note: the rise on text of another kind can be larger; docs/forecast.md has predicted and measured ones.")
    written(arguments)


def _rows(size: SizeForecast) -> list[tuple[str, ...]]:
    summary = size.summary
    experts = f"{summary['experts_kept']} of {summary['experts_before']}"
    first = (f"{summary['reduction']:.1%}", experts, format_size(summary["bytes_after"]))
    before, after = ([layer[name] for layer in size.layers] for name in ("error_before", "error_after"))
    refitted = "refitted" if size.accepted else "refit refused"
    return [
        (*first, "pruned", _range(before), *_numbers(size.pruned)),
        ("", "", "", refitted, _range(after if size.accepted else before), *_numbers(size.refitted)),
    ]


def _range(errors: list[float]) -> str:
    return f"{min(errors):.3f} to {max(errors):.3f}" if errors else "-"


def _numbers(found: Prediction) -> tuple[str, ...]:
    interval = f"{found.low:+.4f} to {found.high:+.4f}"
    return f"{found.rise:+.4f}", interval, f"{found.kl_to_parent:.4f}", f"{found.same_first_choice:.1%}"


def _judges(data: Any) -> str:
    held_out = f"about {data['held_out_tokens'] // 2:,} held-out tokens"
    if data["held_out_by"] == "source" or "judge" in data:
        return f"{held_out} of {', '.join(data['judged_by'])}, which nothing was fitted on"
    return f"{held_out}, other documents of {', '.join(data['sources'])}"


def _answer(found: Forecast, name: str, how: str) -> str:
    safe, smallest = found.safe[name], found.sizes[0].reduction
    if safe is None:
        return f"{how}, not even {smallest:.1%} can go for a rise below {found.budget:g} nats per token"
    return f"{how}, up to {safe:.1%} can go for a rise below {found.budget:g} nats per token"
