"""What healing minimises: the loss of the next token, or the distance to a teacher; and the balance of the routers.

This module imports torch; nothing imports it before a model is healed.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.nn import functional

from moeits.experts.layout import MoELayout
from moeits.healing.batches import UNTRAINED
from moeits.healing.recipe import HealingRecipe
from moeits.healing.targets import router_in_memory

Batch = dict[str, torch.Tensor]


class Objective(Protocol):
    """Sum of a loss over the trained tokens of a batch, given the logits of the model, (sequences, length, vocab)."""

    def __call__(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor: ...


def next_token_loss(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each trained token, summed, in nats."""
    labels = batch["labels"][:, 1:]
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=UNTRAINED, reduction="sum"
    )


class Distillation:
    """T^2 KL(teacher || student) of the next-token distributions at temperature T, summed over the trained tokens.

    The teacher is the unpruned model, whole and frozen; it sees the same tokens without noise or dropout.
    """

    def __init__(self, teacher: Any, temperature: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature

    def __call__(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        trained = batch["labels"][:, 1:] != UNTRAINED
        with torch.no_grad():
            taught = self.teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        wanted = functional.log_softmax(taught[:, :-1][trained].float() / self.temperature, -1)
        found = functional.log_softmax(logits[:, :-1][trained].float() / self.temperature, -1)
        return self.temperature**2 * functional.kl_div(found, wanted, reduction="sum", log_target=True)


class RouterBalance:
    """The load-balancing term of one forward pass: the mean over layers of n sum_i f_i P_i (Fedus et al. 2021, eq. 4).

    n is the layer's own number of experts, f_i the share of its choices that fall on expert i, P_i the mean probability
    of expert i; 1 where the load is even. Where affinities are sigmoids, probabilities are these divided by their sum
    over the experts (DeepSeek-V3, arXiv 2412.19437, eqs. 17-20); of roots of softplus likewise. transformers' own term
    pools all layers by expert number, which means nothing where layers keep different experts. Padding does not count.
    """

    def __init__(self, routers: Iterable[tuple[torch.nn.Module, int]], affinity: str = "softmax") -> None:
        """`routers`: the stock router of each layer, and its number of experts; `affinity` is that of the family."""
        self._affinity = affinity
        self._outputs: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        for router, count in routers:
            router.register_forward_hook(self._recorder(count))

    def start(self) -> None:
        """Forget the last forward pass."""
        self._outputs.clear()

    def __call__(self, batch: Batch) -> torch.Tensor:
        real = batch["attention_mask"].flatten().bool()
        terms = []
        for logits, chosen, count in self._outputs:
            # Where layers differ, recorded logits are padded to a common width.
            probability = self._probabilities(logits[real, :count].float()).mean(0)
            share = torch.bincount(chosen[real].flatten(), minlength=count) / (real.sum() * chosen.shape[-1])
            terms.append(count * (share * probability).sum())
        return torch.stack(terms).mean()

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        if self._affinity == "softmax":
            return logits.softmax(-1)
        affinities = logits.sigmoid() if self._affinity == "sigmoid" else torch.nn.functional.softplus(logits).sqrt()
        return affinities / affinities.sum(-1, keepdim=True)

    def _recorder(self, count: int) -> Callable[..., None]:
        def record(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG001
            logits, chosen = output[0], output[-1]
            self._outputs.append((logits, chosen, count))

        return record


def objective_of(recipe: HealingRecipe, teacher: Any) -> Objective:
    """The objective that a recipe names."""
    return Distillation(teacher, recipe.temperature) if recipe.objective == "distillation" else next_token_loss


def balance_of(model: Any, moe: MoELayout, recipe: HealingRecipe) -> RouterBalance | None:
    """The balance term of an adapted model, if the recipe wants one."""
    if not recipe.balance:
        return None
    routers = []
    for layer in moe.layers.values():
        routers.append((choosing_module(model, router_in_memory(moe.architecture, layer.index)), layer.num_experts))
    return RouterBalance(routers, moe.architecture.affinity)


def choosing_module(model: Any, router: str) -> torch.nn.Module:
    """What gives (logits, gates, chosen): the stock module of a router's weight, or what holds it where that is a plain
    linear layer."""
    module = model.get_submodule(router)
    stock = getattr(module, "frozen", module)
    return model.get_submodule(router.rpartition(".")[0]) if type(stock) is torch.nn.Linear else stock


@torch.no_grad()
def held_out_loss(model: Any, batches: Iterable[Batch]) -> tuple[float, int]:
    """(sum of the loss of the trained tokens in nats, their number), the model being in evaluation mode meanwhile."""
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        total += float(next_token_loss(batch, logits))
        tokens += int((batch["labels"][:, 1:] != UNTRAINED).sum())
    model.train(training)
    return total, tokens
