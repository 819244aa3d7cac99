"""LoRA on routers and on stacked experts, inside the stock model, without a copy of a weight (Hu et al. 2021).

transformers 5 holds the experts of a layer as 3-D parameters. peft can adapt those, but adds the product of its factors
to the weights, so each step holds a second copy of the experts for the backward pass, and dropout, which acts on
inputs, is refused. Here the frozen parameter stays where it is, and the adapter acts on its input:

    y = W x + (alpha / rank) B A dropout(x)

This module imports torch: it defines modules. Nothing imports it before a model is healed.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import HealingError
from moeits.experts.layout import MoELayout
from moeits.healing.recipe import HealingRecipe
from moeits.healing.targets import Target

# torch's grouped product wants rows that begin at multiples of 16 bytes.
_ALIGNMENT = 16


class Factors(nn.Module):
    """The two factors of a stack of weights: a (stack, rank, columns), b (stack, rows, rank), float32.

    b starts at zero, so an adapter starts as no change; a starts uniform within 1 / sqrt(columns), as in peft.
    """

    def __init__(self, stack: int, rows: int, columns: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(stack, rank, columns, device=device).uniform_(-1, 1) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(stack, rows, rank, device=device))


class AdaptedExperts(nn.Module):
    """The routed experts of one layer, frozen, with an adapter per expert and projection."""

    def __init__(
        self, frozen: nn.Module, target: Target, stacked: Mapping[str, tuple[str, ...]], recipe: HealingRecipe
    ):
        super().__init__()
        self.frozen: Any = frozen
        self.num_experts = target.weights["down"][0]
        self.stacked = dict(stacked)
        self.scale = recipe.scale
        self.dropout = nn.Dropout(recipe.dropout)
        self.factors = nn.ModuleDict(
            {name: Factors(*shape, recipe.rank, _device(frozen)) for name, shape in target.weights.items()}
        )

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """What the stock experts compute, from hidden (tokens, H), the chosen experts and their weights (tokens, k).

        Every expert's tokens stand side by side. Each token is copied k times first, so that sums over its copies are
        sums over an axis: scattered additions would come in another order in every run.
        """
        tokens, k = top_k_index.shape
        order = top_k_index.reshape(-1).argsort(stable=True)
        ends = torch.bincount(top_k_index.reshape(-1), minlength=self.num_experts).cumsum(0)
        inputs = hidden.unsqueeze(1).expand(-1, k, -1).reshape(tokens * k, -1)[order]
        gate_up, down = self.stacked
        inside = self.frozen._apply_gate(self._project(gate_up, inputs, ends))
        outputs = self._project(down, inside, ends)[order.argsort()].view(tokens, k, -1)
        return (outputs * top_k_weights.unsqueeze(-1)).sum(1).to(hidden.dtype)

    def _project(self, name: str, inputs: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """One stacked parameter and its adapters on rows grouped by expert."""
        dropped = self.dropout(inputs)
        adapters: list[Any] = [self.factors[projection] for projection in self.stacked[name]]
        inner = [grouped_linear(dropped, adapter.a.to(inputs.dtype), ends) for adapter in adapters]
        deltas = [
            grouped_linear(rows, adapter.b.to(inputs.dtype), ends)
            for rows, adapter in zip(inner, adapters, strict=True)
        ]
        frozen = grouped_linear(inputs, getattr(self.frozen, name), ends)
        return frozen + self.scale * torch.cat(deltas, -1)


class AdaptedRouter(nn.Module):
    """A stock router that sees [x, dropout(x)] through [W, scale B A]: LoRA without knowing how it routes."""

    def __init__(self, frozen: Any, target: Target, recipe: HealingRecipe):
        super().__init__()
        self.frozen = frozen
        self.scale = recipe.scale
        self.dropout = nn.Dropout(recipe.dropout)
        self.factors = nn.ModuleDict({"weight": Factors(*target.weights["weight"], recipe.rank, _device(frozen))})
        # Most stock routers flatten their input to rows of this width.
        if hasattr(frozen, "hidden_dim"):
            frozen.hidden_dim = 2 * frozen.hidden_dim

    @property
    def weight(self) -> Any:
        """The stock weight, which what is around a router may ask for its dtype."""
        return self.frozen.weight

    def forward(self, hidden: torch.Tensor, *bias: torch.Tensor) -> Any:
        factors: Any = self.factors["weight"]
        weight = self.frozen.weight
        delta = (self.scale * factors.b[0] @ factors.a[0]).to(weight.dtype)
        both = torch.cat([hidden, self.dropout(hidden)], -1)
        return torch.func.functional_call(self.frozen, {"weight": torch.cat([weight, delta], 1)}, (both, *bias))


class AdaptedLinear(nn.Module):
    """An ordinary linear layer, frozen, with its adapter."""

    def __init__(self, frozen: nn.Linear, target: Target, recipe: HealingRecipe):
        super().__init__()
        self.frozen: Any = frozen
        self.scale = recipe.scale
        self.dropout = nn.Dropout(recipe.dropout)
        self.factors = nn.ModuleDict({"weight": Factors(*target.weights["weight"], recipe.rank, _device(frozen))})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        factors: Any = self.factors["weight"]
        inner = functional.linear(self.dropout(inputs), factors.a[0].to(inputs.dtype))
        return self.frozen(inputs) + self.scale * functional.linear(inner, factors.b[0].to(inputs.dtype))


def grouped_linear(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each group of rows through its own weight: (rows, in), (groups, out, in), ends of the groups -> (rows, out)."""
    widths = {weights.shape[1] * weights.element_size(), weights.shape[2] * weights.element_size()}
    if all(width % _ALIGNMENT == 0 for width in widths) and rows.shape[0]:
        return functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends.to(torch.int32))
    groups = pairwise([0, *ends.tolist()])
    # unbind, not indexing: the gradient of an index is a whole stack of zeros for every single group.
    parts = [functional.linear(rows[start:stop], w) for (start, stop), w in zip(groups, weights.unbind(), strict=True)]
    return torch.cat(parts)


def adapt(model: Any, targets: Iterable[Target], moe: MoELayout, recipe: HealingRecipe) -> None:
    """Freeze a model and put an adapter on every target, in place."""
    model.requires_grad_(False)
    stacked = {name.rpartition(".")[2]: projections for name, projections in moe.architecture.fused.items()}
    for target in targets:
        parent, _, name = target.module.rpartition(".")
        frozen = model.get_submodule(target.module)
        if target.group == "experts":
            adapted: nn.Module = AdaptedExperts(frozen, target, stacked, recipe)
        elif target.group == "router":
            adapted = AdaptedRouter(frozen, target, recipe)
        else:
            adapted = AdaptedLinear(frozen, target, recipe)
        setattr(model.get_submodule(parent), name, adapted)


def check_trainable(model: Any, targets: Iterable[Target], recipe: HealingRecipe) -> int:
    """Exactly what was asked for trains: the same parameters, by name and shape. Returns how many numbers that are.

    Raises HealingError with the difference.
    """
    asked = {}
    for target in targets:
        for name, (stack, rows, columns) in target.weights.items():
            asked[f"{target.module}.factors.{name}.a"] = (stack, recipe.rank, columns)
            asked[f"{target.module}.factors.{name}.b"] = (stack, rows, recipe.rank)
    found = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    missing, extra = asked.items() - found.items(), found.items() - asked.items()
    if missing or extra:
        raise HealingError(
            f"What would train is not what was asked for: {len(missing)} adapters are missing ({_first(missing)}), "
            f"{len(extra)} are too many ({_first(extra)}). This is a fault of moeits or of this transformers version."
        )
    return sum(int(np.prod(shape)) for shape in found.values())


def check_same_weights(model: Any, targets: Iterable[Target], checkpoint: Checkpoint, moe: MoELayout) -> None:
    """The weights in memory are those of the checkpoint: what is trained on a weight must be merged into that weight.

    Compares the first row of every target (of experts: of the last one's down projection). Raises HealingError.
    """
    known = dict(model.named_modules())
    for target in targets:
        if target.module not in known:
            raise HealingError(
                f"The stock model has no {target.module} to adapt. In the description of the family, the name that the "
                "block has in memory comes last among blocks."
            )
        module = known[target.module]
        if target.tensor is None:
            assert target.layer is not None
            last, stacked = target.weights["down"][0] - 1, [*moe.architecture.fused][-1].rpartition(".")[2]
            held = getattr(module, stacked)[last, 0]
            stored = moe.read(checkpoint, target.layer, last, "down")[0]
        else:
            held = module.weight[0]
            stored = checkpoint.read(target.tensor, (0,))
        expected = torch.from_numpy(stored.astype(np.float32)).to(held.device, held.dtype)
        if not torch.equal(held, expected):
            raise HealingError(
                f"transformers loads {target.module} as something else than the checkpoint's tensor, so its training "
                "could not be merged back. Leave its group out of --targets."
            )


def factors_of(model: Any, targets: Iterable[Target]) -> dict[str, np.ndarray]:
    """What was trained: `module.factors.weight.a` and `.b` -> float32 array."""
    names = {
        f"{target.module}.factors.{weight}.{side}" for target in targets for weight in target.weights for side in "ab"
    }
    return {name: p.detach().cpu().numpy() for name, p in model.named_parameters() if name in names}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _first(found: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    return next((f"{name} {list(shape)}" for name, shape in sorted(found)), "none")
