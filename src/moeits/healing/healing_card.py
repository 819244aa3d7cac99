"""What the card of a healed checkpoint says of the healing."""

from collections.abc import Mapping, Sequence
from typing import Any

from moeits.printable import markdown_text
from moeits.surgery.card import Afterwards

_TRAINED = "The weights that are left were healed by a short LoRA training, see below."


def healed(facts: Mapping[str, Any]) -> Afterwards:
    """The healing of the facts of healing.json, as a card tells it."""
    return Afterwards(_TRAINED, _section(facts))


def _section(healing: Mapping[str, Any]) -> str:
    recipe, data = healing["recipe"], healing["data"]
    fields = ", ".join(f"{name} {_in_words(value)}" for name, value in recipe.items())
    return f"""## Healing

LoRA on {_in_words(recipe["targets"])}, merged back; every other tensor is the pruned checkpoint's, byte for byte.
Recipe `{healing["recipe_name"]}`: {fields}; seed {healing["seed"]}.{_notes(healing["notes"])}

Trained on {data["sequences"]:,} sequences ({data["trained_tokens"]:,} trained tokens) of {data["used"]:,} rows;
{data["dropped"]:,} rows were dropped,
{data["spare"]:,} not needed, and {data["cut"]:,} cut.
Data fingerprint `{data["fingerprint"][:16]}`; `healing.json` has the curves.{_energy(healing["energy"])}

| held-out loss, nats per token | |
| --- | ---: |
| pruned | {_loss(healing["loss_before"])} |
| with the adapter | {_loss(healing["loss_after"])} |
| merged, as it is here | {_loss(healing["loss_merged"])} |

A lower loss after training is not yet a healed model: part of the gain is more training on this data, which the
unpruned model would gain as well. Heal it the same way and compare.
"""


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"\n{markdown_text(note)}" for note in notes)


def _energy(energy: Mapping[str, Any]) -> str:
    if energy["joules"] is None:
        return ""
    co2 = "" if energy["co2_grams"] is None else f", {energy['co2_grams']:.3g} g of CO2 in {energy['country']}"
    return f"\nThe training took {energy['joules']:,.0f} J ({energy['mode']}){co2}."


def _in_words(value: Any) -> str:
    return " and ".join(value).replace("_", " ") if isinstance(value, list) else str(value)


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
