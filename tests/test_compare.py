"""Two results item by item: differences with intervals, and what may not be compared."""

import json
import tracemalloc
import warnings
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moeits import Results, compare
from moeits.command_line.app import main
from moeits.errors import EvaluationError, SettingError
from moeits.stages.compare import Difference, mcnemar_p, paired_interval
from tests.evaluation_toys import results

RNG = np.random.default_rng(7)
# Two models that agree on most of 400 items, as a model and its pruned self do.
BEFORE = (RNG.random(400) < 0.6).astype(float)
AFTER = np.where(RNG.random(400) < 0.15, 1 - BEFORE, BEFORE)


def test_the_difference_is_b_minus_a_over_the_same_items():
    found = compare(results({"t": [1, 1, 1, 0]}), results({"t": [1, 0, 0, 0]})).tasks["t"]["acc"]
    assert (found.a, found.b, found.difference, found.items) == (0.75, 0.25, -0.5, 4)
    assert (found.only_a, found.only_b) == (2, 0)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    difference = AFTER - BEFORE
    with warnings.catch_warnings():
        oracle = stats.bootstrap(
            (difference,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
    low, high = paired_interval(difference, np.ones(400), 20_000, np.random.default_rng(2))
    # Both ends are quantiles of 20,000 draws of multiples of 1/400: they may differ by one such step.
    assert low == pytest.approx(oracle.low, abs=1 / 400)
    assert high == pytest.approx(oracle.high, abs=1 / 400)


def test_pairing_narrows_the_interval():
    paired = paired_interval(AFTER - BEFORE, np.ones(400), 10_000, np.random.default_rng(0))
    shuffled = np.random.default_rng(3).permutation(AFTER)
    unpaired = paired_interval(shuffled - BEFORE, np.ones(400), 10_000, np.random.default_rng(0))
    assert paired[1] - paired[0] < 0.7 * (unpaired[1] - unpaired[0])


def test_a_ratio_is_resampled_by_document():
    nats, tokens = RNG.normal(0.1, 1.0, 60) * 50, RNG.integers(10, 100, 60).astype(float)
    oracle = stats.bootstrap(
        (nats, tokens),
        lambda n, t, axis: n.sum(axis) / t.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = paired_interval(nats, tokens, 20_000, np.random.default_rng(2))
    # The ends of 20,000 resamples scatter by about 2 % of the interval's width.
    width = oracle.high - oracle.low
    assert [low, high] == pytest.approx([oracle.low, oracle.high], abs=0.05 * width)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int):
    n = only_a + only_b
    oracle = stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(oracle)


def test_a_model_differs_in_nothing_from_itself():
    same = results({"t": [1, 0, 1]}, nats=[3.0, 4.0], tokens=[2, 2])
    found = compare(same, same)
    acc, loss = found.tasks["t"]["acc"], found.perplexity["nats_per_token"]
    assert (acc.difference, acc.low, acc.high, acc.mcnemar_p) == (0, 0, 0, 1)
    assert (loss.difference, loss.low, loss.high) == (0, 0, 0)


def test_swapping_the_models_turns_the_difference_around():
    one, other = results({"t": list(BEFORE)}), results({"t": list(AFTER)})
    there, back = compare(one, other).tasks["t"]["acc"], compare(other, one).tasks["t"]["acc"]
    assert there.difference == -back.difference
    assert there.mcnemar_p == back.mcnemar_p
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=2 / 400)


def test_bits_per_byte_are_the_nats_of_the_same_tokens():
    one = results(nats=[30.0, 50.0, 10.0], tokens=[10, 15, 5])
    other = results(nats=[33.0, 49.0, 14.0], tokens=[10, 15, 5])
    found = compare(one, other).perplexity
    nats, bits = found["nats_per_token"], found["bits_per_byte"]
    assert nats.difference == pytest.approx(6 / 30)
    assert bits.difference == pytest.approx(nats.difference / 2 / np.log(2))
    assert bits.high == pytest.approx(nats.high / 2 / np.log(2))
    assert nats.only_a is None


def test_the_same_seed_gives_the_same_interval(tmp_path):
    one, other = results({"t": list(BEFORE)}), results({"t": list(AFTER)})
    for name in ("x.json", "y.json"):
        compare(one, other, output=tmp_path / name, seed=3)
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()


def test_results_of_different_tasks_are_refused():
    with pytest.raises(EvaluationError, match=r"different tasks: the second has no u \(it has t\)"):
        compare(results({"t": [1], "u": [1]}), results({"t": [1]}))
    assert list(compare(results({"t": [1], "u": [1]}), results({"t": [1]}), tasks="t").tasks) == ["t"]


def test_results_of_different_shots_are_refused():
    with pytest.raises(EvaluationError, match="different shots: t was asked with 15 examples in the first and 0"):
        compare(results({"t": [1]}, num_fewshot=15), results({"t": [1]}))


def test_results_of_differently_drawn_examples_are_refused():
    one, other = results({"t": [1]}, num_fewshot=15), results({"t": [1]}, num_fewshot=15)
    with pytest.raises(EvaluationError, match="asked by 1 processes in the first and 2 in the second"):
        compare(one, replace(other, settings={"processes": 2}))


def with_row(made: Results, **facts) -> Results:
    """The same results with more facts about the task t."""
    return replace(made, tasks={"t": {**made.tasks["t"], **facts}})


def test_results_with_examples_from_other_files_are_refused():
    ours, theirs = {"t/train.jsonl": "ours"}, {"t/train.jsonl": "theirs"}
    shown = results({"t": [1, 0]}, num_fewshot=15)
    with pytest.raises(EvaluationError, match="different examples: the files of t were not the same"):
        compare(with_row(shown, files=ours), with_row(shown, files=theirs))
    # Without examples only the items count, and those are compared one by one.
    asked = results({"t": [1, 0]})
    assert compare(with_row(asked, files=ours), with_row(asked, files=theirs)).tasks


def test_prompts_that_were_cut_to_another_length_are_refused():
    made = results({"t": [1, 0]})
    short, long = (replace(made, settings={"context_tokens": tokens}) for tokens in (512, 2048))
    fitting = {"requests_cut": 0}
    assert compare(with_row(short, prompts=fitting), with_row(long, prompts=fitting)).tasks
    with pytest.raises(EvaluationError, match="different prompts: t was cut to 512 tokens in the first and to 2048"):
        compare(with_row(short, prompts={"requests_cut": 1}), with_row(long, prompts=fitting))


def test_another_precision_is_said_beside_the_difference():
    made = results({"t": [1, 0]})
    one, other = (replace(made, settings={"dtype": dtype, "backend": "hf"}) for dtype in ("float32", "bfloat16"))
    assert compare(one, one).notes == ()
    (note,) = compare(one, other).facts()["notes"]
    assert note == "The first was run with --dtype float32, the second with bfloat16: that is part of the difference."


def test_results_of_different_items_are_refused():
    with pytest.raises(EvaluationError, match="different items of t: 2 in the first, 1 in the second"):
        compare(results({"t": [1, 0]}), results({"t": [1]}))


def test_perplexities_of_different_texts_are_refused():
    one = results(nats=[3.0], tokens=[1], sha256="one")
    with pytest.raises(EvaluationError, match="different texts"):
        compare(one, results(nats=[3.0], tokens=[1], sha256="other"))


def test_a_perplexity_and_a_task_have_nothing_in_common():
    with pytest.raises(EvaluationError, match="different tasks"):
        compare(results(nats=[3.0], tokens=[1]), results({"t": [1]}))


def test_too_few_resamples_are_refused():
    with pytest.raises(SettingError, match="--resamples 5"):
        compare(results({"t": [1]}), results({"t": [1]}), resamples=5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There are no results"),
        ("{", "is not results of moeits evaluate: "),
        ("[]", "is not results of moeits evaluate: "),
        ('{"kind": "results", "format": 99}', "it has format 99, and this moeits reads format 1"),
        ('{"kind": "results", "format": 1}', "missing required field `model`"),
    ],
)
def test_a_file_that_holds_no_results_is_refused(tmp_path, content, sentence):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=sentence):
        compare(path, path)


def set_in(value: Any, path: str, to: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        value = value[name]
    if to is GONE:
        del value[last]
    else:
        value[last] = to


GONE = object()


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        ("model", 1, r"\$.model"),
        ("model/source", GONE, "`source`"),
        ("model/bytes", 10**400, r"<="),
        ("settings", [], r"\$.settings"),
        ("tasks", [["a"]], r"\$.tasks"),
        ("tasks/t", 1, r"\$.tasks"),
        ("tasks/t/num_fewshot", GONE, r"`num_fewshot` \(within tasks.t\)"),
        ("tasks/t/acc", "x", r"within tasks.t"),
        ("tasks/t/acc", 1e300, r"within tasks.t"),
        ("tasks/t/n_samples", {"original": 2}, "`effective`"),
        ("samples", [], r"\$.samples"),
        ("samples/t", GONE, "have no samples of t"),
        ("samples/t/doc_hash", GONE, "have no samples of t"),
        ("samples/t/doc_hash", [1, 2], "within samples.t.doc_hash"),
        ("samples/t/acc", [1], "columns of different lengths, doc_hash 2, acc 1"),
        ("samples/t/acc", ["x", 1], "within samples.t.acc"),
        ("samples/t/acc", [[1], [1]], "within samples.t.acc"),
        ("samples/t/acc", [{}, 1], r"\$.samples"),
        ("samples/t/acc", 5, r"\$.samples"),
        ("perplexity", 5, r"\$.perplexity"),
        ("perplexity/sha256", GONE, "`sha256`"),
        ("perplexity/tokens", 0, "a text without tokens"),
        ("samples/perplexity", GONE, "have no samples of the perplexity"),
        ("samples/perplexity/nats", [], "columns of different lengths"),
        ("samples/perplexity/nats", ["x", "y"], "within samples.perplexity"),
        ("samples/perplexity/nats", [10**400, 1], "is not results"),
        ("samples/perplexity/tokens", [0, 0], "within samples.perplexity"),
    ],
)
def test_damaged_results_are_one_sentence_that_says_where(tmp_path, path, to, says):
    made = results({"t": [1, 0]}, nats=[3.0, 2.0], tokens=[1, 1])
    made.save(tmp_path / "good.json")
    facts = json.loads(json.dumps(made.facts()))
    set_in(facts, path, to)
    (tmp_path / "bad.json").write_text(json.dumps(facts))
    with pytest.raises(EvaluationError, match=says) as refused:
        compare(tmp_path / "good.json", tmp_path / "bad.json")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_results_that_name_no_local_files_are_read(tmp_path):
    """Those of hub data, or of a version that did not keep them."""
    facts = json.loads(json.dumps(results({"t": [1, 0]}).facts()))
    facts["tasks"]["t"].pop("files", None)
    (tmp_path / "hub.json").write_text(json.dumps(facts))
    assert compare(tmp_path / "hub.json", tmp_path / "hub.json").tasks


def test_a_loss_that_is_not_a_number_is_called_so(tmp_path):
    made = results(nats=[float("nan")], tokens=[1])
    (tmp_path / "r.json").write_text(made.to_json())
    with pytest.raises(EvaluationError, match="it holds NaN, which is not a number"):
        Results.load(tmp_path / "r.json")


def test_resamples_take_bounded_memory_whatever_the_kinds_of_items():
    rng = np.random.default_rng(0)
    nats, tokens = rng.standard_normal(9_000), rng.integers(1, 500, 9_000).astype(float)
    tracemalloc.start()
    paired_interval(nats, tokens, 2_000, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All at once the counts alone are 144 MB; a chunk of them is 32 MiB, and its products a little more.
    assert peak < 80e6


def test_a_million_kinds_of_items_take_seconds_and_agree_with_the_bootstrap():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 500, 1_000_000).astype(float)
    nats = tokens * rng.normal(0.1, 1.0, 1_000_000)
    start = process_time()
    found = paired_interval(nats, tokens, 10_000, rng)
    assert process_time() - start < 5
    few, weight = nats[:10_001], tokens[:10_001]
    drawn = rng.integers(0, 10_001, (1_000, 10_001))
    oracle = np.percentile(few[drawn].sum(1) / weight[drawn].sum(1), [2.5, 97.5])
    # The ends of 1,000 resamples scatter by about 3 % of the interval's width.
    low, high = paired_interval(few, weight, 10_000, rng)
    assert [low, high] == pytest.approx(list(oracle), abs=0.1 * (oracle[1] - oracle[0]))
    assert found[1] - found[0] == pytest.approx((high - low) / 10, rel=0.1), "a hundred times the items"


@pytest.mark.parametrize(("only_a", "only_b"), [(480, 540), (0, 5_000), (40_000, 40_300), (3_000_000, 3_004_000)])
def test_mcnemar_of_many_items_is_the_binomial_test_and_takes_no_time(only_a, only_b):
    start = process_time()
    found = mcnemar_p(only_a, only_b)
    assert process_time() - start < 1
    assert found == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue, rel=1e-6, abs=1e-300)


def difference(**changed: Any) -> Difference:
    facts = {"a": 0.5, "b": 0.4, "difference": -0.1, "low": -0.15, "high": -0.05, "items": 400}
    return Difference(**facts | {"only_a": 60, "only_b": 20} | changed)


def test_a_comparison_says_what_can_be_told():
    assert difference().verdict("acc") == "b is worse by 0.1"
    assert difference(only_a=None, only_b=None).verdict("nats_per_token") == "b is better by 0.1"
    assert difference(high=0.05).verdict("acc") == "no difference can be told"
    nothing = {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert difference(**nothing).verdict("acc") == "a and b came out the same on every item"
    alike = difference(**nothing, only_a=0, only_b=0)
    assert alike.verdict("acc") == "a and b came out the same on every item"


def test_few_items_make_the_interval_a_rough_guess_and_that_is_said():
    warning = "the two differ on only 5 items, so the interval is a rough guess"
    assert difference(only_a=5, only_b=0).verdict("acc") == f"b is worse by 0.1; {warning}"
    assert "only 1 item," in difference(only_a=0, only_b=1).verdict("acc")
    assert "there are only 4 items" in difference(only_a=None, only_b=None, items=4).verdict("nats_per_token")


def test_the_table_labels_its_interval_and_ends_in_a_verdict(tmp_path, capsys, monkeypatch):
    for name, right in (("a.json", [1, 1, 1, 0]), ("b.json", [1, 0, 0, 0])):
        results({"t": right}).save(tmp_path / name)
    monkeypatch.setattr("sys.argv", ["moeits", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "95 % from" in shown
    assert "acc: no difference can be told; the two differ on only 2 items" in shown


def test_reading_what_was_written_gives_what_was_meant(tmp_path):
    made = results({"t": [1, 0]}, nats=[3.0], tokens=[1])
    made.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == made
