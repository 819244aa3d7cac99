"""Token signals against a slow transcription with forward hooks on the whole model, and the elimination against all
subsets."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.routing import Router, backward_elimination
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.progress import silent
from tests.evaluation_toys import give_tokenizer
from tests.interrupted import assert_calibration_goes_on
from tests.toys import make_toy

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "olmoe", "glm4_moe", "gpt_oss")
# Biases and names of their own, which others do not have.
ODD = ("granitemoe", "ernie4_5_moe", "lfm2_moe", "minimax_m2")
SMALL: dict[str, Any] = {"tokens": 512, "window": 32, "held_out": 256}


def toy(folder: Path, family: str) -> Path:
    make_toy(folder, family, dtype="float32")
    give_tokenizer(folder)
    return folder


def one_by_one(folder: Path, tokens: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """Signals by plain loops over tokens, from what hooks see of the whole model."""
    model = moeits.load(folder, dtype=torch.float32).eval()
    seen: dict[int, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith(".experts") and hasattr(module, "down_proj"):
            layer = int(name.split(".layers.")[1].split(".")[0])

            def hook(module: Any, args: Any, kwargs: Any, out: Any, layer: int = layer) -> None:  # noqa: ARG001
                seen.setdefault(layer, [module]).append((*args, *kwargs.values()))

            module.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for window in torch.from_numpy(tokens):
            model(input_ids=window[None], use_cache=False)
        return {layer: _sums(module, calls) for layer, (module, *calls) in seen.items()}


def _sums(module: Any, calls: list[Any]) -> dict[str, np.ndarray]:
    count, gates, norms, gated, shares = (np.zeros(module.num_experts) for _ in range(5))
    outputs: list[Any] = [0.0] * module.num_experts
    for hidden, chosen, weights in calls:
        for x, experts, own in zip(hidden.reshape(-1, hidden.shape[-1]), chosen, weights, strict=True):
            for e, gate in zip(experts.tolist(), own.tolist(), strict=True):
                # The stock class itself, asked for one token and one expert with a gate of 1.
                out = module(x[None], torch.tensor([[e]]), torch.ones(1, 1))[0]
                shares[e] += gate / own.sum().item()
                norm, outputs[e] = out.norm().item(), outputs[e] + out.double().numpy()
                count[e], gates[e], norms[e], gated[e] = (
                    count[e] + 1,
                    gates[e] + gate,
                    norms[e] + norm,
                    gated[e] + gate * norm,
                )
    reached = np.maximum(count, 1)
    return {
        "frequency": count / count.sum(),
        "router-score": gates,
        "dern": shares,
        "mean-output": np.stack(np.broadcast_arrays(*outputs)) / reached[:, None],
        "ean-sum": norms,
        "ean-mean": norms / reached,
        "reap": gated / reached,
    }


@pytest.mark.parametrize("family", [*FAMILIES, *ODD])
def test_signals_equal_a_slow_transcription_on_the_whole_model(family: str, tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", family)
    written = tmp_path / "signals.safetensors"
    moeits.calibrate(folder, device="cpu", selection=64, mean_outputs=True, output=written, **SMALL)
    found = Evidence.load(written)
    tokens = windows_of(Checkpoint.open(folder), Tokens(**SMALL), silent).watched
    for layer, signals in one_by_one(folder, tokens).items():
        for name, values in signals.items():
            np.testing.assert_allclose(found.signals[name][layer], values, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", ["afmoe", "gemma4_text", "hunyuan_v1_moe", "inkling_text"])
def test_a_router_that_cannot_be_asked_again_is_watched_all_the_same(family: str, tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", family)
    with pytest.raises(CalibrationError, match=r"without reconstruction \(--selection 0\), and choose by .* reap\.$"):
        moeits.calibrate(folder, device="cpu", **SMALL)
    found = moeits.calibrate(folder, device="cpu", selection=0, mean_outputs=True, **SMALL)
    assert "reconstruction" not in found.signals
    tokens = windows_of(Checkpoint.open(folder), Tokens(**SMALL), silent).watched
    for layer, signals in one_by_one(folder, tokens).items():
        for name, values in signals.items():
            np.testing.assert_allclose(found.signals[name][layer], values, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_simplify_asks_a_router_again_only_for_the_criterion_that_needs_it(tmp_path: Path) -> None:
    folder, asked = toy(tmp_path / "toy", "hunyuan_v1_moe"), {"experts_per_layer": 4, "tokens": 256}
    with pytest.raises(CalibrationError, match="--selection 0"):
        moeits.simplify(folder, criterion="reconstruction", output=tmp_path / "other", **asked)
    plan = moeits.simplify(folder, criterion="reap", output=tmp_path / "out", **asked)
    assert {*plan.counts.values()} == {4}


def test_signals_do_not_depend_on_whether_reconstruction_is_among_them(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", "mixtral")
    whole, without = (moeits.calibrate(folder, device="cpu", selection=few, **SMALL).signals for few in (64, 0))
    again = {"reconstruction", "reconstruction-error", "drop-error", "naee", "naee-error"}
    assert whole.keys() - without.keys() == again
    assert all(np.array_equal(without[name][layer], whole[name][layer]) for name in without for layer in without[name])


def test_experts_that_get_tokens_weighted_before_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", "llama4_text")
    with pytest.raises(CalibrationError, match="weights tokens before the experts"):
        moeits.calibrate(folder, device="cpu", **SMALL)


def test_the_same_numbers_with_activations_on_disk_and_after_an_interruption(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", "qwen2_moe")
    assert_calibration_goes_on(folder, tmp_path, device="cpu", mean_outputs=True, **SMALL)


CALIBRATED = ("reap", "ean-mean", "ean-sum", "frequency", "router-score", "reconstruction")


def test_plans_follow_the_signals_to_any_budget(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", "mixtral")
    moeits.calibrate(folder, output=tmp_path / "signals.safetensors", device="cpu", **SMALL)
    evidence = Evidence.load(tmp_path / "signals.safetensors")
    for criterion in CALIBRATED:
        plan = moeits.plan(evidence, criterion=criterion, experts_per_layer=4)
        for layer, kept in plan.kept.items():
            values = evidence.signals[criterion][layer]
            assert set(kept) == set(np.argsort(values, kind="stable")[-4:].tolist())
        assert moeits.plan(evidence, criterion=criterion, reduction=0.4).summary["reduction"] >= 0.4


def test_a_criterion_without_its_signals_says_how_to_get_them(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", "mixtral")
    with pytest.raises(EvidenceError, match="moeits calibrate MODEL"):
        moeits.plan(moeits.score(folder), criterion="reap", experts_per_layer=4)
    with pytest.raises(SettingError, match="--selection 3 is out of range"):
        moeits.calibrate(folder, selection=3)


# ---------------------------------------------------------------------------------------------- backward elimination


class Stock(torch.nn.Module):
    """A router in the form of the stock ones."""

    def __init__(self, weight: torch.Tensor, *, top_k: int, renormalise: bool) -> None:
        super().__init__()
        self.weight, self.top_k, self.renormalise = torch.nn.Parameter(weight), top_k, renormalise
        self.hidden_dim, self.num_experts = weight.shape[1], weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = hidden.view(-1, self.hidden_dim) @ self.weight.T
        gates, chosen = logits.softmax(-1).topk(self.top_k)
        return logits, gates / gates.sum(-1, keepdim=True) if self.renormalise else gates, chosen


@pytest.mark.parametrize("renormalise", [False, True])
def test_errors_are_those_of_the_layer_and_a_single_removal_is_the_best(renormalise: bool) -> None:
    g = torch.Generator().manual_seed(0)
    experts, hidden, tokens = 5, 6, 80
    stock = Stock(torch.randn(experts, hidden, generator=g), top_k=2, renormalise=renormalise)
    x, outputs = torch.randn(tokens, hidden, generator=g), torch.randn(tokens, experts, 4, generator=g)

    def given(kept: tuple[int, ...]) -> torch.Tensor:
        """The layer's output with the other logits at minus infinity."""
        logits = torch.full((tokens, experts), -torch.inf)
        logits[:, list(kept)] = (x @ stock.weight.T)[:, list(kept)]
        gates, chosen = logits.softmax(-1).topk(min(2, len(kept)))
        gates = gates / gates.sum(-1, keepdim=True) if renormalise else gates
        return (gates[..., None] * outputs[torch.arange(tokens)[:, None], chosen]).sum(1)

    def error(kept: tuple[int, ...]) -> float:
        return float((given(kept) - given(tuple(range(experts)))).square().sum())

    with torch.no_grad():
        router = Router(stock, stock(x)[0])
        removed, errors = backward_elimination(outputs @ outputs.transpose(1, 2), router)
        whole = float(given(tuple(range(experts))).square().sum())
        kept = tuple(range(experts))
        for goes, found in zip(removed, errors, strict=True):
            smaller = [tuple(e for e in kept if e != out) for out in kept]
            kept = tuple(e for e in kept if e != goes)
            assert found == pytest.approx(error(kept) / whole, rel=1e-4)
            assert error(kept) == pytest.approx(min(map(error, smaller)), rel=1e-4)
        best = min(error(subset) for subset in combinations(range(experts), 3))
        after_two = tuple(e for e in range(experts) if e not in removed[:2])
        assert best <= error(after_two) <= 1.5 * best


def test_an_expert_that_is_never_chosen_goes_first_and_costs_nothing() -> None:
    outputs = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(1))
    weight = torch.eye(4)
    weight[2] = 0
    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(2)) + 1
    stock = Stock(weight, top_k=2, renormalise=True)
    with torch.no_grad():
        removed, errors = backward_elimination(outputs @ outputs.transpose(1, 2), Router(stock, stock(x)[0]))
    assert removed[0] == 2
    assert errors[0] == pytest.approx(0, abs=1e-12)
