"""Edits that tell neurons apart: whatever the order of an expert's neurons, what is made of it is the same."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import PlannedEdit
from moeits.edits.aligned_average import AlignedAverage
from moeits.edits.neurons import Blend
from moeits.edits.recombine import Recombine
from moeits.errors import NonFiniteWeight, PlanError, SettingError, UnscorableWeight
from moeits.experts.layout import MoELayout
from tests.evaluation_toys import give_tokenizer
from tests.toys import fuse, make_toy, read_config, read_tensors, toy_evidence, write_checkpoint

FORMS = ("qwen2_moe", "qwen2_moe fused", "gpt_oss", "ernie4_5_moe")
EXPERTS, KEPT, TWIN = 6, 1, 4


def plant_twin(form: str, tensors: dict[str, np.ndarray], order: np.ndarray) -> None:
    """In every layer make expert TWIN the expert KEPT with its neurons in another order; written out for each form."""
    for name, tensor in list(tensors.items()):
        if f".experts.{KEPT}." in name:
            own = tensor[:, order] if "down_proj" in name else tensor[order]
            tensors[name.replace(f".experts.{KEPT}.", f".experts.{TWIN}.")] = np.ascontiguousarray(own)
        elif form == "qwen2_moe fused" and name.endswith("experts.gate_up_proj"):
            gate, up = np.split(tensor[KEPT], 2)
            tensor[TWIN] = np.concatenate([gate[order], up[order]])
        elif form == "qwen2_moe fused" and name.endswith("experts.down_proj"):
            tensor[TWIN] = tensor[KEPT][:, order]
        elif form == "gpt_oss" and "experts.gate_up_proj" in name:
            tensor[TWIN][..., ::2] = tensor[KEPT][..., ::2][..., order]
            tensor[TWIN][..., 1::2] = tensor[KEPT][..., 1::2][..., order]
        elif form == "gpt_oss" and name.endswith("experts.down_proj"):
            tensor[TWIN] = tensor[KEPT][order]
        elif form == "gpt_oss" and name.endswith("experts.down_proj_bias"):
            tensor[TWIN] = tensor[KEPT]


def with_twin(folder: Path, form: str, dtype: str = "float32") -> Path:
    toy = make_toy(folder / "toy", form.removesuffix(" fused"), dtype=dtype, experts=EXPERTS)
    toy = fuse(toy, folder / "fused") if form.endswith("fused") else toy
    tensors, layout = read_tensors(toy), MoELayout.of(Checkpoint.open(toy))
    width = layout.read(Checkpoint.open(toy), next(iter(layout.layers)), 0, "up").shape[0]
    order = np.random.default_rng(3).permutation(width)
    assert (order != np.arange(width)).sum() > width // 2
    plant_twin(form, tensors, order)
    return write_checkpoint(folder / "planted", read_config(toy), tensors)


def without_twin(model: Path, edit: str, **settings: Any) -> PruningPlan:
    """Everybody but the twin stays; it goes into its original, by unequal shares."""
    plan = moeits.plan(moeits.score(model), experts_per_layer=EXPERTS - 1, min_experts=1)
    kept = dict.fromkeys(plan.kept, tuple(e for e in range(EXPERTS) if e != TWIN))
    own = [KEPT] if edit == "aligned-average" else kept[next(iter(kept))]
    groups = {layer: {expert: ((expert, 0.3), (TWIN, 0.7)) for expert in own} for layer in kept}
    return replace(plan, kept=kept, edit=PlannedEdit(name=edit, groups=groups, settings=settings))


def same_bytes(one: Path, other: Path) -> bool:
    first, second = (
        {name: (t.dtype, t.tobytes()) for name, t in read_tensors(folder).items()} for folder in (one, other)
    )
    return first == second


@pytest.mark.parametrize("edit", ["aligned-average", "recombine"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_twin_with_its_neurons_in_another_order_leaves_the_kept_expert_to_the_bit(
    tmp_path: Path, form: str, edit: str, dtype: str
) -> None:
    model = with_twin(tmp_path, form, dtype)
    plan = without_twin(model, edit)
    moeits.prune(model, plan=plan, output=tmp_path / "made")
    moeits.prune(model, plan=replace(plan, edit=None), output=tmp_path / "plain")
    assert same_bytes(tmp_path / "made", tmp_path / "plain")
    average = replace(without_twin(model, "aligned-average"), edit=replace(plan.edit, name="average", settings={}))
    moeits.prune(model, plan=average, output=tmp_path / "average")
    assert not same_bytes(tmp_path / "average", tmp_path / "plain"), "paired by number, the two are no copies"


@pytest.mark.parametrize("edit", ["aligned-average", "recombine"])
def test_a_plan_replays_to_the_same_bytes_and_what_it_made_can_be_refitted(tmp_path: Path, edit: str) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    give_tokenizer(toy)
    plan = moeits.simplify(toy, experts_per_layer=3, edit=edit, output=tmp_path / "out")
    assert plan.edit is not None
    moeits.prune(toy, plan=tmp_path / "out" / "plan.json", output=tmp_path / "again")
    moeits.prune(toy, plan=replace(plan, edit=None), output=tmp_path / "plain")
    assert same_bytes(tmp_path / "out", tmp_path / "again")
    assert not same_bytes(tmp_path / "out", tmp_path / "plain")
    made = moeits.refit(
        tmp_path / "out", parent=toy, output=tmp_path / "refitted", tokens=256, held_out=256, window=32, device="cpu"
    )
    assert all(layer["error_after"] <= layer["error_before"] for layer in made.layers)


# -------------------------------------------------------------------------------------------------- aligned-average


def random_experts(rng: np.random.Generator, count: int, width: int, hidden: int = 7) -> dict[int, dict[str, Any]]:
    return {
        expert: {name: rng.standard_normal((width, hidden)).astype(np.float32) for name in ("gate", "up", "down")}
        for expert in range(count)
    }


def made_of(blend: Blend, experts: Mapping[int, Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    rows = experts[0][name]
    total = np.zeros(rows.shape, np.float64)
    for member, terms in blend.items():
        terms.add(experts[member][name], total)
    return total


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("seed", range(5))
def test_the_average_is_of_the_best_of_all_orders(seed: int) -> None:
    experts = random_experts(np.random.default_rng(seed), 3, 5)
    group = ((1, 0.5), (0, 0.2), (2, 0.3))
    blend = AlignedAverage().blends({1: group}, experts.__getitem__)[1]
    wanted = {name: 0.5 * rows.astype(np.float64) for name, rows in experts[1].items()}
    for member, weight in group[1:]:
        best = max(
            permutations(range(5)),
            key=lambda order: sum(
                cosine(experts[1][name][n], experts[member][name][order[n]]) for n in range(5) for name in experts[1]
            ),
        )
        for name in wanted:
            wanted[name] += weight * experts[member][name][list(best)].astype(np.float64)
    for name in wanted:
        np.testing.assert_allclose(made_of(blend, experts, name), wanted[name], rtol=1e-12)


def test_members_weigh_by_saliency_where_it_is_known_then_by_how_often_they_are_chosen() -> None:
    redundancy = np.full((3, 3), 0.5) - 0.5 * np.eye(3)
    signals = {"frequency": {0: np.array([3.0, 1, 1])}, "reap": {0: np.array([1.0, 1, 3])}}
    for known, of_two in ((signals, 0.25), ({"frequency": signals["frequency"]}, 0.75), ({}, 0.5)):
        evidence = toy_evidence({0: redundancy}, top_k=1, signals=known)
        groups = AlignedAverage().groups(evidence, 0, (0, 1))
        assert groups == {0: ((0, of_two), (2, 1 - of_two))}


# -------------------------------------------------------------------------------------------------------- recombine


def literally(
    groups: Mapping[int, Any], experts: Mapping[int, Mapping[str, np.ndarray]], least: float
) -> dict[int, dict[str, np.ndarray]]:
    """Steps 2 and 3 of DERN neuron by neuron, in plain loops and float64."""
    kept, width = sorted(groups), len(experts[0]["up"])
    removed = sorted({member for group in groups.values() for member, _ in group} - set(kept))
    moved: dict[int, list[tuple[int, int]]] = {expert: [] for expert in kept}
    for member in removed:
        for n in range(width):
            found = [
                (sum(0.5 * cosine(experts[member][p][n], experts[e][p][m]) for p in ("up", "down")), -e)
                for e in kept
                for m in range(width)
            ]
            similarity, expert = max(found)
            if similarity > least:
                moved[-expert].append((member, n))
    result = {}
    for expert in kept:
        if not moved[expert]:
            continue
        segments = [(expert, n) for n in range(width)]
        segments += moved[expert]
        whole = {s: np.concatenate([experts[s[0]][p][s[1]] for p in experts[0]]).astype(np.float64) for s in segments}
        weight = dict(groups[expert])
        centres, before = [whole[expert, n] for n in range(width)], None
        for _ in range(30):
            assigned = {s: int(np.argmax([cosine(whole[s], centre) for centre in centres])) for s in segments}
            if assigned == before:
                break
            before = assigned
            for c in range(width):
                own = [s for s in segments if assigned[s] == c]
                if own:
                    norm = np.mean([np.linalg.norm(whole[s]) for s in own])
                    total = sum(weight[s[0]] for s in own)
                    shares = [weight[s[0]] / total if total else 1 / len(own) for s in own]
                    centres[c] = sum(
                        share * norm / np.linalg.norm(whole[s]) * whole[s] for share, s in zip(shares, own, strict=True)
                    )
        parts = np.split(np.array(centres), len(experts[0]), axis=1)
        result[expert] = dict(zip(experts[0], parts, strict=True))
    return result


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least", [0.0, 0.25, 0.6])
def test_recombining_is_what_the_two_steps_say_literally(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    experts = random_experts(rng, 5, 6)
    for n in range(6):  # some near-copies, so that something moves at any bound
        for name in experts[0]:
            experts[4][name][n] = experts[seed % 2][name][(n + 1) % 6] + 0.3 * rng.standard_normal(7)
    weights = rng.random(5) * (rng.random(5) > 0.3)
    groups = {e: tuple((m, float(weights[m])) for m in (e, 2, 3, 4)) for e in (0, 1)}
    blends = Recombine(min_similarity=least).blends(groups, experts.__getitem__)
    wanted = literally(groups, experts, least)
    assert blends.keys() == wanted.keys()
    assert wanted
    for expert, parts in wanted.items():
        for name, rows in parts.items():
            np.testing.assert_allclose(made_of(blends[expert], experts, name), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_a_removed_expert_is_read_once_for_all_kept_ones_however_many_are_held(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    experts = random_experts(np.random.default_rng(2), 9, 6)
    groups = {e: tuple((m, 1 / 6) for m in (e, 4, 5, 6, 7, 8)) for e in range(4)}
    wanted = Recombine(min_similarity=0.1).blends(groups, experts.__getitem__)
    one = sum(rows.nbytes for rows in experts[0].values())
    monkeypatch.setattr("moeits.edits.recombine._HELD_BYTES", at_a_time * one)
    seen: list[int] = []

    def read(expert: int) -> dict[str, Any]:
        seen.append(expert)
        return experts[expert]

    found = Recombine(min_similarity=0.1).blends(groups, read)
    assert found.keys() == wanted.keys() == groups.keys()
    assert len({member for blend in found.values() for member in blend} - groups.keys()) == 5
    assert all(seen.count(member) == 1 for member in (4, 5, 6, 7, 8))
    assert all(seen.count(expert) == -(-5 // at_a_time) + 1 for expert in groups)
    for expert, blend in wanted.items():
        for name in experts[0]:
            assert np.array_equal(made_of(found[expert], experts, name), made_of(blend, experts, name))


def test_neurons_beyond_what_is_held_are_read_again_not_kept_and_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, width, hidden, seen = 16, 16, 512, Counter[int]()
    one = 3 * width * hidden * 4

    def read(expert: int) -> dict[str, np.ndarray]:
        seen[expert] += 1
        return random_experts(np.random.default_rng(expert), 1, width, hidden)[0]

    def recombined(count: int) -> tuple[Mapping[int, Blend], float]:
        """The blends of so many experts, and the peak of memory in experts."""
        groups = {e: tuple((m, 1.0) for m in (e, *range(kept, count))) for e in range(kept)}
        seen.clear()
        tracemalloc.start()
        found = Recombine(min_similarity=-1).blends(groups, read)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, peak / one

    monkeypatch.setattr("moeits.edits.recombine._HELD_BYTES", 2 * one)
    wanted, all_held = recombined(64)
    assert max(seen[member] for member in range(kept, 64)) == 1
    monkeypatch.setattr("moeits.edits.recombine._MOVING_BYTES", 2 * one)
    found, few_held = recombined(64)
    assert all(seen[member] <= 1 + kept for member in range(kept, 64))
    assert all_held - few_held > 40  # 48 experts move, and no more than those of one kept one are held with the budget
    assert found.keys() == wanted.keys()
    for expert, blend in wanted.items():
        assert list(found[expert]) == list(blend)
        for member, terms in blend.items():
            for name in ("neurons", "made", "shares"):
                assert np.array_equal(getattr(found[expert][member], name), getattr(terms, name))


@pytest.mark.parametrize("form", FORMS)
def test_prune_reads_a_removed_expert_twice_whoever_takes_it_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    toy = make_toy(tmp_path / "toy", form.removesuffix(" fused"), experts=EXPERTS)
    toy = fuse(toy, tmp_path / "fused") if form.endswith("fused") else toy
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="recombine", min_similarity=-1.0)
    of_experts = {  # what of each expert is decoded, by layer
        (name, where): expert
        for layer in MoELayout.of(Checkpoint.open(toy)).layers.values()
        for expert in range(EXPERTS)
        for name, where in (
            [(name, ()) for name in layer.experts[expert].values()]
            if layer.experts
            else [(name, (expert,)) for name in layer.fused.values()]
        )
    }
    seen: list[tuple[str, Any]] = []
    plain = Checkpoint.read

    def read(self: Checkpoint, name: str, where: tuple[Any, ...] = ()) -> np.ndarray:
        seen.append((name, where[:1] if where else ()))
        return plain(self, name, where)

    monkeypatch.setattr(Checkpoint, "read", read)
    moeits.prune(toy, plan=plan, output=tmp_path / "made")
    removed = {each for each, expert in of_experts.items() if expert not in plan.kept[layer_of(each[0])]}
    times = {each: seen.count(each) for each in removed}
    # To be compared, a fused tensor is read for each of its projections; then it is read to be written.
    assert set(times.values()) <= {1, 2, 3}
    assert max(times.values()) == (3 if max(len(s) for _, s in of_experts) else 2)
    monkeypatch.setattr("moeits.surgery.blended.MOST_HELD_BYTES", 0)
    seen.clear()
    moeits.prune(toy, plan=plan, output=tmp_path / "again")
    assert same_bytes(tmp_path / "made", tmp_path / "again")
    assert max(seen.count(each) for each in removed) > max(times.values())


def layer_of(name: str) -> int:
    return int(name.partition("layers.")[2].partition(".")[0])


def test_above_1_no_neuron_moves_and_recombining_is_plain_removal(tmp_path: Path) -> None:
    model = with_twin(tmp_path, "qwen2_moe")
    plan = moeits.plan(moeits.score(model), experts_per_layer=3, edit="recombine", min_similarity=1.01)
    assert plan.edit is not None
    assert plan.edit.settings == {"min_similarity": 1.01}
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    moeits.prune(model, plan=tmp_path / "plan.json", output=tmp_path / "made")
    moeits.prune(model, plan=replace(plan, edit=None), output=tmp_path / "plain")
    assert same_bytes(tmp_path / "made", tmp_path / "plain")
    lower = replace(plan, edit=replace(plan.edit, settings={"min_similarity": -1.0}))
    moeits.prune(model, plan=lower, output=tmp_path / "lower")
    assert not same_bytes(tmp_path / "lower", tmp_path / "plain")


def test_every_kept_expert_may_take_from_every_removed_one_by_its_gates() -> None:
    signals = {"router-score": {0: np.array([2.0, 1, 1, 4])}, "frequency": {0: np.array([1.0, 1, 1, 1])}}
    evidence = toy_evidence({0: np.zeros((4, 4))}, top_k=1, signals=signals)
    groups = Recombine().groups(evidence, 0, (0, 3))
    assert groups == {0: ((0, 0.5), (1, 0.25), (2, 0.25)), 3: ((3, 4 / 6), (1, 1 / 6), (2, 1 / 6))}


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"edit": "recombine", "min_similarity": 3.0}, "--min-similarity 3.0 is out of range: it is a cosine"),
        ({"edit": "recombine", "min_similarity": float("nan")}, "--min-similarity nan is out of range"),
        ({"edit": "average", "min_similarity": 0.5}, "--edit average has no setting min_similarity: leave --min-sim"),
        ({"min_similarity": 0.5}, "--edit none has no setting min_similarity"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence_before_any_work(
    tmp_path: Path, asked: dict[str, Any], sentence: str
) -> None:
    toy = make_toy(tmp_path / "toy")
    with pytest.raises(SettingError, match=sentence):
        moeits.simplify(toy, experts_per_layer=3, output=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_similarity": "high"}, "--min-similarity 'high' is not what --edit recombine can use"),
        ({"min_similarity": 7}, "--min-similarity 7 is out of range"),
        ({"share": 1}, "--edit recombine has no setting share"),
        ({"min_similarity": [1]}, r"plan.json.*settings"),
    ],
)
def test_settings_of_a_plan_are_read_by_what_the_edit_has(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    moeits.plan(moeits.score(toy), experts_per_layer=3, edit="recombine", output=tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    text["edit"]["settings"] = settings
    (tmp_path / "plan.json").write_text(json.dumps(text))
    with pytest.raises((PlanError, SettingError), match=sentence):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers_are_named_and_a_tensor_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="recombine")
    tensors = read_tensors(toy)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    broken = tensors | {name.format(2): np.full_like(tensors[name.format(2)], np.nan)}
    folder = write_checkpoint(tmp_path / "broken", read_config(toy), broken)
    with pytest.raises(NonFiniteWeight, match=r"experts.2.up_proj.weight is not finite"):
        moeits.prune(folder, plan=plan, any_fingerprint=True, output=tmp_path / "out")
    odd = tensors | {name.format(e).replace("weight", "extra"): np.ones(3, np.float32) for e in range(EXPERTS)}
    folder = write_checkpoint(tmp_path / "odd", read_config(toy), odd)
    with pytest.raises(UnscorableWeight, match=r"up_proj.extra is neither a weight nor a bias"):
        moeits.prune(folder, plan=plan, any_fingerprint=True, output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
