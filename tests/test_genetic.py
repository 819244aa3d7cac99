"""MoE-I2's genetic search: against all subsets where they can be tried, and its fields of three layers against the
masked stock model."""

import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.genetic import GENERATIONS, POPULATION, Members, Search, best_sets
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.evidence import Evidence
from moeits.progress import silent
from tests.evaluation_toys import give_tokenizer, make_speaking_toy
from tests.interrupted import assert_calibration_goes_on
from tests.masked import routers_masked
from tests.test_bad_input import Shell
from tests.test_subsets import Softmax, by_hand
from tests.toys import make_toy

SMALL: dict[str, Any] = {"tokens": 1600, "held_out": 800, "window": 64, "device": "cpu"}
GENETIC = "moe-i2-genetic"

# ---------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("experts", "count"), [(5, 3), (8, 5), (9, 2), (6, 6), (1, 1)])
def test_where_all_sets_can_be_tried_the_best_ones_are_found(experts: int, count: int) -> None:
    rng = np.random.default_rng(experts)
    logits, outputs = rng.standard_normal((50, experts)), rng.standard_normal((50, experts, 6))
    top_k = min(2, count)
    whole = by_hand(logits, outputs, tuple(range(experts)), top_k)
    losses = {
        kept: float(((by_hand(logits, outputs, kept, top_k) - whole) ** 2).sum())
        for kept in combinations(range(experts), count)
    }
    assert len(losses) <= POPULATION
    found = best_sets(losses.__getitem__, experts, count, np.random.default_rng(0))
    assert found == sorted(losses, key=losses.__getitem__)[:3]


def test_the_error_of_a_set_is_that_of_the_layer_without_the_others() -> None:
    from moeits.calibration.routing import Router, Tried

    rng = np.random.default_rng(3)
    logits, outputs = rng.standard_normal((60, 6)), rng.standard_normal((60, 6, 5))
    scores = torch.tensor(logits, dtype=torch.float32)
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    tried = Tried(gram, Router(Softmax(6, 2), scores), scores, torch.zeros(60, 5), 1)
    whole = by_hand(logits, outputs, (0, 1, 2, 3, 4, 5), 2)
    for kept in combinations(range(6), 3):
        wanted = float(((by_hand(logits, outputs, kept, 2) - whole) ** 2).sum())
        assert tried.error(kept) == pytest.approx(wanted, rel=1e-4)
    assert tried.error(range(6)) == pytest.approx(0, abs=1e-6)


def rugged(experts: int, seed: int) -> Any:
    """A loss in which pairs count, so that no order of experts gives the best sets."""
    weights = np.random.default_rng(seed).standard_normal((experts, experts))
    tried: list[Members] = []

    def loss(kept: Members) -> float:
        tried.append(kept)
        return float(weights[np.ix_(kept, kept)].sum())

    return loss, tried


@pytest.mark.parametrize("seed", range(5))
def test_of_more_sets_it_tries_some_each_once_and_finds_a_better_one_than_as_many_random_ones(seed: int) -> None:
    loss, tried = rugged(24, seed)
    found = best_sets(loss, 24, 12, np.random.default_rng(seed))
    assert len(tried) == len(set(tried)) <= POPULATION + GENERATIONS * 80
    assert all(len(kept) == len(set(kept)) == 12 and list(kept) == sorted(kept) for kept in tried)
    met, rng = list(tried), np.random.default_rng(100 + seed)
    assert found == sorted(met, key=loss)[:3]
    at_random = [tuple(sorted(rng.choice(24, 12, replace=False))) for _ in met]
    assert loss(found[0]) < min(map(loss, at_random))


def test_the_same_seed_finds_the_same_sets_and_layers_are_searched_apart() -> None:
    def found(seed: int, layer: int = 0) -> tuple[list[list[float]], list[Members]]:
        loss, tried = rugged(16, seed=2)
        search = Search(counts={0: 8, 1: 8}, seed=seed)
        return search.candidates(loss, 16, layer).tolist(), tried

    assert found(0) == found(0)
    assert found(0)[1] != found(1)[1]
    assert found(0)[1] != found(0, layer=1)[1]


# ---------------------------------------------------------------------------------------------- fields of layers


def some_candidates(self: Search, error: Any, experts: int, layer: int) -> np.ndarray:  # noqa: ARG001
    """Two or three sets, none of them better than others for all that the search knows."""
    rng = np.random.default_rng(layer)
    rows = [
        np.isin(range(experts), rng.choice(experts, self.counts[layer], replace=False)) for _ in range(2 + layer % 2)
    ]
    return np.array(rows, np.float64)


@pytest.mark.parametrize(
    ("family", "toy"),
    [
        ("qwen2_moe", {"layers": 3}),
        ("qwen2_moe", {"layers": 5}),
        ("qwen2_moe", {"layers": 6, "decoder_sparse_step": 2}),
        ("deepseek_v2", {"layers": 3}),
        ("mixtral", {"layers": 2}),
        ("gpt_oss", {"layers": 3}),
    ],
)
def test_a_field_is_the_combination_after_which_the_masked_model_is_nearest(
    family: str, toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_toy(tmp_path / "toy", family, dtype="float32", **toy)
    give_tokenizer(folder)
    monkeypatch.setattr(Search, "candidates", some_candidates)
    asked = {**SMALL, "selection": 128, "search_sets": 4}
    evidence = moeits.calibrate(folder, **asked)
    kept = moeits.plan(evidence, criterion=GENETIC, experts_per_layer=4).kept

    texts = Tokens(**{name: SMALL[name] for name in ("tokens", "held_out", "window")})
    tokens = torch.from_numpy(windows_of(Checkpoint.open(folder), texts, silent).watched[:2])
    model = moeits.load(folder, dtype=torch.float32).eval()
    experts, layers = 6, sorted(evidence.layers)
    search = Search(counts=dict.fromkeys(layers, 4), seed=0)
    sets = {i: [tuple(np.flatnonzero(row)) for row in search.candidates(None, experts, i)] for i in layers}  # type: ignore[arg-type]
    for begin in range(0, len(layers), 3):
        field = layers[begin : begin + 3]
        errors = {}
        with torch.no_grad():
            wanted = after(model, tokens, field[-1])
            for members in product(*(sets[i] for i in field)):
                with routers_masked(model, dict(zip(field, members, strict=True)), experts):
                    errors[members] = float((after(model, tokens, field[-1]) - wanted).double().square().sum())
        best, second = sorted(errors.values())[:2]
        assert second > best * (1 + 1e-5), "two combinations that cannot be told apart prove nothing"
        assert tuple(kept[i] for i in field) == min(errors, key=errors.__getitem__)


def after(model: Any, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    """What a decoder layer of the whole stock model gives."""
    seen = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    model(input_ids=tokens, use_cache=False)
    handle.remove()
    return seen[0]


def test_the_same_bytes_after_an_interruption_and_with_activations_on_disk(tmp_path: Path) -> None:
    folder = make_speaking_toy(tmp_path / "toy", layers=4, experts=9)
    assert_calibration_goes_on(folder, tmp_path, **{**SMALL, "selection": 64, "search_sets": 4})


# ---------------------------------------------------------------------------------------------- the criterion


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_toy(tmp_path_factory.mktemp("model") / "toy", experts=9)


@pytest.mark.slow
def test_layers_keep_what_importance_gives_them_and_sets_are_searched_for_these_counts(
    model: Path, tmp_path: Path
) -> None:
    watched = moeits.calibrate(model, selection=256, **SMALL)
    counts = moeits.plan(watched, criterion="moe-i2", reduction=0.4, output=tmp_path / "counts.json").counts
    searched = moeits.calibrate(model, selection=256, search_sets=tmp_path / "counts.json", **SMALL)
    made = moeits.plan(searched, criterion=GENETIC, reduction=0.4)
    assert made.counts == counts
    assert sum(made.counts.values()) == sum(map(len, made.kept.values())) == made.summary["experts_kept"]
    assert made.settings["search"]["seed"] == 0
    # One command goes the same way.
    asked = {name: SMALL[name] for name in ("tokens", "held_out", "window")}
    whole = moeits.simplify(model, criterion=GENETIC, reduction=0.4, output=tmp_path / "out", **asked)
    assert sum(whole.counts.values()) == sum(counts.values())
    again = moeits.simplify(model, criterion=GENETIC, reduction=0.4, output=tmp_path / "again", **asked)
    assert again == whole
    assert (tmp_path / "again" / "plan.json").read_bytes() == (tmp_path / "out" / "plan.json").read_bytes()
    other = moeits.simplify(model, criterion=GENETIC, like=whole, seed=5, output=tmp_path / "other", **asked)
    assert other.settings["search"]["seed"] == 5


def test_a_comparison_searches_for_the_size_of_all_its_rows(model: Path, tmp_path: Path) -> None:
    from tests.evaluation_toys import write_jsonl

    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "to be or not to be"}] * 5)
    asked = {name: SMALL[name] for name in ("tokens", "held_out", "window")}
    run = tmp_path / "run"
    kept = {"output": run, "keep": "0.5", "refit": "no", "perplexity": text, **asked}
    moeits.compare_criteria(model, criteria="reap", **kept)
    assert "moe-i2-genetic" not in Evidence.load(run / "signals.safetensors").signals
    before = (run / "reap" / "plan.json").read_bytes()
    moeits.compare_criteria(model, criteria=GENETIC, **kept)
    counts = moeits.PruningPlan.load(run / GENETIC / "plan.json").counts
    assert counts == moeits.PruningPlan.load(run / "reap" / "plan.json").counts
    assert (run / "reap" / "plan.json").read_bytes() == before


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("--search-sets", 0), "--search-sets 0 asks for 0 experts of layer 0, which keeps from 1 to 9."),
        (("--search-sets", 10), "--search-sets 10 asks for 10 experts of layer 0, which keeps from 1 to 9."),
        (("--search-sets", "9" * 50), "experts of layer 0, which keeps from 1 to 9."),
        (("--search-sets", "few"), "There is no plan few."),
        (
            ("--search-sets", 4, "--statistics", "x.json"),
            "--statistics runs no layer, and --search-sets would need that",
        ),
        (("--search-sets", 4, "--selection", 0), "--search-sets tries sets on the tokens of --selection, which is 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_work(
    asked: tuple[object, ...], sentence: str, model: Path, shell: Shell
) -> None:
    shell.refuses("calibrate", model, *asked, "--output", "signals.safetensors", saying=sentence)


def test_a_plan_of_another_model_is_no_answer_to_how_many(model: Path, tmp_path: Path, shell: Shell) -> None:
    smaller = make_toy(tmp_path / "two", layers=2)
    moeits.plan(moeits.score(smaller), experts_per_layer=4, output=tmp_path / "two.json")
    shell.refuses(
        "calibrate",
        model,
        "--search-sets",
        "two.json",
        "--output",
        "signals",
        saying="keeps other layers than the model",
    )


def test_groups_are_not_searched(tmp_path: Path, shell: Shell) -> None:
    grouped = make_toy(tmp_path / "grouped", "deepseek_v3", experts=8, n_group=2, topk_group=1)
    give_tokenizer(grouped)
    asked = ("--search-sets", 4, "--output", "signals")
    shell.refuses("calibrate", grouped, *asked, saying="limited to 2 groups, which must stay of equal size")


def test_without_sets_of_that_count_the_command_says_how_to_get_them(model: Path, tmp_path: Path, shell: Shell) -> None:
    moeits.calibrate(model, selection=64, output=tmp_path / "plain", **SMALL)
    moeits.calibrate(model, selection=64, search_sets=4, output=tmp_path / "four", **SMALL)
    of = ("--criterion", GENETIC, "--output", "plan.json", "--experts-per-layer")
    shell.refuses(
        "plan", "plain", *of, 4, saying="moeits calibrate MODEL --search-sets COUNT --output signals.safetensors"
    )
    shell.refuses(
        "plan", "four", *of, 5, saying="keeps 5 of 9 experts in a layer, and the evidence has sets of 4 there"
    )
    code, _, err = shell.run("plan", "four", *of, 4)
    assert code == 0, err


def test_a_plan_that_does_not_say_its_seed_is_not_carried_out(model: Path, tmp_path: Path, shell: Shell) -> None:
    evidence = moeits.calibrate(model, selection=64, search_sets=4, **SMALL)
    moeits.plan(evidence, criterion=GENETIC, experts_per_layer=4, output=tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["settings"]["search"]["seed"]
    (tmp_path / "without.json").write_text(json.dumps(plan))
    replay = ("prune", model, "--plan", "without.json", "--output", "out")
    shell.refuses(*replay, saying="does not say by which seed, so nobody could search for them again")
    del plan["settings"]["search"]
    (tmp_path / "without.json").write_text(json.dumps(plan))
    shell.refuses(*replay, saying="make it again with moeits plan.")
    code, _, err = shell.run("prune", model, "--plan", "plan.json", "--output", "out")
    assert code == 0, err


def test_sizes_that_it_cannot_answer_are_refused_before_any_work(model: Path, shell: Shell) -> None:
    for command, *asked in (("forecast", "--reductions", "0.25,0.5"), ("sweep", "--tau", "1:2:1")):
        said = shell.refuses(command, model, *asked, "--criterion", GENETIC, "--output", "out")
        assert ("searches sets of one size" in said) or ("has no scores for a tau" in said)


def test_a_dry_run_says_that_the_search_is_not_in_its_seconds(model: Path, shell: Shell) -> None:
    code, out, err = shell.run("calibrate", model, "--search-sets", 4, "--output", "signals", "--dry-run")
    assert code == 0, err
    assert "The genetic search is not in the seconds: it tries up to 4,100 sets of a layer." in out
    assert not (shell.folder / "signals").exists()


def test_the_first_of_its_two_passes_edits_nothing(model: Path, tmp_path: Path) -> None:
    asked = {name: SMALL[name] for name in ("tokens", "held_out", "window")}
    edited = {"criterion": GENETIC, "reduction": 0.4, "edit": "low-rank", "mean_rank": "50%", **asked}
    made = moeits.simplify(model, output=tmp_path / "out", **edited)
    assert made.edit is not None
    assert made.edit.settings["mean_rank"] == "50%"
    plain = moeits.simplify(model, criterion=GENETIC, reduction=0.4, output=tmp_path / "plain", **asked)
    assert made.kept == plain.kept


def test_a_dry_run_of_all_in_one_counts_both_passes_and_says_what_it_does_not_count(
    model: Path, tmp_path: Path
) -> None:
    asked = {name: SMALL[name] for name in ("tokens", "held_out", "window")} | {"dry_run": True}

    def foreseen(**budget: Any) -> Any:
        return moeits.simplify(model, output=tmp_path / "out", **budget, **asked)

    said = "The genetic search is not in the seconds: it tries up to 4,100 sets of a layer."
    twice, once = foreseen(criterion=GENETIC, reduction=0.4), foreseen(criterion=GENETIC, experts_per_layer=4)
    plain = foreseen(criterion="moe-i2", reduction=0.4)
    assert said in twice.not_foreseen
    assert said in once.not_foreseen
    assert said not in plain.not_foreseen
    *watching, _ = [work.times for work in once.work]
    assert watching
    assert [work.times for work in twice.work[:-1]] == [2 * times for times in watching]
