"""Scores from a sample of the entries: estimates with a standard error (docs/sampling.md)."""

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from math import log, sqrt
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import binom, poisson

import moeits
from moeits.command_line import app as cli
from moeits.errors import EvidenceError, SettingError
from moeits.evidence import Evidence, merged
from moeits.signals.cell_sums import Cells, Grid, thinned_of_many, thinned_terms
from moeits.signals.independence import expected_information
from moeits.signals.nmi import NMI, Codes
from moeits.signals.sample import parsed_sample, positions, sample_size
from moeits.signals.sample_counts import count_sums, joint_sums, pointwise_variance
from moeits.signals.sampled_nmi import SampledNMI, _encoded
from moeits.signals.settings import Scoring
from moeits.stages.plan import plan
from moeits.stages.score import score
from tests.toys import expert_name, moe_layers, toy_config, toy_tensors, write_checkpoint

SHAPE = (256, 512)
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def as_bfloat16(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float32).astype(ml_dtypes.bfloat16)


def estimate(one: np.ndarray, other: np.ndarray, sample: str, seed: int = 0) -> tuple[float, float]:
    signal = SampledNMI(sample=sample, sample_seed=seed)
    value, error = signal.estimate([signal.encode_weight(one)], [signal.encode_weight(other)])[:, 0, 0]
    return float(value), float(error)


# ---------------------------------------------------------------------------------------------- which entries


@pytest.mark.parametrize(
    ("text", "sample"), [("1/8", 0.125), ("0.125", 0.125), ("12.5%", 0.125), (0.125, 0.125), ("5000", 5000), (300, 300)]
)
def test_a_sample_is_a_share_or_a_number_of_entries(text: str | float, sample: float) -> None:
    assert parsed_sample(text) == sample
    assert parsed_sample(parsed_sample(text)) == sample


@pytest.mark.parametrize(
    "text",
    ["0", "1", "-1", "1/0", "1.5", "255", "x", "", "%", ".", "nan", "inf", "9" * 25, "1e999999999", "2/1"],
)
def test_a_sample_that_is_neither_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SettingError, match=r"--sample .* is out of range: give a share .* exact scores\."):
        NMI(sample=text)


def test_a_sample_is_not_silently_left_out_of_account() -> None:
    """What is exact cannot do what it was asked for; what estimates is what `for_model` gives."""
    asked, weight = NMI(sample="1/8"), as_bfloat16(np.random.default_rng(0).standard_normal(SHAPE))
    for encode in (lambda: asked.encode({"gate": weight}), lambda: asked.encode_weight(weight)):
        with pytest.raises(SettingError, match=r"NMI compares all entries, and not 0\.125 of them: .* SampledNMI"):
            encode()
    assert asked.for_model(("gate",), "").encode({"gate": weight}).codes.size == weight.size // 8


@pytest.mark.parametrize(("entries", "size"), [(1000, 1000), (1000, 333), (4096, 512), (7, 1)])
def test_one_entry_of_each_block_is_sampled(entries: int, size: int) -> None:
    chosen = positions(entries, size, "gate", 0)
    blocks = np.searchsorted(np.arange(size + 1) * entries // size, chosen, side="right") - 1
    assert np.array_equal(blocks, np.arange(size))


def test_the_sample_follows_from_seed_and_name_alone() -> None:
    assert np.array_equal(positions(4096, 512, "gate", 0), positions(4096, 512, "gate", 0))
    assert not np.array_equal(positions(4096, 512, "gate", 0), positions(4096, 512, "up", 0))
    assert not np.array_equal(positions(4096, 512, "gate", 0), positions(4096, 512, "gate", 1))


def test_a_number_of_entries_beyond_a_weight_is_all_of_it() -> None:
    assert sample_size(5000, 4096) == 4096
    rng = np.random.default_rng(0)
    one, other = (as_bfloat16(rng.standard_normal(SHAPE)) for _ in range(2))
    exact = NMI().compare_two(NMI().encode_weight(one), NMI().encode_weight(other))
    assert estimate(one, other, str(10**9)) == (exact, 0.0)


def test_a_sample_too_small_for_its_histograms_is_refused_with_what_is_enough() -> None:
    weight = as_bfloat16(np.random.default_rng(0).standard_normal(SHAPE))
    with pytest.raises(SettingError, match=r"give --sample ([0-9]+) or more") as refused:
        SampledNMI(sample="1/256").encode_weight(weight)
    enough = str(refused.value).split("--sample ")[1].split()[0]
    SampledNMI(sample=enough).encode_weight(weight)
    with pytest.raises(SettingError):
        SampledNMI(sample=int(enough) - 1).encode_weight(weight)


# ---------------------------------------------------------------------------------------------- sums over cells


@pytest.mark.parametrize("mean", [1e-6, 0.01, 0.3, 2.0, 50.0, 299.0, 301.0, 2000.0])
def test_functions_of_poisson_cells_equal_direct_summation(mean: float) -> None:
    counts = np.arange(int(mean + 12 * sqrt(mean) + 40))
    chances = poisson.pmf(counts, mean)
    f = counts * np.log(np.maximum(counts, 1)) - (mean >= 1) * (counts * (1 + log(mean)) - mean)
    g = thinned_terms(counts[-1]) - (mean >= 1) * (counts * (1 + log(mean / 2)) - mean) / 2

    def beyond(one: np.ndarray, other: np.ndarray) -> float:
        def cov(a: np.ndarray, b: np.ndarray) -> float:
            return float(chances @ (a * b) - (chances @ a) * (chances @ b))

        return cov(one, other) - cov(one, counts) * cov(other, counts) / mean

    at = np.array([log(mean)])
    for which, one, other in (("ff", f, f), ("fg", f, g), ("gg", g, g)):
        # Expansions beyond a mean of 300 leave out 1 / mean^2; below, the table is interpolated.
        assert Cells.spread(which)(at)[0] == pytest.approx(beyond(one, other), rel=2e-4)
    squares = chances @ (counts * np.log(np.maximum(counts, 1) / mean) ** 2)
    assert Cells.squares(at)[0] == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize("kept", [1 / 2, 1 / 4])
def test_thinned_counts_have_the_expectation_of_the_binomial(kept: float) -> None:
    terms = thinned_terms(600, kept)
    for count in (0, 1, 2, 7, 255, 600):
        k = np.arange(count + 1)
        assert terms[count] == pytest.approx(
            binom.pmf(k, count, kept) @ (k * np.log(np.maximum(k, 1))), rel=1e-10, abs=1e-12
        )
    assert thinned_of_many(np.array([256, 600]), kept) == pytest.approx(terms[[256, 600]], rel=1e-6)


def test_bilinear_forms_equal_the_sum_over_all_cells() -> None:
    rng, n = np.random.default_rng(0), 1 << 17
    a, b = (rng.multinomial(n, rng.dirichlet(np.full(bins, 0.5))) for bins in (300, 500))
    a, b = a[a > 0], b[b > 0]
    grid = Grid(n)
    means = np.log(np.outer(a, b) / n)
    left, right = (grid.spread(each, np.ones(each.size)) for each in (a, b))
    for function in (Cells.excess, Cells.spread("ff"), Cells.squares):
        whole = left @ grid.of_cells(function, -log(n)) @ right
        assert whole == pytest.approx(function(means).sum(), rel=1e-5)


@pytest.mark.parametrize("bins", [3, 40, 400])
def test_joint_sums_equal_those_of_a_histogram_made_by_numpy(bins: int) -> None:
    rng = np.random.default_rng(bins)
    a, b = (rng.integers(0, bins, 20_000).astype(np.uint16) for _ in range(2))
    counts = np.bincount(bins * a.astype(np.int64) + b)
    f = counts * np.log(np.maximum(counts, 1))
    halves, quarters = (thinned_terms(counts.max(), kept)[counts].sum() for kept in (1 / 2, 1 / 4))
    assert joint_sums(a, b, bins, bins) == pytest.approx([f.sum(), halves, quarters], rel=1e-7)
    assert np.array_equal(joint_sums(a, b, bins, bins), joint_sums(b, a, bins, bins))
    assert np.array_equal(joint_sums(a, a, bins, bins), count_sums(np.bincount(a)))


@pytest.mark.parametrize(("entries", "bins"), [(5000, 7), (5000, 60), (1 << 18, 700)])
def test_the_pointwise_variance_is_that_of_the_entries(entries: int, bins: int) -> None:
    """Where cells hold more than a byte and where they do not; of many entries every second is looked at."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, bins, entries).astype(np.uint16)
    b = ((a + rng.integers(0, bins // 3, entries)) % (bins + 2)).astype(np.uint16)
    cells = (bins + 2) * a.astype(int) + b
    p_a, p_b, p = (np.bincount(codes) / entries for codes in (a, b, cells))
    every = 2 if entries > 1 << 17 else 1
    assert (np.bincount(cells).max() > 255) == (bins == 7)
    information = np.log(p[cells] / (p_a[a] * p_b[b])) + 0.1 * np.log(p_a[a]) + 0.2 * np.log(p_b[b])
    found = pointwise_variance(a, b, (np.log(p_a), np.log(p_b)), (0.1, 0.2))
    assert found == pytest.approx(information[::every].var(), rel=1e-9)
    assert found == pytest.approx(information.var(), rel=0.01)


def test_a_variance_counted_in_bands_is_that_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 50, (2, 4000)).astype(np.uint16)
    asked = (a, b, (np.log(np.bincount(a) / 4000), np.log(np.bincount(b) / 4000)), (0.1, 0.2))
    whole = pointwise_variance(*asked)
    monkeypatch.setattr("moeits.signals.sample_counts.TABLE_BYTES", 1)
    assert pointwise_variance(*asked) == pytest.approx(whole, rel=1e-12)


# ---------------------------------------------------------------------------------------------- estimates


def permuted(sample: str, pairs: int, draws: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(pairs, 2): estimate minus exact NMI, and standard error, of weights one of which is permuted anew each time."""
    signal, exact, rng = SampledNMI(sample=sample), NMI(), np.random.default_rng(1)
    one, other = (exact.encode_weight(as_bfloat16(weight)) for weight in draws)
    chosen = positions(one.codes.size, sample_size(parsed_sample(sample), one.codes.size), "", 0)

    def sampled(codes: Codes) -> Codes:
        return _encoded(codes.codes[chosen], codes.counts, codes.entropy)

    rows = []
    for _ in range(pairs):
        shuffled = replace(other, codes=rng.permutation(other.codes))
        value, error = signal.estimate([sampled(one)], [sampled(shuffled)])[:, 0, 0]
        rows.append((value - exact.compare_two(one, shuffled), error))
    return np.array(rows)


@pytest.mark.parametrize("sample", ["1/4", "1/16"])
@pytest.mark.parametrize("freedom", [None, 4])
def test_intervals_of_independent_weights_hold_the_exact_value_as_often_as_they_say(
    sample: str, freedom: int | None
) -> None:
    rng = np.random.default_rng(0)
    draws = tuple(rng.standard_normal(SHAPE) if freedom is None else rng.standard_t(freedom, SHAPE) for _ in range(2))
    off, error = permuted(sample, 150, draws).T  # type: ignore[arg-type]
    # Of 150 intervals that hold with chance 0.94 to 0.96 fewer than 131 do once in a thousand times.
    assert 131 <= (np.abs(off) < 1.96 * error).sum() < 150
    assert abs(off.mean()) < 3 * error.mean() / sqrt(150)
    # A standard deviation of 150 scatters by 6 %; tails are heavier where a pair's own slope begins to count.
    assert off.std() == pytest.approx(error.mean(), rel=0.25)


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.95])
def test_noisy_copies_are_estimated_within_their_error(correlation: float) -> None:
    rng, exact, off = np.random.default_rng(2), NMI(), []
    for seed in range(12):
        one = rng.standard_normal(SHAPE)
        other = correlation * one + sqrt(1 - correlation**2) * rng.standard_normal(SHAPE)
        weights = as_bfloat16(one), as_bfloat16(other)
        truth = exact.compare_two(*map(exact.encode_weight, weights))
        value, error = estimate(*weights, "1/4", seed)
        off.append((value - truth) / error)
    assert (np.abs(off) < 1.96).sum() >= 9  # of 12, less once in 500
    assert abs(np.mean(off)) < 1.0


@pytest.mark.parametrize("sample", ["1/2", "1/4", "1/16"])
def test_an_exact_copy_scores_one_and_is_certain(sample: str) -> None:
    weight = as_bfloat16(np.random.default_rng(3).standard_t(5, SHAPE))
    assert estimate(weight, weight.copy(), sample) == (1.0, 0.0)


def test_where_the_slope_does_not_fit_the_error_is_larger() -> None:
    rng = np.random.default_rng(4)
    one = rng.standard_normal(SHAPE)
    half = np.where(rng.random(SHAPE) < 0.5, one, rng.standard_normal(SHAPE))
    weights = as_bfloat16(one), as_bfloat16(half)
    truth = NMI().compare_two(*map(NMI().encode_weight, weights))
    value, error = estimate(*weights, "1/16")
    assert abs(value - truth) < 1.96 * error
    assert error > 0.005  # by chance alone it would be 0.003


def test_a_constant_weight_shares_nothing() -> None:
    rng = np.random.default_rng(0)
    constant, other = np.full(SHAPE, 0.5, np.float32), rng.standard_normal(SHAPE, np.float32)
    assert estimate(constant, other, "1/4") == (0.0, 0.0)
    assert estimate(other, constant, "1/4") == (0.0, 0.0)


def test_estimates_are_symmetric_to_the_last_bit_and_alike_in_any_company() -> None:
    rng, signal = np.random.default_rng(5), SampledNMI(sample="1/8")
    common = rng.standard_normal(SHAPE)
    weights = [as_bfloat16(share * common + rng.standard_t(4, SHAPE)) for share in (0, 0.2, 1, 3)]
    encoded = [signal.encode_weight(weight) for weight in weights]
    whole = signal.estimate(encoded, encoded)
    assert np.array_equal(whole, whole.transpose(0, 2, 1))
    assert np.array_equal(whole[:, :1, 2:3], signal.estimate(encoded[:1], encoded[2:3]))
    assert signal.compare(encoded[:1], encoded) == pytest.approx(whole[0, :1], abs=0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_codes_of_a_sample_are_those_of_the_whole_weight(dtype: str) -> None:
    weight = np.random.default_rng(6).standard_t(4, SHAPE).astype(dtype)
    whole, sampled = NMI().encode_weight(weight), SampledNMI(sample="1/8").encode_weight(weight)
    chosen = positions(weight.size, weight.size // 8, "", 0)
    assert np.array_equal(sampled.codes, whole.codes[chosen])
    assert np.array_equal(sampled.counts, whole.counts)


def test_the_floor_of_a_sample_is_that_of_all_entries() -> None:
    rng = np.random.default_rng(7)
    weights = [as_bfloat16(rng.standard_normal(SHAPE)) for _ in range(3)]
    exact, sampled = NMI(), SampledNMI(sample="1/8")
    floors = [signal.floor([*map(signal.encode_weight, weights)]) for signal in (exact, sampled)]
    assert np.array_equal(*floors)
    counts = [exact.encode_weight(weight).counts for weight in weights]
    assert floors[0].max() < expected_information(counts).max()


def test_encoding_and_comparing_take_no_more_memory_than_they_say() -> None:
    signal, weight = SampledNMI(sample="1/8"), as_bfloat16(np.random.default_rng(0).standard_normal((2048, 1024)))
    said = signal.memory(weight.size, weight.itemsize)
    encoded = signal.encode_weight(weight)  # what is kept for all weights of a size is not of one
    signal.estimate([encoded], [encoded])
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    encoded = signal.encode_weight(weight)
    held, most = (nbytes - before for nbytes in tracemalloc.get_traced_memory())
    assert held < said.encoded + 100_000
    assert most < said.encoded + said.encoding
    tracemalloc.reset_peak()
    signal.estimate([encoded], [encoded])
    assert tracemalloc.get_traced_memory()[1] - before - held < said.comparing
    tracemalloc.stop()


# ---------------------------------------------------------------------------------------------- evidence and plans


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in which expert 5 of every layer is a copy of expert 2."""
    config = toy_config("qwen2_moe", experts=6, layers=2, hidden_size=128, moe_intermediate_size=96)
    tensors = toy_tensors(config)
    for layer in moe_layers(config):
        for projection in ("gate", "up", "down"):
            source, copy = (expert_name(config, layer, expert, projection) for expert in (2, 5))
            tensors[copy] = tensors[source]
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "model", config, tensors)


@pytest.fixture(scope="module")
def sampled(toy: Path) -> Evidence:
    return score(toy, sample="1/4")


def test_evidence_of_a_sample_holds_the_error_of_every_pair(toy: Path, sampled: Evidence) -> None:
    exact = score(toy)
    assert not exact.signals
    assert "sample" not in exact.settings
    assert (sampled.settings["sample"], sampled.settings["sample_seed"]) == (0.25, 0)
    for layer, errors in sampled.errors.items():
        pairs = np.triu_indices(6, 1)
        assert np.array_equal(errors, errors.T)
        assert not errors.diagonal().any()
        assert (errors[pairs] > 0).sum() == 14  # all but the copy, which is certain
        off = (sampled.redundancy[layer] - exact.redundancy[layer])[pairs]
        assert (np.abs(off) <= 4 * errors[pairs] + 1e-12).all()
        assert np.array_equal(sampled.floor[layer], exact.floor[layer])


@pytest.mark.parametrize("sample", ["1/2", "1/4", "1/8"])
def test_of_a_planted_copy_one_goes_first(toy: Path, sample: str) -> None:
    found = score(toy, sample=sample)
    for redundancy in found.redundancy.values():
        assert redundancy[2, 5] == pytest.approx(1, abs=1e-12)
    assert all(steps[0][0] in (2, 5) for steps in plan(found, experts_per_layer=4).order.values())


def test_evidence_of_a_sample_is_read_as_it_was_written(sampled: Evidence, tmp_path: Path) -> None:
    sampled.save(tmp_path / "evidence.safetensors")
    again = Evidence.load(tmp_path / "evidence.safetensors")
    assert again.settings == sampled.settings
    for layer, errors in sampled.errors.items():
        assert np.array_equal(again.errors[layer], errors)


def test_scores_of_a_sample_do_not_depend_on_threads_and_memory(toy: Path, sampled: Evidence) -> None:
    said = SampledNMI(sample="1/4").memory(128 * 96, 2)
    other = score(toy, sample="25%", threads=1, memory=said.comparing + 3 * said.encoded)  # three experts at a time
    for layer, redundancy in sampled.redundancy.items():
        assert np.array_equal(other.redundancy[layer], redundancy)
        assert np.array_equal(other.errors[layer], sampled.errors[layer])


def test_other_seeds_look_at_other_entries(toy: Path, sampled: Evidence) -> None:
    other = score(toy, sample="1/4", sample_seed=1)
    assert not np.array_equal(other.redundancy[0], sampled.redundancy[0])


def test_a_signal_kept_beside_it_has_its_errors_too(toy: Path) -> None:
    found = score(toy, estimator="router-cosine", signals="nmi,aimer", sample="1/4")
    assert set(found.signals) == {"nmi", "aimer", "nmi-error"}
    assert not found.errors


def test_plan_inspect_card_and_report_say_that_scores_are_estimates(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "cores are estimated from 1/4 of the entries, with a standard error of 0.0"
    evidence, made, out, run = (tmp_path / name for name in ("e.safetensors", "plan.json", "out", "run"))

    def printed(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["moeits", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return " ".join(capsys.readouterr().out.split())

    four = ("--experts-per-layer", "4")
    assert says in printed("score", toy, "--sample", "1/4", "-o", evidence)
    assert says in printed("plan", evidence, *four, "-o", made)
    assert says in printed("inspect", made)
    assert says in printed("simplify", toy, "--sample", "1/4", *four, "-o", out)
    assert says in " ".join((out / "README.md").read_text().split())
    printed("sweep", toy, "--sample", "1/4", "--tau", "0,1", "--control", "0", "-o", run)
    printed("report", run, "-o", tmp_path / "page.html")
    assert says in (tmp_path / "page.html").read_text()


def test_pairs_that_chance_lifts_do_not_lift_a_layer_off_its_floor(toy: Path) -> None:
    rng, inventory = np.random.default_rng(0), score(toy).inventory
    count = 64
    floor = np.full((count, count), 0.01) - 0.01 * np.eye(count)
    noise = np.triu(rng.normal(0, 0.001, (count, count)), 1)
    errors = 0.001 * (1 - np.eye(count))
    known = Evidence(inventory=inventory, redundancy={0: floor + noise + noise.T}, floor={0: floor})
    assert known.above_noise()["layers_on_noise_floor"] == []
    estimates = replace(known, signals={"redundancy-error": {0: errors}})
    assert estimates.above_noise()["layers_on_noise_floor"] == [0]
    assert estimates.above_noise()["redundancy"]["0"]["standard_error"] == pytest.approx(0.001)


def test_evidence_of_two_samples_is_not_merged(toy: Path, sampled: Evidence) -> None:
    beside = score(toy, estimator="router-cosine", signals="nmi", sample="1/2")
    beside = replace(beside, redundancy={}, floor={})
    with pytest.raises(EvidenceError, match=r"from different samples \(from 1/2 of .*, from 1/4 of .*\)\. Score them"):
        merged([sampled, beside])
    exact = replace(score(toy, estimator="router-cosine", signals="nmi"), redundancy={}, floor={})
    with pytest.raises(EvidenceError, match=r"from different samples \(exact, from 1/4"):
        merged([sampled, exact])
    assert merged([sampled, replace(score(toy, signals="aimer"), redundancy={}, floor={})]).errors == sampled.errors


def test_a_signal_without_an_estimate_takes_no_sample() -> None:
    with pytest.raises(SettingError, match=r"router-cosine has no setting sample \(1/4\): leave --sample out\."):
        Scoring(estimator="router-cosine", sample="1/4").measured()


@pytest.mark.parametrize("setting", [{"sample": "1/4"}, {"estimator": "correlation"}, {"signals": "aimer"}])
def test_what_is_asked_of_a_scoring_that_nobody_does_is_refused(
    toy: Path, tmp_path: Path, setting: dict[str, str]
) -> None:
    ((name, value),) = setting.items()
    for criterion in ("reap", "random"):
        says = f"--criterion {criterion} scores no weights, so --{name} {value} has no effect: leave --{name} out"
        with pytest.raises(SettingError, match=says):
            moeits.simplify(toy, criterion=criterion, reduction=0.5, output=tmp_path / "out", **setting)
    assert not list(tmp_path.glob("out*"))


def test_a_sample_that_is_too_small_is_said_with_the_names_of_the_weights(toy: Path) -> None:
    with pytest.raises(SettingError, match=r"experts\.\d\.gate_proj\.weight: a sample of 12 of 12288 entries is"):
        score(toy, sample="1/1000")
