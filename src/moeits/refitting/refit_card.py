"""What the card of a refitted checkpoint says of the refit."""

from collections.abc import Mapping
from typing import Any

from moeits.printable import markdown_text
from moeits.surgery.card import UNTRAINED, Afterwards

_REFITTED = (
    "The weights that are left are those of the source, bit for bit, but for the down projections named in\n"
    "`refit.json`, which were refitted in closed form, see below; nothing was trained."
)


def refitted(facts: Mapping[str, Any]) -> Afterwards:
    """The refit of the facts of refit.json, as a card tells it."""
    return Afterwards(_REFITTED if facts["accepted"] else UNTRAINED, _section(facts))


def _section(facts: Mapping[str, Any]) -> str:
    data, loss = facts["data"], facts["loss"]
    fitted = [layer for layer in facts["layers"] if layer["ridge"] is not None]
    outcome = (
        f"{len(facts['tensors']['computed'])} tensors were computed; every other one is the pruned checkpoint's, byte "
        "for byte."
        if facts["accepted"]
        else "**No weight was changed**: on tokens that took no part the loss did not fall for certain, or it\n"
        "rose on one of their sources."
    )
    return f"""## Refit

Ridge regression of the kept experts' down projections on what each layer of {facts["parent"]} gives, layer by layer, on
{data["tokens"]:,} tokens ({", ".join(data["sources"])}); the ridge of each layer chosen on other tokens.
{len(fitted)} of {len(facts["layers"])} layers were fitted. {outcome} `refit.json` has the errors of every layer.

| on {loss["tokens"]:,} tokens that took no part | nats per token |
| --- | ---: |
| unpruned | {loss["unpruned"]:.4f} |
| pruned | {loss["pruned"]:.4f} |
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
    return (
        "Those tokens are of the same sources as the fitted ones. Text of another kind can lose where this gains:\n"
        "judge the model on such text before you trust it."
    )
