"""What the card of a refitted checkpoint says of the refit."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from moeits.checkpoint.parts import REFIT_NAME
from moeits.printable import markdown_text
from moeits.run_files import Number
from moeits.surgery.card import Afterwards
from moeits.typed_json import Count


class _Tensors(TypedDict):
    computed: list[str]


class _Layer(TypedDict):
    ridge: Number | None
    shared: NotRequired[bool]
    """Whether the shared expert was fitted too. Older files do not tell: it was not."""


class _Loss(TypedDict):
    tokens: Count
    unpruned: Number
    pruned: Number
    refitted: Number


class _Data(TypedDict):
    tokens: Count
    sources: list[str]
    held_out_by: str
    fitted: NotRequired[list[str]]
    chosen_by: NotRequired[list[str]]
    judged_by: NotRequired[list[str]]
    judge: NotRequired[str]
    """The text that judged what was fitted on what the model wrote itself."""


class RefitOnCard(TypedDict):
    """What a card says of a refit, of the facts of refit.json."""

    parent: str
    accepted: bool
    layers: list[_Layer]
    tensors: _Tensors
    loss: _Loss
    data: _Data


def refitted(facts: Mapping[str, Any], name: str = REFIT_NAME) -> Afterwards:
    """The refit of the facts of a file, as a card tells it."""
    weights = f"refitted in closed form (the down projections named in `{name}`)" if facts["accepted"] else ""
    return Afterwards(weights, _section(facts, name), trained=False)


def _section(facts: Mapping[str, Any], name: str) -> str:
    data, loss = facts["data"], facts["loss"]
    fitted = [layer for layer in facts["layers"] if layer["ridge"] is not None]
    beside = " and of the shared ones'" if any(layer.get("shared") for layer in facts["layers"]) else ""
    parent, sources = markdown_text(facts["parent"]), ", ".join(map(markdown_text, data["sources"]))
    outcome = (
        f"{len(facts['tensors']['computed'])} tensors were computed; every other one was kept, byte for byte."
        if facts["accepted"]
        else "**No weight was changed**: on tokens that took no part the loss did not fall for certain, or it\n"
        "rose on one of their sources."
    )
    return f"""## Refit

Ridge regression of the kept experts' down projections{beside} on what each layer of {parent} gives, layer by layer, on
{data["tokens"]:,} tokens ({sources}); the ridge of each layer chosen on other tokens.
{len(fitted)} of {len(facts["layers"])} layers were fitted. {outcome} `{name}` has the errors of every layer.

| on {loss["tokens"]:,} tokens that took no part | nats per token |
| --- | ---: |
| unpruned | {loss["unpruned"]:.4f} |
| before | {loss["pruned"]:.4f} |
| refitted | {loss["refitted"]:.4f} |

{_judges(data)}
"""


def _judges(data: Mapping[str, Any]) -> str:
    """Of what sources the tokens were that chose and judged."""
    if data["held_out_by"] == "source":
        fitted, chosen_by, judged_by = (
            ", ".join(map(markdown_text, data[role])) for role in ("fitted", "chosen_by", "judged_by")
        )
        return f"Fitted on {fitted}; settings chosen on {chosen_by}; judged on {judged_by}."
    if "judge" in data:
        return (
            "Fitted on text that the model wrote itself, which chose settings too. Those tokens are of such text and\n"
            "of text that moeits carries; an accepted refit lost on neither."
        )
    return (
        "Those tokens are of the same sources as the fitted ones. Text of another kind can lose where this gains:\n"
        "judge the model on such text before you trust it."
    )
