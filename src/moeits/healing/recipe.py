"""What is trained, for how long and on what loss: the paper's section 5.2 as one frozen value, and named others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from moeits.errors import SettingError
from moeits.experts.families import Architecture
from moeits.settings import HEALING, setting

GROUPS = ("router", "experts", "attention", "shared_experts")
SCHEDULES = ("cosine", "linear", "constant_with_warmup")
LOSSES_ON = ("whole", "answer")
TEMPLATES = ("auto", "chat", "instruction")
OBJECTIVES = ("language-modelling", "distillation")


def _check(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise SettingError(f"--{name.replace('_', '-')} {value} is out of range: {wanted}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"--{name.replace('_', '-')} {value} is not one of {', '.join(choices)}.")


def _of_paper(default: Any, help: str, **facts: Any) -> Any:
    """A field of a recipe. Its default is the paper's, which another recipe may replace."""
    value = ",".join(default) if isinstance(default, tuple) else "off" if default is False else default
    return setting(default, help=help, panel=HEALING, shown_default=f"paper: {value}", **facts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_MOST = 1e100
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """A caller in Python may give anything; what is compared below must be what the field says."""
    if kind in (int, float):
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        fits = fits and abs(value) <= _MOST
    elif kind in _KINDS:
        fits = isinstance(value, kind)
    else:
        fits = isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)
    if not fits:
        wanted = _KINDS.get(kind, "a list of texts")
        raise SettingError(
            f"--{name.replace('_', '-')} is not {wanted} of a sensible size (its type is {type(value).__name__})."
        )


@dataclass(frozen=True, kw_only=True)
class HealingRecipe:
    """How a pruned model is trained. The defaults are the paper's (5.2; what it leaves open: method.md, section 4)."""

    targets: tuple[str, ...] = _of_paper(
        ("router", "experts"),
        f"Groups of weights that get LoRA, separated by commas: {', '.join(GROUPS)}. All else is frozen.",
        parse=_names,
        metavar="NAME,NAME",
    )
    rank: int = _of_paper(64, "Rank r of LoRA, for every matrix of its own: gate, up and down of each expert.")
    alpha: float = _of_paper(16.0, "Adapters are scaled by alpha / rank.")
    dropout: float = _of_paper(0.1, "Share of an adapter's inputs that is dropped, per token.")
    batch_size: int = _of_paper(16, "Sequences per device and micro-batch.")
    accumulation: int = _of_paper(4, "Micro-batches per step.")
    steps: int = _of_paper(500, "Updates of the optimiser.")
    learning_rate: float = _of_paper(2e-4, "The highest learning rate.")
    schedule: str = _of_paper("cosine", "Course of the learning rate.", choices=SCHEDULES)
    warmup: float = _of_paper(0.05, "Share of the steps in which the learning rate rises from 0.")
    weight_decay: float = _of_paper(0.05, "Weight decay of AdamW.")
    neftune: float = _of_paper(5.0, "Noise on the embeddings while training (NEFTune alpha); 0 for none.")
    sequence_length: int = _of_paper(2048, "Tokens of a sequence, at most the model's context.")
    loss_on: str = _of_paper("whole", "Tokens that count towards the loss: whole or answer.", choices=LOSSES_ON)
    packing: bool = _of_paper(False, "Fill sequences with several texts instead of padding each.", negatable=True)
    template: str = _of_paper(
        "auto",
        "chat: the model's chat template; instruction: Instruction / Input / Response; auto: chat if there is one.",
        choices=TEMPLATES,
    )
    objective: str = _of_paper(
        "language-modelling",
        "distillation: the KL divergence from the next-token distribution of --teacher.",
        choices=OBJECTIVES,
    )
    temperature: float = _of_paper(1.0, "Temperature of the distillation.")
    balance: float = _of_paper(0.0, "Weight of the routers' load-balancing term, per layer; 0 for none.")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_kind(each.name, getattr(self, each.name), each.type)
        for name in ("rank", "batch_size", "accumulation", "steps", "sequence_length"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "give 1 or more")
        for name in ("alpha", "learning_rate", "temperature"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "give more than 0")
        for name in ("weight_decay", "neftune", "balance"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "give 0 or more")
        for name in ("dropout", "warmup"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "give a share from 0 to below 1")
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("loss_on", self.loss_on, LOSSES_ON)
        _check_choice("template", self.template, TEMPLATES)
        _check_choice("objective", self.objective, OBJECTIVES)
        for group in self.targets:
            _check_choice("targets", group, GROUPS)
        if not self.targets:
            raise SettingError(f"--targets names nothing to train: give some of {', '.join(GROUPS)}.")

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / self.rank

    @property
    def sequences(self) -> int:
        """Sequences that one device trains on from the first step to the last, repetitions counted."""
        return self.batch_size * self.accumulation * self.steps

    def facts(self) -> dict[str, Any]:
        """The recipe as a JSON value."""
        return {**asdict(self), "targets": list(self.targets)}

    def changed(self, changes: Mapping[str, Any]) -> "HealingRecipe":
        """The recipe with some fields replaced; None leaves a field alone. Raises SettingError."""
        given = {name: value for name, value in changes.items() if value is not None}
        if isinstance(given.get("targets"), str):
            given["targets"] = _names(given["targets"])
        return replace(self, **given)


PAPER = HealingRecipe()
RECIPES: Mapping[str, HealingRecipe] = {
    "paper": PAPER,
    "authors-code": replace(
        PAPER, targets=("experts", "attention", "shared_experts"), template="instruction", loss_on="whole"
    ),
    "router-only": replace(PAPER, targets=("router",)),
    "small": replace(
        PAPER,
        rank=16,
        alpha=32.0,
        dropout=0.0,
        batch_size=4,
        accumulation=1,
        steps=100,
        learning_rate=5e-3,
        neftune=0.0,
        weight_decay=0.0,
        sequence_length=256,
        packing=True,
    ),
}


def recipe_named(name: str, architecture: Architecture) -> HealingRecipe:
    """A recipe by name, for one family of models. Raises SettingError if there is none.

    The authors' program has the router as a target in its Qwen script only, and not every family has shared experts.
    """
    _check_choice("recipe", name, tuple(RECIPES))
    recipe = RECIPES[name]
    if name != "authors-code":
        return recipe
    targets = tuple(group for group in recipe.targets if group != "shared_experts" or architecture.shared)
    return replace(recipe, targets=targets + (("router",) if architecture.model_type == "qwen2_moe" else ()))
