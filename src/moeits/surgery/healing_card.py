"""What the card of a healed checkpoint says of the healing."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from moeits.checkpoint.parts import HEALING_NAME
from moeits.printable import markdown_text, printable
from moeits.run_files import Number
from moeits.surgery.card import Afterwards
from moeits.typed_json import Count


class _Data(TypedDict):
    fingerprint: str
    sequences: Count
    trained_tokens: Count
    used: Count
    dropped: Count
    spare: Count
    cut: Count


class _Energy(TypedDict):
    joules: Number | None
    mode: NotRequired[str | None]
    co2_grams: NotRequired[Number | None]
    country: NotRequired[str | None]


class HealingOnCard(TypedDict):
    """What a card says of a healing, of the facts of healing.json."""

    recipe_name: str
    recipe: dict[str, bool | float | str | list[str] | None]
    seed: Count
    data: _Data
    energy: _Energy
    loss_before: Number | None
    loss_after: Number | None
    loss_merged: Number | None
    notes: list[str]


def healed(facts: Mapping[str, Any], name: str = HEALING_NAME) -> Afterwards:
    """The healing of the facts of a file, as a card tells it."""
    return Afterwards("healed by a short LoRA training", _section(facts, name))


def _section(healing: Mapping[str, Any], name: str) -> str:
    recipe, data = healing["recipe"], healing["data"]
    fields = ", ".join(f"{name} {_in_words(value)}" for name, value in recipe.items())
    return f"""## Healing

LoRA on {_in_words(recipe["targets"])}, merged back; every other tensor was kept, byte for byte.
Recipe {markdown_text(healing["recipe_name"])}: {fields}; seed {healing["seed"]}.{_notes(healing["notes"])}

Trained on {data["sequences"]:,} sequences ({data["trained_tokens"]:,} trained tokens) of {data["used"]:,} rows;
{data["dropped"]:,} rows were dropped,
{data["spare"]:,} not needed, and {data["cut"]:,} cut.
Data fingerprint `{printable(data["fingerprint"][:16])}`; `{name}` has the curves.{_energy(healing["energy"])}

| held-out loss, nats per token | |
| --- | ---: |
| before | {_loss(healing["loss_before"])} |
| with the adapter | {_loss(healing["loss_after"])} |
| merged | {_loss(healing["loss_merged"])} |

A lower loss after training is not yet a healed model: part of the gain is more training on this data, which the
unpruned model would gain as well. Heal it the same way and compare.
"""


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"\n{markdown_text(note)}" for note in notes)


def _energy(energy: Mapping[str, Any]) -> str:
    if energy["joules"] is None:
        return ""
    co2 = (
        ""
        if energy.get("co2_grams") is None
        else f", {energy['co2_grams']:.3g} g of CO2 in {markdown_text(str(energy['country']))}"
    )
    return f"\nThe training took {energy['joules']:,.0f} J ({markdown_text(str(energy['mode']))}){co2}."


def _in_words(value: Any) -> str:
    text = " and ".join(value).replace("_", " ") if isinstance(value, list) else str(value)
    return markdown_text(text)


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
