"""The refit: its algebra against joint normal equations, and what it does to checkpoints."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import moeits
from moeits.calibration.activations import Activations
from moeits.calibration.cutting import cut_each
from moeits.calibration.settings import Tokens
from moeits.calibration.shares import share_out
from moeits.calibration.texts import Windows, _tokenizer, windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.console.refitting import show_verdict
from moeits.errors import CalibrationError, MoeitsError, PlanError, SettingError
from moeits.progress import silent
from moeits.refitting.by_tokens import ByTokens
from moeits.refitting.features import ExpertFeatures, Routed, before_down, down_of
from moeits.refitting.judgement import judged
from moeits.refitting.layer import LayerData, LayerFit, _search, refit_layer
from moeits.refitting.ridge import LayerProblem, grid, predicted
from moeits.refitting.shared import SharedExpert
from moeits.refitting.solvers import solver_for
from moeits.refitting.symmetric import RidgeTooSmall, Symmetric
from tests.evaluation_toys import CHARACTERS, write_jsonl
from tests.toys import assert_same_model, make_toy
from tests.trial_toys import make_pruned_toy

EXPERTS, WIDTH, HIDDEN, TOKENS = 4, 6, 10, 300


def stock_experts(seed: int = 0, *, transposed: bool = False, bias: bool = False) -> SimpleNamespace:
    """What the regression needs of a stock class of experts."""
    g = torch.Generator().manual_seed(seed)
    up, down = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=g), torch.randn(EXPERTS, HIDDEN, WIDTH, generator=g)
    if transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    return SimpleNamespace(
        gate_up_proj=up,
        down_proj=down,
        gate_up_proj_bias=torch.randn(EXPERTS, 2 * WIDTH, generator=g),
        down_proj_bias=torch.randn(EXPERTS, HIDDEN, generator=g),
        is_transposed=transposed,
        has_bias=bias,
        _apply_gate=lambda wide: torch.nn.functional.silu(wide[:, :WIDTH]) * wide[:, WIDTH:],
    )


def routed(seed: int = 1, tokens: int = TOKENS) -> Routed:
    g = torch.Generator().manual_seed(seed)
    return Routed(
        hidden=torch.randn(tokens, HIDDEN, generator=g),
        chosen=torch.stack([torch.randperm(EXPERTS, generator=g)[:2] for _ in range(tokens)]),
        gates=torch.rand(tokens, 2, generator=g),
        weight=torch.rand(tokens, generator=g) + 0.5,
    )


class Made:
    """A problem, what solves it, and tokens that only look on."""

    def __init__(self, solver: str, *, targets: tuple[float, ...] = (1, 2), **kinds: bool) -> None:
        most_at_once, tokens = SOLVERS[solver]
        self.experts, self.seen = stock_experts(**kinds), routed(tokens=tokens)
        self.room = Activations(most_bytes=1 << 20, beside=Path("nowhere"))
        self.features = ExpertFeatures(self.experts, self.seen, self.room)
        self.others = ExpertFeatures(self.experts, routed(seed=7, tokens=ONLOOKERS[solver]), self.room)
        self.start = {e: down_of(self.experts, e) for e in range(EXPERTS)}
        self.target = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2))
        wanted = tuple(times * self.target for times in targets)
        self.problem = LayerProblem(self.features, self.start, wanted, self.room)
        self.solver = solver_for(self.problem, self.others, self.room, most_at_once=most_at_once)
        assert type(self.solver).__name__ == solver

    def solve(self, ridge: float, share: float = 0.0) -> dict[int, torch.Tensor]:
        """The weights (I, H) of a ridge and a share of the second target."""
        _, converged = self.solver.solve(ridge * self.problem.mean_diagonal)
        assert converged
        self.solver.keep(share)
        return dict(self.solver.weights())

    def objective(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """phi (T, E I), what is wanted (T, H), the old weights (E I, H), lambda of a ridge of 1: in float64."""
        phi = torch.zeros(len(self.target), EXPERTS * WIDTH, dtype=torch.float64)
        wanted = self.target.double() * self.seen.weight.double().sqrt()[:, None]
        for e in range(EXPERTS):
            rows, scale = self.seen.of(e)
            own = before_down(self.experts, e, self.seen.hidden[rows]) * scale[:, None]
            phi[rows, e * WIDTH : (e + 1) * WIDTH] = own.double()
            if self.experts.has_bias:
                wanted.index_add_(0, rows, -(scale[:, None] * self.experts.down_proj_bias[e]).double())
        old = torch.cat([self.start[e] for e in range(EXPERTS)]).double()
        return phi, wanted, old, float((phi.T @ phi).diagonal().mean())


# Name -> up to how many features all are solved at once, tokens.
SOLVERS = {"Blocks": (0, TOKENS), "ByTokens": (0, 9), "AtOnce": (1000, TOKENS)}
# So that the products of tokens are solved from either side.
ONLOOKERS = {"Blocks": 50, "ByTokens": 8, "AtOnce": 50}


@pytest.mark.parametrize("kinds", [{}, {"transposed": True, "bias": True}], ids=["plain", "transposed with bias"])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_what_the_joint_normal_equations_say(
    solver: str, ridge: float, kinds: dict[str, bool]
) -> None:
    made = Made(solver, **kinds)
    made.solve(3.0)
    found = made.solve(ridge)
    phi, wanted, old, unit = made.objective()
    gram, strength = phi.T @ phi, ridge * unit
    joint = torch.linalg.solve(gram + strength * torch.eye(len(gram)), phi.T @ wanted + strength * old)
    torch.testing.assert_close(torch.cat([*found.values()]).double(), joint, rtol=0, atol=1e-3)


@pytest.mark.parametrize("onlookers", [8, 200])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_others_get_of_the_solution_is_what_its_weights_give_them(
    solver: str, onlookers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tokens it is known before there are any weights."""
    monkeypatch.setitem(ONLOOKERS, solver, onlookers)
    made = Made(solver)
    for share, columns in ((0.0, slice(0, HIDDEN)), (1.0, slice(HIDDEN, None))):
        weights = made.solve(0.1, share)
        given = predicted(made.others, weights, torch.zeros(onlookers, HIDDEN))
        predicted(made.others, made.start, given, sign=-1)
        torch.testing.assert_close(made.solver.moved[:, columns], given, rtol=0, atol=2e-3)


@pytest.mark.parametrize("ridge", [10.0, 0.001])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_fitted_weights_are_a_stationary_point(solver: str, ridge: float) -> None:
    made = Made(solver)
    phi, wanted, old, unit = made.objective()

    def gradient(weights: torch.Tensor) -> float:
        return float((phi.T @ (wanted - phi @ weights) - ridge * unit * (weights - old)).norm())

    found = torch.cat([*made.solve(ridge).values()]).double()
    assert gradient(found) < 1e-4 * gradient(old)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_is_linear_in_the_targets(solver: str) -> None:
    mixed = Made(solver).solve(0.1, 0.25)
    for e, weight in Made(solver, targets=(1.25,)).solve(0.1).items():
        torch.testing.assert_close(mixed[e], weight, rtol=0, atol=1e-3)


def test_what_the_experts_can_give_exactly_is_found_to_rounding() -> None:
    made = Made("Blocks")
    truth = {e: torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(e)) for e in range(EXPERTS)}
    wanted = predicted(made.features, truth, torch.zeros(TOKENS, HIDDEN))
    made.target.copy_(wanted / made.seen.weight.sqrt()[:, None])
    exact = LayerProblem(made.features, made.start, (made.target,), made.room)
    solver = solver_for(exact, made.others, made.room, most_at_once=0)
    solver.solve(1e-6 * exact.mean_diagonal)
    solver.keep(0.0)
    left = predicted(made.features, dict(solver.weights()), wanted.clone(), sign=-1)
    assert left.square().sum() / wanted.square().sum() < 1e-8


@pytest.mark.parametrize("size", [5, 1100])
def test_a_factor_shares_its_square_with_its_matrix(size: int, tmp_path: Path) -> None:
    """On disk as in memory, over several blocks, and the matrix is still there for the next strength."""
    phi = torch.randn(size, size // 2 + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, wanted = phi @ phi.T, torch.randn(size, 3, dtype=torch.float64)
    with Activations(most_bytes=0, beside=tmp_path) as room:
        made = Symmetric(size, room, dtype=torch.float64)
        made.square += matrix.triu()
        made.seal()
        for strength in (1.0, 0.01):
            made.factor(strength)
            expected = torch.linalg.solve(matrix + strength * torch.eye(size, dtype=torch.float64), wanted)
            torch.testing.assert_close(made.solve(wanted.clone()), expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(made.times(wanted), matrix @ wanted)
        assert made.left_of(wanted, expected).norm() < 1e-9 * wanted.norm() * size
        with pytest.raises(RidgeTooSmall):
            made.factor(-1.0)


def test_the_search_ends_after_three_weaker_ridges_without_a_gain() -> None:
    tried: list[float] = []
    errors = iter([0.9, 0.8, 0.85, 0.7, 0.71, 0.72, 0.73, 0.1])

    class Told:
        before, moved = np.ones(1), torch.zeros(0)

        def solve(self, strength: float) -> tuple[int, bool]:
            tried.append(strength)
            return 1, True

        def errors(self, *_: object) -> list[tuple[np.ndarray, float]]:
            return [(np.array([next(errors)]), 0.0)]

        def keep(self, share: float) -> None: ...

    told: Any = Told()
    left, ridge, *_ = _search(told, told, 2.0, (0.0,), grid(10.0))
    assert tried == [20, 6, 2, 0.6, 0.2, 0.06, 0.02]
    assert (float(left[0]), ridge) == (0.7, 0.3)


def test_a_solution_that_is_cut_short_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeits.refitting.layer.solver_for", partial(solver_for, most_at_once=0))
    more = torch.full((TOKENS,), 1.5)
    whole, _ = refitted(wishing(1, more, ONE), wishing(2, more, ONE))
    assert whole.facts()["converged"] is True
    monkeypatch.setattr("moeits.refitting.by_features._MOST_SWEEPS", 1)
    cut, _ = refitted(wishing(1, more, ONE), wishing(2, more, ONE))
    assert cut.facts()["converged"] is False


def four_tokens_again_and_again(count: int, g: torch.Generator, gain: float) -> LayerData:
    """What they want beside what they get is almost all of the kind that equal tokens do not agree on."""
    experts, which = stock_experts(), torch.arange(count) % 4
    seen = Routed(
        hidden=torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))[which],
        chosen=torch.stack([which, (which + 1) % 4], 1),
        gates=torch.full((count, 2), 0.5),
        weight=torch.ones(count),
    )
    features = ExpertFeatures(experts, seen, Activations(most_bytes=0, beside=Path("nowhere")))
    wanted = predicted(features, {e: down_of(experts, e) for e in range(EXPERTS)}, torch.zeros(count, HIDDEN))
    noise = torch.randn(count, HIDDEN, generator=g)
    for each in range(4):
        noise[which == each] -= noise[which == each].mean(0)
    wanted += noise + gain
    return LayerData(routed=seen, at_hand=wanted, back=wanted, source=torch.zeros(count, dtype=torch.long))


def test_a_layer_whose_best_ridge_gives_no_weights_keeps_its_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be gained is lost in the rounding of what cannot, which only the weights' own solution notices.

    Processors round differently, so that not every gain is lost on every one of them.
    """
    monkeypatch.setattr("moeits.refitting.layer.solver_for", partial(solver_for, most_at_once=0))
    lost: list[BaseException] = []

    def noticed(self: ByTokens) -> Iterator[tuple[int, torch.Tensor]]:
        try:
            yield from weights(self)
        except RidgeTooSmall as error:
            lost.append(error)
            raise

    weights = ByTokens.weights
    monkeypatch.setattr(ByTokens, "weights", noticed)
    fits = []
    for gain, seed in product((1e-3, 3e-4, 1e-4), range(3)):
        g, before = torch.Generator().manual_seed(seed), len(lost)
        found = refitted(*(four_tokens_again_and_again(count, g, gain) for count in (20, 8)))
        fits += [found] if len(lost) > before else []
    assert fits
    for fit, untouched in fits:
        assert (fit.ridge, fit.drift, fit.shared) == (None, None, False)
        assert fit.error_after == fit.error_before
        assert not untouched


def test_a_loss_that_does_not_fall_for_certain_is_not_accepted() -> None:
    rng = np.random.default_rng(0)
    pruned = rng.normal(5, 1, 50)
    near = {"pruned": [0.1], "refitted": [0.1]}

    def of(refitted: np.ndarray) -> bool:
        nats = {"unpruned": pruned - 1, "pruned": pruned, "refitted": refitted}
        return judged({"nats": nats, "kl_to_parent": near, "same_first_choice": near})[1]

    assert of(pruned - 0.2 + rng.normal(0, 0.1, 50))
    assert not of(pruned + rng.normal(0, 0.1, 50))
    assert not of(pruned + 0.2)


def test_neither_what_a_model_wrote_itself_nor_other_text_may_lose_by_a_refit_and_what_was_asked_for_has_no_say() -> (
    None
):
    windows = Windows(
        fit=np.zeros((1, 8)),
        choosing=np.zeros((1, 8)),
        judging=np.zeros((50, 8)),
        sources=("self",),
        told=("self",),
        fit_by=np.zeros((1, 8)),
        judged_by=("self",) * 20 + ("bundled",) * 20,
        beside=20,
        asked=10,
    )
    pruned = np.random.default_rng(0).normal(5, 1, 50)
    noise = np.random.default_rng(1).normal(0, 0.01, 50)

    def of(own: float, bundled: float) -> bool:
        refitted = pruned + noise + np.repeat([own, bundled, 9], [20, 20, 10])
        near = {"pruned": [0.1] * 50, "refitted": [0.1] * 50}
        nats = {"unpruned": pruned - 1, "pruned": pruned, "refitted": refitted}
        sources = {"nats": windows.judged_by}
        facts, accepted = judged(
            {"nats": nats, "kl_to_parent": near, "same_first_choice": near, "sources": sources}, windows.deciding
        )
        assert facts["difference"]["mean"] == pytest.approx((own + bundled) / 2, abs=0.01)
        return accepted

    assert of(-0.1, -0.1)
    assert of(-0.01, -0.01)
    assert not of(-0.5, 0.1)
    assert not of(0.1, -0.5)
    assert not of(-0.001, -0.001)
    assert windows.telling == slice(-10, None)
    assert replace(windows, judging=windows.judging[:40], asked=0).telling == slice(-20, None)


def wishing(seed: int, wish: torch.Tensor, source: torch.Tensor) -> LayerData:
    """Tokens that want of each expert so many times what it gives."""
    experts, seen = stock_experts(), routed(seed)
    features = ExpertFeatures(experts, seen, Activations(most_bytes=0, beside=Path("nowhere")))
    root = seen.weight.sqrt()[:, None]
    given = predicted(features, {e: down_of(experts, e) for e in range(EXPERTS)}, torch.zeros(TOKENS, HIDDEN))
    wanted = wish[:, None] * given / root
    return LayerData(routed=seen, at_hand=wanted, back=wanted, source=source)


def refitted(fit: LayerData, held_out: LayerData) -> tuple[LayerFit, dict[int, torch.Tensor]]:
    weights: dict[int, torch.Tensor] = {}
    room = Activations(most_bytes=1 << 20, beside=Path("nowhere"))
    asked: dict[str, Any] = {"drifts": (0.0, 1.0), "largest_ridge": 10.0, "room": room, "put": weights.__setitem__}
    return refit_layer(0, stock_experts(), fit, held_out, **asked), weights


ONE = torch.zeros(TOKENS, dtype=torch.long)


def test_a_fit_that_helps_only_its_own_source_is_refused_by_another_one() -> None:
    """Where the two sources want opposite things of the experts, the old weights are the best of both."""
    more, less = torch.full((TOKENS,), 1.5), torch.full((TOKENS,), 0.5)
    fitted = wishing(1, more, ONE)
    accepted, weights = refitted(fitted, wishing(2, more, ONE))
    assert accepted.ridge is not None
    assert accepted.error_after < 0.1 * accepted.error_before
    assert weights
    refused, untouched = refitted(fitted, wishing(3, less, ONE))
    assert refused.ridge is None
    assert refused.error_after == refused.error_before
    assert not untouched


def test_the_source_that_gains_least_decides_however_few_its_tokens_are() -> None:
    fitted = wishing(1, torch.full((TOKENS,), 1.5), ONE)
    few = (torch.arange(TOKENS) % 20 == 0).long()
    mixed = torch.where(few == 1, 0.5, 1.5)
    together, _ = refitted(fitted, wishing(2, mixed, ONE))
    assert together.ridge is not None
    apart, untouched = refitted(fitted, wishing(2, mixed, few))
    assert apart.ridge is None
    assert not untouched


def test_a_source_that_lost_refuses_the_refit_of_all() -> None:
    rng = np.random.default_rng(0)
    pruned = rng.normal(5, 1, 50)
    near = {"pruned": [0.1], "refitted": [0.1]}
    sources = {"nats": ["a"] * 40 + ["b"] * 10, "nats_of_choosing": ["c"] * 5}

    def of(*gains: float) -> tuple[dict[str, float], bool]:
        a, b, c = gains
        nats = {"unpruned": pruned - 1, "pruned": pruned, "refitted": pruned + np.repeat([a, b], [40, 10])}
        chose = {"unpruned": pruned[:5], "pruned": pruned[:5], "refitted": pruned[:5] + c}
        facts, accepted = judged(
            {
                "nats": nats,
                "nats_of_choosing": chose,
                "sources": sources,
                "kl_to_parent": near,
                "same_first_choice": near,
            }
        )
        return facts["by_source"], accepted

    by_source, accepted = of(-0.3, -0.1, -0.2)
    assert by_source == pytest.approx({"a": -0.3, "b": -0.1, "c": -0.2})
    assert accepted
    assert not of(-0.3, 0.1, -0.2)[1]
    assert not of(-0.3, -0.1, 0.2)[1]


def test_windows_of_each_source_are_told_apart_and_what_is_too_little_is_one_source(place: Path) -> None:
    tokenizer = _tokenizer(Checkpoint.open(place / "toy"))
    documents = {"long": ["a" * 100] * 20, "short": ["b" * 100] * 5, "tiny": ["c" * 20], "small": ["d" * 100]}
    ids, names = cut_each(tokenizer, documents, 20, 32, Tokens())
    assert ids.shape == (20, 32)
    assert names == ("long",) * 9 + ("others",) * 3 + ("short",) * 8
    for name, letters in (("long", "a"), ("short", "b"), ("others", "cd")):
        own = ids[[name == each for each in names]]
        assert set(np.unique(own)) == {0, *(2 + CHARACTERS.index(letter) for letter in letters)}
    _, together = cut_each(tokenizer, {name: ["e" * 30] for name in "abcdefgh"}, 7, 32, Tokens())
    assert together == ("others",) * 7
    with pytest.raises(CalibrationError, match="Give more text, or ask for fewer"):
        cut_each(tokenizer, {"a": ["f" * 30]}, 7, 32, Tokens())


def test_sources_are_held_out_whole_where_they_suffice() -> None:
    documents = {f"{name}{i}".ljust(100): name for name, many in (("a", 9), ("b", 5), ("c", 4)) for i in range(many)}
    three = share_out(documents, held_out=600, fit=700, written=False)
    assert three is not None
    assert (three.fitted, three.chosen_by, three.judged_by) == (("a",), ("c",), ("b",))
    two = share_out(documents, held_out=700, fit=700, written=False)
    assert two is not None
    assert (two.fitted, two.chosen_by, two.judged_by) == (("a",), ("c", "b"), ("c", "b"))
    for source in ("c", "b"):
        assert not set(two.choosing[source]) & set(two.judging[source])
    assert share_out(documents, held_out=700, fit=1000, written=False) is None
    assert share_out(dict.fromkeys(documents, "a"), held_out=200, fit=200, written=False) is None
    beside = share_out(dict.fromkeys(documents, "a"), held_out=200, fit=0, written=True)
    assert beside is not None
    assert beside.fitted == ("self",)
    assert share_out({}, held_out=200, fit=0, written=True) is None


# ------------------------------------------------------------------------------------------------------- checkpoints


class Beside(torch.nn.Module):
    """A block that adds its shared expert to the routed ones in one of three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.down_proj = how, torch.nn.Linear(WIDTH, HIDDEN, bias=how == "gated with bias")

    def forward(self, hidden: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
        given = self.down_proj(hidden[:, :WIDTH].relu())
        gate = hidden[:, -1:].sigmoid()
        return routed + (torch.nn.functional.layer_norm(given, (HIDDEN,)) if self.how == "normed" else gate * given)


@pytest.mark.parametrize("how", ["gated", "gated with bias", "normed"])
def test_the_gate_of_a_shared_expert_is_measured_and_one_behind_a_norm_is_left_alone(how: str) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, routed_part = torch.randn(TOKENS, HIDDEN, generator=g), torch.randn(TOKENS, HIDDEN, generator=g)
    block = Beside(how)
    shared = SharedExpert(block, block.down_proj)
    with torch.no_grad(), shared.watched():
        block(hidden, routed_part)
    features = shared.features(routed_part)
    if how == "normed":
        assert features is None
    else:
        assert features is not None
        torch.testing.assert_close(features, hidden[:, -1:].sigmoid() * hidden[:, :WIDTH].relu(), rtol=1e-3, atol=1e-5)


def test_no_ridge_smaller_than_the_smallest_is_taken(place: Path, tmp_path: Path) -> None:
    free = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "free", **SMALL)
    bound = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "bound", smallest_ridge=3, **SMALL)
    assert any(layer["ridge"] and layer["ridge"] < 3 for layer in free.layers)
    assert all(layer["ridge"] is None or layer["ridge"] >= 3 for layer in bound.layers)
    with pytest.raises(SettingError, match="--smallest-ridge 20 is out of range"):
        moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "no", smallest_ridge=20, **SMALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pruned_toy(tmp_path_factory.mktemp("refit"))


SMALL = {"tokens": 2048, "held_out": 1024, "window": 32, "device": "cpu"}


def test_a_refitted_checkpoint_is_one_that_may_be_replaced(place: Path, tmp_path: Path) -> None:
    moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "out", **SMALL)
    again = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "out", overwrite=True, **SMALL)
    assert json.loads((tmp_path / "out" / "refit.json").read_text())["accepted"] == again.accepted


def test_down_projections_are_refitted_and_all_else_is_copied(place: Path) -> None:
    made = moeits.refit(place / "pruned", parent=place / "toy", output=place / "out", **SMALL)
    before, after = (load_file(place / name / "model.safetensors") for name in ("pruned", "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed <= set(made.tensors["computed"])
    assert all(".down_proj." in name and ".experts." in name for name in made.tensors["computed"])
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    for layer in made.layers:
        assert layer["error_after"] <= layer["error_before"]
    written = json.loads((place / "out" / "refit.json").read_text())
    assert written["accepted"] == made.accepted
    assert bool(changed) == made.accepted
    assert "## Refit" in (place / "out" / "README.md").read_text()
    assert not list(place.glob("*.partial"))
    assert Checkpoint.open(place / "out").config == Checkpoint.open(place / "pruned").config


def test_other_sources_than_those_fitted_choose_and_judge(place: Path, tmp_path: Path) -> None:
    letters = {"first": "abcd", "second": "efgh", "third": "ijkl"}
    rng = np.random.default_rng(0)

    def written(name: str, many: int) -> list[dict[str, str]]:
        return [{"text": "".join(rng.choice(list(letters[name]), 100)), "source": name} for _ in range(many)]

    rows = [*written("third", 8), *written("first", 40), *written("second", 9)]
    told = write_jsonl(tmp_path / "told.jsonl", rows)
    settings = {"tokens": 2048, "held_out": 1024, "window": 32}
    toy = Checkpoint.open(place / "toy")
    windows = windows_of(toy, Tokens(data=str(told), **settings), silent)
    parts = {"first": windows.fit, "third": windows.choosing, "second": windows.judging}
    for name, ids in parts.items():
        assert set(np.unique(ids)) <= {0, *(2 + CHARACTERS.index(letter) for letter in letters[name])}
    made = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "out", **{**SMALL, "data": str(told)})
    data = json.loads((tmp_path / "out" / "refit.json").read_text())["data"]
    assert data["held_out_by"] == "source"
    assert [data[role] for role in ("fitted", "chosen_by", "judged_by")] == [["first"], ["third"], ["second"]]
    assert "judged on second" in (tmp_path / "out" / "README.md").read_text()
    assert made.accepted == (made.loss["difference"]["high"] < 0)
    untold = write_jsonl(tmp_path / "untold.jsonl", [{"text": row["text"]} for row in rows])
    assert windows_of(toy, Tokens(data=str(untold), **settings), silent).facts["held_out_by"] == "document"


def test_self_written_text_does_not_judge_itself_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "alone", **SMALL, data="self")
    assert (alone.data["held_out_by"], alone.data["judge"]) == ("document", "bundled")
    assert [*alone.loss["by_source"]] == ["self", "bundled"]
    assert alone.loss["by_source"]["self"] < -0.2 < 0 < alone.loss["by_source"]["bundled"]
    assert not alone.accepted
    assert alone.loss["difference"]["mean"] == pytest.approx(np.mean([*alone.loss["by_source"].values()]))
    assert alone.loss["tokens"] == SMALL["held_out"]
    assert "text that the model wrote itself" in (tmp_path / "alone" / "README.md").read_text()
    show_verdict(alone.facts())
    assert (
        "judged on such text and on bundled text (jargon, kjv, novels, shakespeare, speeches)"
        in capsys.readouterr().out
    )
    beside = moeits.refit(
        place / "pruned", parent=place / "toy", output=tmp_path / "both", **SMALL, data="self,bundled"
    )
    assert beside.data["held_out_by"] == "source"
    assert beside.data["fitted"][0] == "self"


def test_activations_on_disk_give_the_same_refit(place: Path) -> None:
    one = moeits.refit(place / "pruned", parent=place / "toy", output=place / "one", **SMALL)
    two = moeits.refit(place / "pruned", parent=place / "toy", output=place / "two", memory="64KiB", **SMALL)
    assert one.facts() == two.facts()
    assert (place / "one" / "model.safetensors").read_bytes() == (place / "two" / "model.safetensors").read_bytes()


def test_an_interrupted_refit_goes_on_to_the_same_result(place: Path) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "refitting layers" and done == 2:
            raise Stop

    with pytest.raises(Stop):
        moeits.refit(place / "pruned", parent=place / "toy", output=place / "again", progress=stop, **SMALL)
    assert list(place.glob("again.partial/*/layer-0.safetensors"))
    again = moeits.refit(place / "pruned", parent=place / "toy", output=place / "again", **SMALL)
    whole = moeits.refit(place / "pruned", parent=place / "toy", output=place / "whole", **SMALL)
    assert again.facts() == whole.facts()
    assert not list(place.glob("*.partial"))


def test_with_all_experts_kept_nothing_changes(place: Path) -> None:
    moeits.simplify(place / "toy", output=place / "all", experts_per_layer=6, force=True)
    made = moeits.refit(place / "all", parent=place / "toy", output=place / "all-refitted", **SMALL)
    assert made.layers == ()
    assert made.tensors["computed"] == ()
    same = [(place / name / "model.safetensors").read_bytes() for name in ("all", "all-refitted")]
    assert same[0] == same[1]


def test_what_cannot_be_refitted_is_said(place: Path, tmp_path: Path) -> None:
    def refused(kind: type[MoeitsError], match: str, **changes: object) -> None:
        given = {"model": place / "pruned", "parent": place / "toy", "output": tmp_path / "no", **SMALL, **changes}
        with pytest.raises(kind, match=match):
            moeits.refit(given.pop("model"), **given)  # type: ignore[arg-type]
        assert not list(tmp_path.glob("no*"))

    make_toy(tmp_path / "other", "qwen2_moe", experts=6, seed=1)
    refused(PlanError, "was pruned from", parent=tmp_path / "other")
    refused(PlanError, "has no plan.json", model=tmp_path / "other")
    (tmp_path / "same.jsonl").write_text('{"text": "again and again"}\n' * 500)
    refused(CalibrationError, "in 0 different documents: each counts once", data=str(tmp_path / "same.jsonl"))
    refused(CalibrationError, "There is no text", data=str(tmp_path / "missing.jsonl"))
    refused(SettingError, "--tokens 3 is out of range", tokens=3)
    refused(SettingError, "--drift 2 is out of range", drift=2.0)
    refused(SettingError, "names no source", data=" , ")
    refused(CalibrationError, "Give more text, or ask for fewer", tokens=10**8)


def test_simplify_chooses_by_reconstruction_and_refits_in_one_go(place: Path) -> None:
    settings = {"experts_per_layer": 3, "criterion": "reconstruction", "tokens": 2048}
    with pytest.raises(SettingError, match="heal what --refit leaves"):
        moeits.simplify(place / "toy", output=place / "both", refit=True, heal="x.jsonl", **settings)
    plan = moeits.simplify(place / "toy", output=place / "one-go", refit=True, **settings)
    assert plan.criterion == "reconstruction"
    assert (place / "one-go" / "refit.json").is_file()
    assert not (place / "one-go.pruned").exists()
    (place / "again-one.pruned").mkdir()
    with pytest.raises(MoeitsError, match="moeits refit"):
        moeits.simplify(place / "toy", output=place / "again-one", refit=True, **settings)


def test_simplify_is_what_its_stages_are_with_the_same_settings(place: Path, tmp_path: Path) -> None:
    texts: dict[str, Any] = {"tokens": 2048, "held_out": 1024, "window": 32}
    chosen: dict[str, Any] = {"criterion": "reconstruction", "experts_per_layer": 3}
    moeits.simplify(place / "toy", output=tmp_path / "at-once", refit=True, **chosen, **texts)
    signals = moeits.calibrate(place / "toy", **texts)
    moeits.prune(place / "toy", plan=moeits.plan(signals, **chosen), output=tmp_path / "pruned")
    moeits.refit(tmp_path / "pruned", parent=place / "toy", output=tmp_path / "by-stages", **texts)
    assert_same_model(tmp_path / "at-once", tmp_path / "by-stages")
    told = [json.loads((tmp_path / name / "refit.json").read_text()) for name in ("at-once", "by-stages")]
    assert told[0]["data"] == told[1]["data"]
    assert told[0]["data"]["window"] == 32
