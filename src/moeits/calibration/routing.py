"""What the routed experts of one layer do at some tokens, and who can go with the least harm to what they give."""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch

from moeits.calibration.layered import LiveLayer, Watched
from moeits.edits.quantize import rounded
from moeits.errors import CalibrationError
from moeits.refitting.features import before_down, down_of
from moeits.signals import MOST_ENUMERATED
from moeits.signals.watched import INPUT_NORMS, MEAN_OUTPUT, ROUNDING_BITS, rounding_error
from moeits.weighing import SUMS, own_sums, signals_of


class Sums:
    """The token signals of one layer, taken in batch by batch, with sums of each source; float64."""

    def __init__(
        self,
        experts: int,
        sources: int = 1,
        *,
        mean_outputs: bool = False,
        input_norms: bool = False,
        rounding_errors: bool = False,
    ) -> None:
        self.own = {name: torch.zeros(sources, experts, dtype=torch.float64) for name in SUMS}
        self.largest = torch.zeros(experts, dtype=torch.float64)
        self.outputs = [torch.zeros(1, dtype=torch.float64)] * experts if mean_outputs else None
        self.squares = [[torch.zeros(1, dtype=torch.float64)] * experts for _ in INPUT_NORMS if input_norms]
        self.shares = torch.zeros(experts, dtype=torch.float64)
        self.errors = torch.zeros(len(ROUNDING_BITS) if rounding_errors else 0, experts, dtype=torch.float64)
        self.together = torch.zeros(experts, experts, dtype=torch.float64)

    def take(self, layer: LiveLayer, seen: Watched, by: torch.Tensor | None = None) -> None:
        """Take in what one `run` of the layer showed; `by` (tokens,) are the numbers of the tokens' sources."""
        experts = len(self.largest)
        by = torch.zeros(len(seen.chosen), dtype=torch.long) if by is None else by
        routed = torch.zeros(len(seen.chosen), experts, dtype=torch.float64)
        routed.scatter_(1, seen.chosen.cpu(), 1.0)
        self.together += routed.T @ routed
        self.own["count"].index_add_(0, by, routed)
        gates = seen.gates.double().cpu()
        sums = gates.sum(1, keepdim=True)
        shares = gates / torch.where(sums == 0, 1.0, sums)
        self.shares.index_add_(0, seen.chosen.cpu().flatten(), shares.flatten())
        for e in range(experts):
            tokens, slot = torch.where(seen.chosen == e)
            if len(tokens):
                out = output_of(layer.experts, e, seen.hidden[tokens])
                norm, gate = out.norm(dim=1).double().cpu(), seen.gates[tokens, slot].double().cpu()
                for name, values in (("gates", gate), ("norms", norm), ("gated", gate * norm)):
                    self.own[name][:, e].index_add_(0, by[tokens.cpu()], values)
                if self.outputs is not None:
                    self.outputs[e] = self.outputs[e] + out.sum(0, dtype=torch.float64).cpu()
                if self.squares:
                    self._take_inputs(layer.experts, e, seen.hidden[tokens], gate)
                for row, bits in zip(self.errors, ROUNDING_BITS, strict=False):
                    row[e] += _rounded_error(layer.experts, e, bits, seen.hidden[tokens], out, gate)
                self.largest[e] = torch.maximum(self.largest[e], out.abs().max().double().cpu())

    def _take_inputs(self, experts: Any, expert: int, hidden: torch.Tensor, gate: torch.Tensor) -> None:
        """Sums of the squares of what the weights of an expert are multiplied with, without and with its gates."""
        inputs = [each.double().cpu() for each in (hidden, before_down(experts, expert, hidden))]
        for own, given in zip(self.squares, (*inputs, *(each * gate[:, None] for each in inputs)), strict=True):
            own[expert] = own[expert] + given.square().sum(0)

    def signals(self) -> dict[str, Any]:
        """Name -> (E,) or (E, E), and of each of VECTORS that was asked for (E, H) or (E, I)."""
        sums = {name: values.numpy() for name, values in self.own.items()}
        signals = {
            **signals_of(sums),
            "dern": self.shares.numpy(),
            "largest-activation": self.largest.numpy(),
            "coactivation": self.together.fill_diagonal_(0).numpy(),
            **own_sums(sums),
        }
        if self.outputs is not None:
            count = self.own["count"].sum(0).clamp(min=1)[:, None]
            signals[MEAN_OUTPUT] = (torch.stack(torch.broadcast_tensors(*self.outputs)) / count).numpy()
        for name, squares in zip(INPUT_NORMS, self.squares, strict=False):
            signals[name] = torch.stack(torch.broadcast_tensors(*squares)).sqrt().numpy()
        for row, bits in zip(self.errors, ROUNDING_BITS, strict=False):
            signals[rounding_error(bits)] = row.sqrt().numpy()
        return signals


def _rounded_error(
    experts: Any, expert: int, bits: int, hidden: torch.Tensor, out: torch.Tensor, gate: torch.Tensor
) -> float:
    """The squared change of what an expert gives at some tokens, times its gates, if its weights were rounded."""
    few = copy(experts)
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, name)[expert]
        rows = weight.T if experts.is_transposed else weight
        made = torch.from_numpy(rounded(rows.float().cpu().numpy(), bits)).to(weight)
        few.__dict__[name] = {expert: made.T if experts.is_transposed else made}
    few._parameters = {name: own for name, own in experts._parameters.items() if name not in few.__dict__}
    change = (output_of(few, expert, hidden) - out).double().cpu() * gate[:, None]
    return float(change.square().sum())


def output_of(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """(t, H): the output of one expert, not weighted."""
    out = before_down(experts, expert, hidden) @ down_of(experts, expert)
    return out + experts.down_proj_bias[expert] if experts.has_bias else out


class Router:
    """A stock router that can be asked again with experts gone, from its logits alone.

    Its own `forward` is run with a weight of ones and zeros, which picks the kept experts' logits. So softmax or
    sigmoid, biases of selection and renormalisation are the stock class's. Groups do not limit the choice here: with
    experts gone one by one they are not of equal size.
    """

    def __init__(self, router: Any, logits: torch.Tensor, beside: Sequence[Any] = ()) -> None:
        self._logits, self._beside = logits, beside
        self._stock = deepcopy(router)
        for name in ("num_group", "n_group", "topk_group"):
            if getattr(self._stock, name, None):
                setattr(self._stock, name, 1)
        self._top_k = self._stock.top_k
        self._stock.hidden_dim = logits.shape[1]
        if getattr(self._stock, "bias", None) is not None:
            self._stock.bias = None  # it is in the logits
        named = [*self._stock.named_parameters(), *self._stock.named_buffers()]
        self._biases = {name: bias.detach().clone() for name, bias in named if name != "weight"}

    def given(self, logits: torch.Tensor, beside: Sequence[Any] = ()) -> "Router":
        """The same router, of other tokens."""
        other = copy(self)
        other._logits, other._beside = logits, beside
        return other

    def weights(self, kept: Sequence[int]) -> torch.Tensor:
        """(T, E): the gates with these experts left, 0 for those not chosen."""
        gates, chosen = self.chosen(kept)
        return torch.zeros_like(self._logits).scatter_(1, chosen, gates.float())

    def chosen(self, kept: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, k) both: the gates with these experts left, and whom they are of."""
        where = self._logits.device
        ids = torch.tensor(kept, device=where)
        self._stock.num_experts, self._stock.top_k = len(kept), min(self._top_k, len(kept))
        self._stock.weight = torch.nn.Parameter(
            torch.eye(self._logits.shape[1], device=where)[ids], requires_grad=False
        )
        for name, values in self._biases.items():
            module, _, own = name.rpartition(".")
            holder = self._stock.get_submodule(module)
            some = values[..., ids]
            setattr(holder, own, torch.nn.Parameter(some, requires_grad=False) if own in holder._parameters else some)
        beside = (given[..., ids] if isinstance(given, torch.Tensor) else given for given in self._beside)
        _, gates, chosen = self._stock(self._logits, *beside)
        return gates, ids[chosen]


def backward_elimination(gram: torch.Tensor, router: Router, *, least: int = 1) -> tuple[list[int], list[float]]:
    """Experts in the order in which they go, all but the last, and the error after each, as a share of the output.

    `gram` (T, E, E) holds the products of the experts' outputs at each token, so that what a subset S gives differs
    from what all give by sum_t d_t' G_t d_t, d_t = w^S(x_t) - w(x_t). Each step takes whoever raises that least.
    Routers that need `least` experts are not asked about fewer: the last ones follow by the sum of their gates.
    """
    alive, removed, errors = list(range(gram.shape[1])), [], []
    full = router.weights(alive)
    whole = float(_form(gram, full)) or 1.0
    while len(alive) > least:
        tried = [(float(_form(gram, router.weights([e for e in alive if e != out]) - full)), out) for out in alive]
        error, goes = min(tried)
        alive.remove(goes)
        removed.append(goes)
        errors.append(error / whole)
    last = sorted(alive, key=lambda e: float(full[:, e].sum()))[:-1]
    return removed + last, errors + [1.0] * len(last)


def drop_errors(gram: torch.Tensor, router: Router, *, least: int = 1) -> list[float]:
    """Of each expert the error if it alone were gone, the norm of the change as a share of that of the output.

    The importance of MoE-I2 (arXiv 2411.01016). A layer none of whose experts can go has errors of 1.
    """
    everyone = range(gram.shape[1])
    if len(everyone) <= max(least, 1):
        return [1.0] * len(everyone)
    full = router.weights(everyone)
    whole = float(_form(gram, full)) or 1.0
    errors = (float(_form(gram, router.weights([e for e in everyone if e != out]) - full)) for out in everyone)
    return [(max(error, 0.0) / whole) ** 0.5 for error in errors]


def best_subsets(gram: torch.Tensor, router: Router, *, least: int = 1) -> tuple[np.ndarray, list[float]]:
    """Of every count of experts the subset of least error, found by trying all (NAEE, arXiv 2402.14800).

    (E, E), 1 for the members of the subset of n + 1 experts in row n; and the errors, as a share of the output. On ties
    the subset whose missing experts come first is taken. Routers that need `least` experts are not asked about fewer:
    these are the members of the smallest subset with the largest gates.
    """
    everyone = range(gram.shape[1])
    full = router.weights(everyone)
    whole = float(_form(gram, full)) or 1.0
    members, errors = np.zeros((len(everyone), len(everyone))), [1.0] * len(everyone)
    for count in range(len(everyone), least - 1, -1):
        tried = {
            missing: float(_form(gram, router.weights([e for e in everyone if e not in missing]) - full))
            for missing in combinations(everyone, len(everyone) - count)
        }
        missing = min(tried, key=tried.__getitem__)
        members[count - 1, [e for e in everyone if e not in missing]] = 1
        errors[count - 1] = tried[missing] / whole
    smallest = sorted(np.flatnonzero(members[least - 1]), key=lambda e: -float(full[:, e].sum()))
    for count in range(1, least):
        members[count - 1, smallest[:count]] = 1
    return members, errors


def _form(gram: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return ((d[:, None] @ gram)[:, 0] * d).sum(dtype=torch.float64)


_WITHOUT = "Calibrate without reconstruction (--selection 0), and choose by another criterion, such as reap."


@dataclass(frozen=True)
class Tried:
    """A layer on some tokens, on which any of its experts can be left out."""

    gram: torch.Tensor
    """(T, E, E): the products of the experts' outputs at each token."""
    router: Router
    logits: torch.Tensor
    """(T, E): of the router, with all experts there."""
    hidden: torch.Tensor
    """(T, H): what goes into the experts."""
    least: int
    """The fewest experts that the router can be asked about."""

    @property
    def experts(self) -> int:
        return self.gram.shape[1]

    @cached_property
    def whole(self) -> torch.Tensor:
        """(T, E): the gates with everyone there."""
        return self.router.weights(range(self.experts))

    def error(self, kept: Sequence[int]) -> float:
        """The squared change of what the layer gives if only these experts stay."""
        return float(_form(self.gram, self.router.weights(kept) - self.whole))


def tried_on(layer: LiveLayer, seen: Watched) -> Tried:
    """The layer on the tokens of one `run`. Raises CalibrationError for a router that is not understood."""
    experts = layer.experts.down_proj.shape[0]
    try:
        logits = layer.router(seen.hidden, *seen.beside)[0].float().reshape(-1, experts)
        router = Router(layer.router, logits, seen.beside)
        again = router.weights(range(experts))
    except (AttributeError, IndexError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise CalibrationError(
            f"The router {type(layer.block).__name__} cannot be asked again with experts gone ({error}). {_WITHOUT}"
        ) from None
    limited = getattr(layer.router, "num_group", None) or 1
    own = torch.zeros_like(again).scatter_(1, seen.chosen, seen.gates.float())
    if limited == 1 and not torch.allclose(again, own, atol=1e-4, rtol=1e-3):
        raise CalibrationError(f"The router {type(layer.block).__name__} does not choose by its logits. {_WITHOUT}")
    gram = torch.cat([_gram(layer.experts, part) for part in seen.hidden.split(512)])
    least = layer.moe.least_per_group if layer.moe else 1
    return Tried(gram, router, logits, seen.hidden, least)


def reconstruction(tried: Tried) -> dict[str, Any]:
    """Signals of the elimination: the step at which each expert goes, and the error then.

    Errors are the largest so far, so that a later step is never the cheaper one.
    """
    gram, router, experts, least = tried.gram, tried.router, tried.experts, tried.least
    removed, errors = backward_elimination(gram, router, least=least)
    alone = drop_errors(gram, router, least=least)
    step, levels = torch.full((experts,), float(experts - 1)), torch.full((experts,), 1.0)
    most = 0.0
    for number, (expert, value) in enumerate(zip(removed, errors, strict=True)):
        most = max(most, value)
        step[expert], levels[expert] = number, most
    last = next(e for e in range(experts) if e not in removed)
    levels[last] = max(most, 1.0)
    signals = {
        "reconstruction": step.double().numpy(),
        "reconstruction-error": levels.double().numpy(),
        "drop-error": np.array(alone),
    }
    if experts <= MOST_ENUMERATED:
        members, of_subsets = best_subsets(gram, router, least=least)
        signals |= {"naee": members, "naee-error": np.array(of_subsets)}
    return signals


def _gram(experts: Any, hidden: torch.Tensor) -> torch.Tensor:
    outputs = torch.stack([output_of(experts, e, hidden) for e in range(experts.down_proj.shape[0])], 1)
    return outputs @ outputs.transpose(1, 2)
