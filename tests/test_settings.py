"""Settings once: fields of a dataclass are keyword arguments, and so flags."""

import ast
import inspect
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest

import moeits
from moeits.errors import SettingError
from moeits.healing.recipe import HealingRecipe
from moeits.settings import EXPERT, Flag, Given, flags_of, same_as, setting, with_settings
from moeits.signals.settings import Scoring
from tests.toys import make_toy

SOURCE = Path(moeits.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Cooking:
    minutes: int = setting(10, help="How long it cooks.")
    salt: str | None = setting(None, help="What it is salted with.")


@with_settings
def cook(what: str, *, cooking: Cooking, lid: bool = False) -> tuple[str, Cooking, bool]:
    """Cook something."""
    return what, cooking, lid


@with_settings
def season(*, changes: Given[Cooking]) -> dict[str, object]:
    return dict(changes)


def test_fields_are_given_one_by_one_or_as_their_value() -> None:
    assert cook("rice") == ("rice", Cooking(), False)
    assert cook("rice", minutes=12, lid=True) == ("rice", Cooking(minutes=12), True)
    assert cook("rice", cooking=Cooking(minutes=12)) == cook("rice", minutes=12)
    with pytest.raises(SettingError, match="either cooking, or minutes"):
        cook("rice", cooking=Cooking(), minutes=3)


def test_the_signature_tells_what_can_be_given() -> None:
    signature = inspect.signature(cook)
    assert str(signature) == (
        "(what: str, *, minutes: int = 10, salt: str | None = None, lid: bool = False)"
        " -> tuple[str, tests.test_settings.Cooking, bool]"
    )
    assert cook.__doc__ == "Cook something."
    assert flags_of(cook)["minutes"] == Flag(help="How long it cooks.")


def test_a_setting_that_two_have_is_described_once_with_what_differs() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Baking:
        minutes: int = same_as(Cooking, "minutes", default=30, panel=EXPERT)
        salt: str | None = same_as(Cooking, "salt")

    assert Baking() == Baking(minutes=30, salt=None)
    described = {field.name: field.metadata["flag"] for field in fields(Baking)}
    assert described["minutes"] == Flag(help="How long it cooks.", panel=EXPERT)
    assert described["salt"] == flags_of(cook)["salt"]


def test_an_unknown_name_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingError, match=r"^cook takes no 'minute'\. Did you mean 'minutes'\?$"):
        cook("rice", minute=3)
    with pytest.raises(
        SettingError, match=r"^plan takes no 'experts_per_layers'\. Did you mean 'experts_per_layer'\?$"
    ):
        moeits.plan("evidence", experts_per_layers=3)
    with pytest.raises(SettingError, match=r"^simplify takes no 'colour'\.$"):
        moeits.simplify("model", output="out", colour="red")


def test_of_settings_with_unknown_defaults_only_what_was_given_arrives() -> None:
    assert season() == {}
    assert season(minutes=3) == {"minutes": 3}
    assert inspect.signature(season).parameters["minutes"].default is None


def test_a_stage_that_is_given_settings_does_as_with_keywords(toy: Path) -> None:
    scoring = Scoring(bins=16, diagonal="excluded")
    assert moeits.score(toy, scoring=scoring).facts() == moeits.score(toy, **asdict(scoring)).facts()


def test_no_signature_has_more_than_twelve_parameters() -> None:
    """Of those that are written down; a person who calls a stage sees its settings flattened."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(arguments) <= 12, f"{path.name}: {node.name} takes {len(arguments)}"


def test_a_flag_of_a_recipe_says_the_papers_value_and_stays_unset() -> None:
    parameters, flags = inspect.signature(moeits.heal).parameters, flags_of(moeits.heal)
    for field in fields(HealingRecipe):
        assert parameters[field.name].default is None
        assert flags[field.name].help
    assert (flags["rank"].shown_default, flags["targets"].shown_default) == ("paper: 64", "paper: router,experts")


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_experts", 10**400), ("threads", 10**400), ("bins", "9" * 5000), ("seed", -(10**400))],
    ids=["min_experts", "threads", "bins", "seed"],
)
def test_a_number_of_hundreds_of_digits_is_out_of_range(tmp_path: Path, name: str, value: object) -> None:
    toy = make_toy(tmp_path / "toy")
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} is out of range: it is a number of more than"):
        moeits.simplify(toy, reduction=0.5, output=tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()
