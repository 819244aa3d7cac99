"""One specification for every pruning criterion: whoever adds one to CRITERIA gets all of it applied."""

from dataclasses import replace

import numpy as np
import pytest

from moeits.choosing.criteria import CRITERIA, Criterion, criterion_named, elimination_order
from moeits.choosing.criteria.by_signal import LeastOfSignal
from moeits.choosing.criteria.of_experts import ByExpertSignal
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import EvidenceError, MoeitsError, SettingError
from moeits.evidence import Evidence
from moeits.signals import EXPERT_SIGNALS, MOST_ENUMERATED, PAIR_SIGNALS, ExpertSignal
from moeits.stages.plan import plan
from tests.toys import random_redundancy, toy_evidence

OF_EACH_COUNT = {"naee", "stun", "c-gnn", "moe-i2-genetic", "mop"}


@pytest.fixture(params=CRITERIA, ids=lambda criterion: criterion.name)
def criterion(request: pytest.FixtureRequest) -> Criterion:
    return request.param


@pytest.fixture
def evidence() -> Evidence:
    """Layers of unequal size, one of them of a single expert, one without any spread."""
    rng = np.random.default_rng(0)
    matrices = {layer: random_redundancy(rng, count) for layer, count in ((0, 9), (2, 12), (5, 1), (7, 6))}
    matrices[7] = np.zeros((6, 6))
    return calibrated(toy_evidence(matrices, top_k=2), rng)


def calibrated(known: Evidence, rng: np.random.Generator) -> Evidence:
    """With all that criteria of token signals need."""
    names = [name for each in CRITERIA if isinstance(each, LeastOfSignal) for name in (each.name, each.level)]
    # Errors of an elimination rise with its steps, so one ascending ranking serves for every pair of signals.
    ranks = {layer: rng.permutation(facts.num_experts).astype(float) for layer, facts in known.layers.items()}
    signals = dict.fromkeys(names, ranks) | {signal.name: ranks for signal in EXPERT_SIGNALS}
    pairs = {layer: random_redundancy(rng, facts.num_experts) for layer, facts in known.layers.items()}
    counts = {layer: facts.num_experts for layer, facts in known.layers.items()}
    signals["naee"] = {
        layer: np.array([rng.permutation(count) < n for n in range(1, count + 1)]).astype(float)
        for layer, count in counts.items()
    }
    signals["naee-error"] = {layer: np.sort(rng.random(count))[::-1] for layer, count in counts.items()}
    signals["moe-i2-genetic"] = signals["mop"] = signals["naee"]
    signals["mean-output"] = {layer: rng.standard_normal((count, 5)) for layer, count in counts.items()}
    signals["coactivation"] = pairs
    settings = {**known.settings, "search": {"seed": 0}}
    return replace(
        known, settings=settings, signals={**signals, **dict.fromkeys((signal.name for signal in PAIR_SIGNALS), pairs)}
    )


def test_names_are_unique_and_found_by_name() -> None:
    names = [criterion.name for criterion in CRITERIA]
    assert len(set(names)) == len(names)
    assert all(criterion_named(criterion.name) is criterion for criterion in CRITERIA)
    with pytest.raises(SettingError, match=r"Known: .*moeits, random"):
        criterion_named("nothing like it")


def test_an_order_removes_all_experts_but_one_each_once(criterion: Criterion, evidence: Evidence) -> None:
    for layer, facts in evidence.layers.items():
        order = criterion.rank(evidence, layer, np.random.default_rng(0))
        assert order.num_experts == facts.num_experts
        assert len(order.removed) == len(set(order.removed)) == facts.num_experts - 1
        assert set(order.removed) < set(range(facts.num_experts)) or facts.num_experts == 1
        assert all(type(expert) is int for expert in order.removed)


def test_levels_if_there_are_any_never_rise(criterion: Criterion, evidence: Evidence) -> None:
    for layer in evidence.layers:
        order = criterion.rank(evidence, layer, np.random.default_rng(0))
        if order.levels is not None:
            assert len(order.levels) == len(order.removed)
            assert list(order.levels) == sorted(order.levels, reverse=True)
            assert np.isfinite([order.mean, order.iqr, *order.levels]).all()


def test_the_same_evidence_and_seed_give_the_same_order(criterion: Criterion, evidence: Evidence) -> None:
    first, again = (criterion.rank(evidence, 2, np.random.default_rng(3)) for _ in range(2))
    assert first == again


def test_only_a_criterion_that_needs_a_seed_uses_it(criterion: Criterion, evidence: Evidence) -> None:
    orders = {criterion.rank(evidence, 2, np.random.default_rng(seed)).removed for seed in range(5)}
    assert (len(orders) > 1) == criterion.needs_seed


def test_only_a_criterion_that_needs_no_scores_plans_without_them(criterion: Criterion, evidence: Evidence) -> None:
    unscored = replace(evidence, redundancy={}, floor={}, signals={})
    if criterion.needs:
        with pytest.raises(EvidenceError, match="Make it with: moeits "):
            elimination_order(criterion, unscored, 0, np.random.default_rng(0))
    else:
        assert criterion.rank(unscored, 0, np.random.default_rng(0)).num_experts == 9


def test_the_evidence_is_left_as_it_was(criterion: Criterion, evidence: Evidence) -> None:
    before = {layer: matrix.copy() for layer, matrix in evidence.redundancy.items()}
    criterion.rank(evidence, 2, np.random.default_rng(0))
    assert all(np.array_equal(before[layer], matrix) for layer, matrix in evidence.redundancy.items())


def test_every_count_from_the_floor_up_can_be_planned(criterion: Criterion) -> None:
    rng = np.random.default_rng(1)
    evidence = calibrated(toy_evidence({layer: random_redundancy(rng, 7) for layer in range(3)}, top_k=2), rng)
    kept = {count: plan(evidence, experts_per_layer=count, criterion=criterion.name) for count in range(2, 8)}
    for count, made in kept.items():
        assert {len(experts) for experts in made.kept.values()} == {count}
        assert made.criterion == criterion.name
    if criterion.name not in OF_EACH_COUNT:
        for count in range(2, 7):
            assert all(set(kept[count].kept[layer]) < set(kept[count + 1].kept[layer]) for layer in range(3))
            assert {len(kept[count].order[layer]) for layer in range(3)} == {5}
    else:
        assert all(made.order == {} for made in kept.values())


def test_one_that_chooses_a_set_for_each_count_says_so(criterion: Criterion, evidence: Evidence) -> None:
    for layer, facts in evidence.layers.items():
        order = criterion.rank(evidence, layer, np.random.default_rng(0))
        enumerated = criterion.name != "naee" or facts.num_experts <= MOST_ENUMERATED
        assert (order.sets is not None) == (criterion.name in OF_EACH_COUNT and enumerated)
        counts = [len(order.kept_after(steps)) for steps in range(facts.num_experts)]
        assert counts == [*range(facts.num_experts, 0, -1)]
    if criterion.name in OF_EACH_COUNT:
        with pytest.raises(SettingError, match="so it protects nobody in layer 0: leave --protect out"):
            elimination_order(criterion, evidence, 0, np.random.default_rng(0), {3})


def test_a_plan_says_the_seed_only_where_it_matters(criterion: Criterion, evidence: Evidence) -> None:
    counts = plan(evidence, tau=1.0)
    assert ("seed" in plan(evidence, like=counts, criterion=criterion.name).settings) == criterion.needs_seed


def test_a_plan_of_any_criterion_is_read_back_as_it_was_written(
    criterion: Criterion, evidence: Evidence, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    made = plan(evidence, like=plan(evidence, tau=1.0), criterion=criterion.name, output=path)
    assert PruningPlan.load(path) == made


def test_a_criterion_without_levels_refuses_a_tau_in_a_sentence(criterion: Criterion, evidence: Evidence) -> None:
    if criterion.rank(evidence, 0, np.random.default_rng(0)).levels is not None:
        assert plan(evidence, tau=0.5, criterion=criterion.name).settings["tau"] == 0.5
        return
    with pytest.raises(
        MoeitsError, match=r"--tau is measured by scores, and --criterion .* has none: give --reduction"
    ):
        plan(evidence, tau=0.5, criterion=criterion.name)


@pytest.mark.parametrize(
    "signal",
    [criterion.signal for criterion in CRITERIA if isinstance(criterion, ByExpertSignal)],
    ids=lambda signal: signal.name,
)
def test_of_an_expert_signal_the_end_that_it_says_goes_first(signal: type[ExpertSignal], evidence: Evidence) -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 0.0])
    measured = replace(evidence, signals={signal.name: {7: values}})
    order = criterion_named(signal.name).rank(measured, 7, np.random.default_rng(0))
    smallest_first = (5, 1, 2, 0, 4, 3)
    assert order.removed == (smallest_first if signal.goes_first == "smallest" else smallest_first[::-1])[:-1]
