"""What is trained, for how long and on what loss: the paper's section 5.2 as one frozen value, and named others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from moeits.errors import SettingError
from moeits.experts.architectures import Architecture

GROUPS = ("router", "experts", "attention", "shared_experts")
SCHEDULES = ("cosine", "linear", "constant_with_warmup")
LOSSES_ON = ("whole", "answer")
TEMPLATES = ("auto", "chat", "instruction")
OBJECTIVES = ("language-modelling", "distillation")


def _check(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise SettingError(f"--{name.replace('_', '-')} {value} makes no sense: {wanted}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(name, value, value in choices, f"it is {', '.join(choices[:-1])} or {choices[-1]}")


@dataclass(frozen=True, kw_only=True)
class HealingRecipe:
    """How a pruned model is trained. The defaults are the paper's (5.2; what it leaves open: method.md, section 4)."""

    targets: tuple[str, ...] = ("router", "experts")
    """Groups of weights that get LoRA: router, experts, attention, shared_experts. Everything else is frozen."""
    rank: int = 64
    """r of LoRA, for every weight matrix of its own: gate, up and down of each expert."""
    alpha: float = 16.0
    """The adapter is scaled by alpha / rank."""
    dropout: float = 0.1
    """Share of an adapter's inputs that is dropped, per token."""
    batch_size: int = 16
    """Sequences per device and micro-batch."""
    accumulation: int = 4
    """Micro-batches per step."""
    steps: int = 500
    """Updates of the optimiser."""
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.05
    neftune: float = 5.0
    """Noise on the embeddings while training (NEFTune); 0 for none."""
    sequence_length: int = 2048
    """Tokens; never more than the model's context."""
    loss_on: str = "whole"
    """Tokens whose loss is minimised: of the whole text, or of answers only."""
    packing: bool = False
    """Fill sequences with several texts, one after the other, instead of padding each."""
    template: str = "auto"
    """chat: the model's chat template; instruction: Instruction / Input / Response; auto: chat if the model has one."""
    objective: str = "language-modelling"
    """language-modelling, or distillation: the KL divergence from the teacher's next-token distribution."""
    temperature: float = 1.0
    """Of the distillation."""
    balance: float = 0.0
    """Weight of the routers' load-balancing term; 0 for none, as in the paper."""

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "accumulation", "steps", "sequence_length"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "give 1 or more")
        for name in ("alpha", "learning_rate", "temperature"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "give more than 0")
        for name in ("weight_decay", "neftune", "balance"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "give 0 or more")
        for name in ("dropout", "warmup"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "it is a share from 0 to below 1")
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
            given["targets"] = tuple(part.strip() for part in given["targets"].split(","))
        return replace(self, **given)


FIELDS = tuple(field.name for field in fields(HealingRecipe))

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
