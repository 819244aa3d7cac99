"""Scoring a checkpoint: R_ij = sum_m w_m NMI(W_m of i, W_m of j), whatever the files, threads and memory."""

import hashlib
import json
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, NonFiniteWeight, OutputError, SettingError, UnscorableWeight
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.signals import Memory
from moeits.signals.aimer import Aimer
from moeits.signals.nmi import NMI, Codes
from moeits.signals.router_cosine import RouterCosine
from moeits.stages.plan import plan
from moeits.stages.score import score
from tests.test_nmi import naive_nmi
from tests.toys import (
    DTYPES,
    ONE_BY_ONE,
    expert_name,
    fuse,
    make_toy,
    moe_layers,
    num_experts,
    read_config,
    read_tensors,
    reshard,
    write_checkpoint,
)

PAPERS_OWN = ("deepseek_v2", "mixtral", "qwen2_moe")
FORMS = [(name, dtype) for name in ONE_BY_ONE for dtype in DTYPES if dtype == "bfloat16" or name in PAPERS_OWN]
PAPER = {"gate": 1 / 3, "up": 1 / 3, "down": 1 / 3}


def naive_redundancy(folder: Path, layer: int, weights: dict[str, float]) -> np.ndarray:
    """Equation 10 over the naive NMI, from the tensors as stock safetensors reads them."""
    config, tensors = read_config(folder), read_tensors(folder)
    count = num_experts(config)
    there = architecture_of(config).projections
    whole = sum(weight for projection, weight in weights.items() if projection in there)
    weights = {projection: weight / whole for projection, weight in weights.items() if projection in there}
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            for projection, weight in weights.items():
                if i != j:
                    a, b = (tensors[expert_name(config, layer, expert, projection)] for expert in (i, j))
                    found[i, j] += weight * naive_nmi(a, b)
    return found


def same_matrices(a: Evidence, b: Evidence) -> bool:
    return all(
        getattr(a, kind).keys() == getattr(b, kind).keys()
        and all(np.array_equal(getattr(a, kind)[layer], getattr(b, kind)[layer]) for layer in getattr(a, kind))
        for kind in ("redundancy", "floor")
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Every (layer, expert, projection) that is read from the checkpoint, in order."""
    seen: list[tuple[int, int, str]] = []
    read = MoELayout.read

    def recording(self: MoELayout, checkpoint: Any, layer: int, expert: int, projection: str) -> np.ndarray:
        seen.append((layer, expert, projection))
        return read(self, checkpoint, layer, expert, projection)

    monkeypatch.setattr(MoELayout, "read", recording)
    return seen


# ---------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(("model_type", "dtype"), FORMS)
def test_redundancy_is_the_mean_of_the_naive_scores_of_the_projections(
    tmp_path: Path, model_type: str, dtype: str
) -> None:
    toy = make_toy(tmp_path / "toy", model_type, experts=4, layers=2, dtype=dtype)
    evidence = score(toy)
    assert list(evidence.redundancy) == moe_layers(read_config(toy))
    for layer, redundancy in evidence.redundancy.items():
        assert redundancy == pytest.approx(naive_redundancy(toy, layer, PAPER), abs=1e-11)
        assert np.array_equal(redundancy, redundancy.T)
        assert not redundancy.diagonal().any()


def test_a_pair_of_a_trained_model_scores_what_the_naive_histograms_say(trained: Path) -> None:
    config, tensors = read_config(trained), read_tensors(trained)
    evidence = score(trained)
    layer = moe_layers(config)[-1]
    for i, j in ((0, 1), (2, 7)):
        naive = [
            naive_nmi(*(tensors[expert_name(config, layer, expert, projection)] for expert in (i, j)))
            for projection in PAPER
        ]
        assert evidence.redundancy[layer][i, j] == pytest.approx(np.mean(naive), abs=1e-11)


@pytest.mark.parametrize(("model_type", "dtype"), FORMS)
def test_per_expert_fused_and_resharded_copies_score_and_plan_alike(
    tmp_path: Path, model_type: str, dtype: str
) -> None:
    toy = make_toy(tmp_path / "toy", model_type, experts=4, layers=2, dtype=dtype)
    evidence = score(toy)
    made = plan(evidence, reduction=0.3)
    copies = [reshard(toy, tmp_path / "resharded", shards=3), fuse(toy, tmp_path / "fused")]
    copies.append(fuse(toy, tmp_path / "fused-resharded", shards=2))
    for copy in copies:
        other = score(copy)
        assert same_matrices(other, evidence)
        planned = plan(other, reduction=0.3)
        assert (planned.kept, planned.order, planned.summary) == (made.kept, made.order, made.summary)
    assert score(copies[0]).fingerprint == evidence.fingerprint


# How the stock class takes the two apart (its forward, read): the gate first, or in the even columns.
GATE_AND_UP = {
    "granitemoe": lambda stacked: (stacked[:12], stacked[12:]),
    "llama4_text": lambda stacked: (stacked[:, :12], stacked[:, 12:]),
    "gpt_oss": lambda stacked: (stacked[:, ::2], stacked[:, 1::2]),
}


@pytest.mark.parametrize("model_type", GATE_AND_UP)
def test_projections_of_experts_that_are_only_ever_fused_are_told_apart(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, experts=4, layers=1)
    tensors = read_tensors(toy)
    (both,) = (value for value in tensors.values() if value.ndim == 3 and 24 in value.shape)
    (down,) = (value for value in tensors.values() if value.ndim == 3 and 24 not in value.shape)
    checkpoint = Checkpoint.open(toy)
    layout = MoELayout.of(checkpoint)
    rows = model_type == "granitemoe"
    for expert in range(4):
        expected = (*GATE_AND_UP[model_type](both[expert]), down[expert])
        for projection, weight in zip(PAPER, expected, strict=True):
            found = layout.read(checkpoint, 0, expert, projection)
            assert found.shape == ((32, 12) if projection == "down" else (12, 32))
            assert np.array_equal(found, weight if rows else weight.T)
    gates = [GATE_AND_UP[model_type](both[expert])[0] for expert in (0, 3)]
    gate_only = score(toy, projection_weights={"gate": 1, "up": 0, "down": 0})
    assert gate_only.redundancy[0][0, 3] == pytest.approx(naive_nmi(*gates), abs=1e-11)


def test_a_copied_expert_is_wholly_redundant_and_a_permuted_one_is_not_seen(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    config, tensors = read_config(toy), read_tensors(toy)
    for projection in PAPER:
        original = tensors[expert_name(config, 0, 0, projection)]
        tensors[expert_name(config, 0, 1, projection)] = original
        # The same function: rows of gate and up and columns of down, all moved by one.
        axis = 1 if projection == "down" else 0
        tensors[expert_name(config, 0, 2, projection)] = np.roll(original, 1, axis=axis)
    evidence = score(write_checkpoint(tmp_path / "copied", config, tensors))
    redundancy, floor = evidence.redundancy[0], evidence.floor[0]
    assert redundancy[0, 1] == pytest.approx(1, abs=1e-12)
    # One score of 384 entries scatters by some 10 % about its floor.
    assert redundancy[0, 2] == pytest.approx(floor[0, 2], rel=0.3)


# SHA-256 of the estimator, the settings and the matrices that 0.1.0 wrote, before signals had a room of their own.
OF_RELEASE_0_1 = {
    ("qwen2_moe", "bfloat16", "paper"): "3004b0e58f5dc010819d3631af51508463df86865668b754fd15b1947e501bb8",
    ("qwen2_moe", "float32", "paper"): "5b10d173f56e4ad93650ccf159c81e0f66644efc73dc52016f3ee2b366bb8c06",
    ("mixtral", "float16", "paper"): "18d6151fd7799fcf1ada3b27f8c84ed1b59843afdae53b0dc0c9ed9ce3e30474",
    ("deepseek_v2", "float32", "authors-code"): "ea0bf707e026a10b373a02c9a55062d3312460263215406f33a110b106f90fbe",
}


@pytest.mark.parametrize(("model_type", "dtype", "preset"), OF_RELEASE_0_1)
def test_scores_and_settings_are_byte_for_byte_those_of_the_first_release(
    tmp_path: Path, model_type: str, dtype: str, preset: str
) -> None:
    toy = make_toy(tmp_path / f"{model_type}-{dtype}", model_type, dtype=dtype)
    score(toy, preset=preset, output=tmp_path / "evidence")
    with safe_open(tmp_path / "evidence", framework="numpy") as file:
        facts = json.loads(file.metadata()["moeits"])
        tensors = [(name, file.get_tensor(name)) for name in sorted(file.keys())]
    said = json.dumps([facts["estimator"], facts["settings"]]).encode()
    matrices = b"".join(name.encode() + tensor.tobytes() for name, tensor in tensors)
    assert hashlib.sha256(said + matrices).hexdigest() == OF_RELEASE_0_1[model_type, dtype, preset]


# ---------------------------------------------------------------------------------------------- other signals


def rows_of_the_router(folder: Path, layer: int) -> np.ndarray:
    (router,) = (
        value
        for name, value in read_tensors(folder).items()
        if f"layers.{layer}." in name and name.endswith("mlp.gate.weight")
    )
    return router.astype(np.float64)


def entries_of_experts(folder: Path, layer: int) -> np.ndarray:
    """(E, entries): all projections of each expert as one row."""
    config, tensors = read_config(folder), read_tensors(folder)
    return np.array(
        [
            np.concatenate([tensors[expert_name(config, layer, expert, each)].ravel() for each in PAPER])
            for expert in range(num_experts(config))
        ],
        np.float64,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_signals_are_what_numpy_says_and_stand_beside_the_redundancy(tmp_path: Path, dtype: str) -> None:
    toy = make_toy(tmp_path / "toy", dtype=dtype)
    asked = "router-cosine,aimer,weight-norm,router-norm"
    evidence = score(toy, signals=asked, router_norm="l1", output=tmp_path / "evidence")
    assert same_matrices(evidence, score(toy))
    assert list(evidence.signals) == asked.split(",")
    for layer in evidence.layers:
        rows, entries = rows_of_the_router(toy, layer), entries_of_experts(toy, layer)
        cosine = np.corrcoef(np.hstack([rows, -rows]))  # of rows whose mean is 0
        np.fill_diagonal(cosine, 0)
        expected = {
            "router-cosine": cosine,
            "aimer": np.abs(entries).mean(axis=1) / np.sqrt(np.square(entries).mean(axis=1)),
            "weight-norm": np.linalg.norm(entries, axis=1),
            "router-norm": np.linalg.norm(rows, ord=1, axis=1),
        }
        for name, values in expected.items():
            assert evidence.signals[name][layer] == pytest.approx(values, rel=1e-12, abs=1e-12)
    assert evidence.settings["signals"] == asked.split(",")
    assert evidence.settings["router_norm"] == "l1"
    read = Evidence.load(tmp_path / "evidence")
    assert read.settings == evidence.settings
    assert set(read.signals) == set(evidence.signals)
    for name, layers in evidence.signals.items():
        assert all(np.array_equal(read.signals[name][layer], values) for layer, values in layers.items())


def test_aimer_of_gaussian_and_of_flat_weights_is_what_its_paper_says() -> None:
    rng = np.random.default_rng(0)
    assert Aimer().measure({"up": rng.standard_normal((700, 700))}) == pytest.approx(np.sqrt(2 / np.pi), abs=2e-3)
    assert Aimer().measure({"up": rng.laplace(size=(700, 700))}) == pytest.approx(np.sqrt(0.5), abs=2e-3)
    assert Aimer().measure({"up": np.full((3, 5), -0.25)}) == 1.0


def test_another_pair_signal_can_be_the_redundancy(toy: Path, tmp_path: Path) -> None:
    evidence = score(toy, estimator="router-cosine", output=tmp_path / "evidence")
    beside = score(toy, signals="router-cosine")
    for layer, redundancy in evidence.redundancy.items():
        assert np.array_equal(redundancy, beside.signals["router-cosine"][layer])
        assert np.array_equal(redundancy, redundancy.T)
    assert evidence.floor == {}
    assert plan(Evidence.load(tmp_path / "evidence"), experts_per_layer=3).kept.keys() == evidence.redundancy.keys()


@pytest.mark.parametrize("signals", ["aimer", "router-cosine"])
def test_signals_of_a_fused_and_of_a_tiled_checkpoint_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: str
) -> None:
    toy = make_toy(tmp_path / "toy", experts=5, layers=1)
    whole = score(toy, signals=signals).signals[signals][0]
    fused = score(fuse(toy, tmp_path / "fused"), signals=signals, threads=3).signals[signals][0]
    assert np.array_equal(whole, fused)
    monkeypatch.setattr(RouterCosine, "memory", lambda *_: Memory(encoded=1 << 20, encoding=0, comparing=0))
    monkeypatch.setattr(NMI, "memory", lambda *_: Memory(encoded=1, encoding=0, comparing=0))
    tiled = score(toy, signals=signals, threads=1, memory=(2 << 20) + 10_000_000 * (signals == "aimer") + 10_000)
    assert np.array_equal(whole, tiled.signals[signals][0])


def test_signals_are_kept_with_the_finished_layers(interrupted: Path, tmp_path: Path, reads: list[Any]) -> None:
    score(interrupted, output=tmp_path / "evidence", signals="aimer")
    assert {layer for layer, _, _ in reads} == {0, 1, 2}, "layers that were finished without it do not have it"


def test_a_weight_that_a_signal_cannot_take_is_named(tmp_path: Path) -> None:
    bad = spoiled(tmp_path / "bad", "model.layers.1.mlp.gate.weight", np.nan)
    with pytest.raises(NonFiniteWeight, match=r"^model\.layers\.1\.mlp\.gate\.weight\[3\]: the weight holds NaN"):
        score(bad, signals="router-norm")


def test_too_little_memory_for_an_expert_is_a_sentence(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Aimer, "memory", lambda *_: 1 << 30)
    with pytest.raises(SettingError, match=r"too little for aimer of an expert of layer 0: give 1.0 GiB or more"):
        score(toy, signals="aimer", memory="256MiB")


# ---------------------------------------------------------------------------------------------- threads and memory


def memory_for(monkeypatch: pytest.MonkeyPatch, experts: int, itemsize: int, threads: int = 1) -> int:
    """A memory bound that allows so many encoded experts of a toy, beside one that each thread reads."""
    entries = 384
    small = Memory(encoded=2 * entries, encoding=1000, comparing=2000)
    monkeypatch.setattr(NMI, "memory", lambda *_: small)
    return threads * max(itemsize * entries + small.encoding, small.comparing) + experts * small.encoded


@dataclass
class Alive:
    """How many encoded experts are alive, and how many were at their most."""

    now: int = 0
    most: int = 0
    encoded: int = 0


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    counted, lock, encode = Alive(), threading.Lock(), NMI.encode

    def gone() -> None:
        with lock:
            counted.now -= 1

    def counting(self: NMI, parts: Any) -> Codes:
        codes = encode(self, parts)
        with lock:
            counted.now += 1
            counted.encoded += 1
            counted.most = max(counted.most, counted.now)
        weakref.finalize(codes, gone)
        return codes

    monkeypatch.setattr(NMI, "encode", counting)
    return counted


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("allowed", [2, 3, 8, 23, 24, 100])
def test_no_more_experts_are_encoded_at_a_time_than_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: Alive, allowed: int, threads: int
) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe", experts=24, top_k=2, layers=2)
    score(toy, threads=threads, memory=memory_for(monkeypatch, allowed, 2, threads))
    # All of what is allowed is used, and nothing beyond it.
    assert alive.most == min(allowed, 24)
    assert alive.now == 0


def test_of_the_experts_that_are_compared_again_few_are_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: Alive
) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe", experts=24, top_k=2, layers=1)
    score(toy, threads=1, memory=memory_for(monkeypatch, 9, 2))
    # Rows of 8, and of the other experts one at a time: 8 + 16, 8 + 8 and 8 for each of three projections; the last
    # expert is still there when its own rows come.
    assert alive.encoded == 3 * (24 + 16 + 7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("block", [1, 2])
def test_little_memory_changes_nothing_but_how_often_experts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Any], dtype: str, block: int
) -> None:
    toy = make_toy(tmp_path / "toy", experts=5, layers=2, dtype=dtype)
    whole = score(toy, threads=1)
    once = len(reads)
    assert once == 2 * 5 * 3
    memory = memory_for(monkeypatch, 2 * block, np.dtype(DTYPES[dtype]).itemsize)
    tiled = score(toy, threads=1, memory=memory)
    assert len(reads) - once > once
    assert same_matrices(whole, tiled)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", experts=8)
    for threads in (1, 2, 3):
        score(toy, threads=threads, output=tmp_path / f"{threads}.safetensors")
    files = [(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 3)]
    assert files[0] == files[1] == files[2]


def test_too_little_memory_is_a_sentence_that_says_how_much_is_enough(toy: Path) -> None:
    with pytest.raises(SettingError, match=r"--memory 1.0 MiB is too little .* give 64.0 MiB or more"):
        score(toy, threads=1, memory="1MiB")


def test_ctrl_c_ends_a_scoring_when_the_pairs_at_hand_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe", experts=32, top_k=2, layers=1)
    compared: list[int] = []

    def slowly(*_: object) -> float:
        compared.append(1)
        time.sleep(0.02)
        return 0.0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NMI, "compare_two", slowly)
    with pytest.raises(KeyboardInterrupt):
        score(toy, threads=2, progress=interrupted)
    # Of 496 pairs of the first projection: what two threads had done when the first strip of 16 was shown, and were at.
    assert len(compared) <= 4 * 16


# ---------------------------------------------------------------------------------------------- evidence


def test_evidence_says_how_it_was_made_defaults_included(toy: Path) -> None:
    evidence = score(toy)
    assert (evidence.estimator, evidence.source, evidence.model_type) == ("nmi", "toy", "qwen2_moe")
    assert evidence.settings == {"preset": "paper", "bins": "auto", "projection_weights": PAPER, "diagonal": "zero"}
    facts = evidence.layers[0]
    assert (facts.num_experts, facts.top_k, facts.groups) == (6, 2, 1)
    assert (facts.sizes.parameters, facts.sizes.nbytes) == (3 * 384, 2 * 3 * 384)
    assert (facts.sizes.router_parameters, facts.sizes.router_nbytes) == (32, 64)
    total = sum(tensor.size for tensor in read_tensors(toy).values())
    assert evidence.inventory.other_parameters == total - 3 * 6 * (3 * 384 + 32)


def test_scoring_twice_gives_the_same_bytes_and_leaves_the_source_alone(toy: Path, tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in toy.iterdir()}

    before = digests()
    for name in ("a", "b"):
        score(toy, output=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert digests() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "toy"]


def test_progress_rises_to_the_number_of_pairs(toy: Path) -> None:
    seen: list[tuple[int, int]] = []
    score(toy, verify="sampled", progress=lambda _, done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {3 * 3 * 15}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 3 * 3 * 15


# ---------------------------------------------------------------------------------------------- resuming


class Killed(Exception):
    """Stands for a process that ends in the middle."""


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A toy whose scoring into `evidence` was killed in its second layer."""
    toy = make_toy(tmp_path / "toy")
    read = MoELayout.read

    def dying(self: MoELayout, checkpoint: Any, layer: int, expert: int, projection: str) -> np.ndarray:
        if layer == 1 and projection == "up":
            raise Killed
        return read(self, checkpoint, layer, expert, projection)

    with monkeypatch.context() as patch:
        patch.setattr(MoELayout, "read", dying)
        with pytest.raises(Killed):
            score(toy, output=tmp_path / "evidence")
    return toy


def test_an_interrupted_scoring_goes_on_where_it_was(interrupted: Path, tmp_path: Path, reads: list[Any]) -> None:
    assert not (tmp_path / "evidence").exists()
    assert (tmp_path / "evidence.partial").is_dir()
    resumed = score(interrupted, output=tmp_path / "evidence")
    assert {layer for layer, _, _ in reads} == {1, 2}
    assert not (tmp_path / "evidence.partial").exists()
    assert same_matrices(resumed, score(interrupted))
    score(interrupted, output=tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "evidence").read_bytes()


def test_a_finished_layer_that_cannot_be_read_is_scored_again(
    interrupted: Path, tmp_path: Path, reads: list[Any]
) -> None:
    (finished,) = (tmp_path / "evidence.partial").rglob("*.safetensors")
    finished.write_bytes(b"")
    resumed = score(interrupted, output=tmp_path / "evidence")
    assert {layer for layer, _, _ in reads} == {0, 1, 2}
    assert same_matrices(resumed, score(interrupted))


DAMAGED = {
    "nothing": {},
    "other names": {"R": np.zeros((6, 6))},
    "another shape": {"redundancy": np.zeros((4, 4)), "floor": np.zeros((4, 4))},
    "another dtype": {"redundancy": np.zeros((6, 6), np.float32), "floor": np.zeros((6, 6))},
    "NaN": {"redundancy": np.full((6, 6), np.nan), "floor": np.zeros((6, 6))},
    "not symmetric": {"redundancy": np.triu(np.ones((6, 6)), 1), "floor": np.zeros((6, 6))},
    "a diagonal": {"redundancy": np.eye(6), "floor": np.zeros((6, 6))},
    "a signal of other settings": {"redundancy": np.zeros((6, 6)), "floor": np.zeros((6, 6)), "aimer": np.zeros(6)},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_finished_layer_that_cannot_be_one_is_scored_again(
    interrupted: Path, tmp_path: Path, reads: list[Any], damage: str
) -> None:
    (finished,) = (tmp_path / "evidence.partial").rglob("*.safetensors")
    finished.write_bytes(save(DAMAGED[damage]))
    resumed = score(interrupted, output=tmp_path / "evidence")
    assert {layer for layer, _, _ in reads} == {0, 1, 2}
    assert same_matrices(resumed, score(interrupted))


def test_settings_that_make_no_sense_forget_nothing(interrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        score(interrupted, output=tmp_path / "evidence", fresh=True, threads=0)
    assert (tmp_path / "evidence.partial").is_dir()


def test_fresh_forgets_what_was_finished(interrupted: Path, tmp_path: Path, reads: list[Any]) -> None:
    score(interrupted, output=tmp_path / "evidence", fresh=True)
    assert {layer for layer, _, _ in reads} == {0, 1, 2}


@pytest.mark.parametrize(
    "other", [{"bins": 16}, {"preset": "authors-code"}, {"diagonal": "excluded"}, {"projection_weights": "gate"}]
)
def test_layers_finished_with_other_settings_are_not_taken(
    interrupted: Path, tmp_path: Path, reads: list[Any], other: dict[str, Any]
) -> None:
    if "projection_weights" in other:
        other = {"projection_weights": {"gate": 1, "up": 0, "down": 0}}
    score(interrupted, output=tmp_path / "evidence", **other)
    assert {layer for layer, _, _ in reads} == {0, 1, 2}


def test_layers_finished_by_another_estimator_are_not_taken(
    interrupted: Path, tmp_path: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(NMI):
        name = "other"

    monkeypatch.setattr("moeits.signals.settings.PAIR_SIGNALS", (NMI, Other))
    score(interrupted, output=tmp_path / "evidence", estimator="other")
    assert {layer for layer, _, _ in reads} == {0, 1, 2}


def test_layers_finished_of_another_checkpoint_are_not_taken(
    interrupted: Path, tmp_path: Path, reads: list[Any]
) -> None:
    assert interrupted.is_dir()
    score(make_toy(tmp_path / "other", seed=1), output=tmp_path / "evidence")
    assert {layer for layer, _, _ in reads} == {0, 1, 2}


# ---------------------------------------------------------------------------------------------- weights of projections


AUTHORS = {"gate": 0.2, "up": 0.4, "down": 0.4}


@pytest.mark.parametrize("model_type", ["deepseek_v2", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_authors_code_weighs_projections_as_their_program_does(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, layers=2)
    expected = AUTHORS if model_type in {"qwen2_moe", "deepseek_v2"} else PAPER
    evidence = score(toy, preset="authors-code")
    assert evidence.settings["projection_weights"] == expected
    assert evidence.redundancy[1] == pytest.approx(naive_redundancy(toy, 1, expected), abs=1e-11)


def test_projections_can_be_weighed_by_hand_and_those_of_weight_zero_are_not_read(
    toy: Path, reads: list[tuple[int, int, str]]
) -> None:
    weights = {"down": 0.75, "gate": 0.25, "up": 0}
    evidence = score(toy, projection_weights=weights)
    assert evidence.redundancy[0] == pytest.approx(naive_redundancy(toy, 0, weights), abs=1e-11)
    assert evidence.settings["projection_weights"] == weights
    assert {projection for _, _, projection in reads} == {"gate", "down"}


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"gate": 1},
        {"gate": 0.5, "up": 0.5, "down": 0.5},
        {"gate": 1.5, "up": -0.5, "down": 0},
        {"gate": 0.5, "up": 0.5, "down": 0, "middle": 0},
        {"gate": float("nan"), "up": 0.5, "down": 0.5},
    ],
)
def test_weights_that_are_none_are_a_sentence(toy: Path, weights: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=r"--projection-weights must give gate, up, down weights .* sum to 1; got"):
        score(toy, projection_weights=weights)


def test_the_number_of_bins_can_be_fixed(toy: Path) -> None:
    config, tensors = read_config(toy), read_tensors(toy)
    names = [[expert_name(config, 2, expert, projection) for expert in (0, 5)] for projection in PAPER]
    evidence = score(toy, bins="16")
    expected = np.mean([naive_nmi(tensors[a], tensors[b], bins=16) for a, b in names])
    assert evidence.redundancy[2][0, 5] == pytest.approx(expected, abs=1e-11)
    assert evidence.settings["bins"] == 16


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"preset": "papers"}, "--preset papers is not one of paper, authors-code"),
        ({"diagonal": "one"}, "--diagonal one is not one of zero, excluded"),
        ({"threads": 0}, "--threads 0 is out of range"),
        ({"memory": "much"}, "--memory much is not a size"),
        ({"bins": 0}, "--bins 0 is out of range"),
        (
            {"estimator": "nmj"},
            "none. Did you mean 'nmi'?",
        ),
    ],
)
def test_settings_that_make_no_sense_are_sentences(toy: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError) as raised:
        score(toy, **arguments)
    assert sentence in str(raised.value)


# ---------------------------------------------------------------------------------------------- bad weights


def spoiled(folder: Path, name: str, value: float, **toy: Any) -> Path:
    source = make_toy(folder.with_name("source"), **toy)
    tensors = read_tensors(source)
    tensors[name] = tensors[name].copy()
    tensors[name][3, 4] = value
    return write_checkpoint(folder, read_config(source), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_tensor_and_leave_no_evidence(tmp_path: Path, value: float, dtype: str) -> None:
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    bad = spoiled(tmp_path / "bad", name, value, dtype=dtype)
    with pytest.raises(NonFiniteWeight) as raised:
        score(bad, output=tmp_path / "evidence")
    assert str(raised.value) == f"{name}: the weight holds NaN or infinity."
    assert not (tmp_path / "evidence").exists()
    with pytest.raises(NonFiniteWeight, match=r"mlp\.experts\.gate_up_proj\[4\] \(up\): the weight holds NaN"):
        score(fuse(bad, tmp_path / "fused"))


def test_nan_outside_the_experts_is_not_looked_for(tmp_path: Path) -> None:
    bad = spoiled(tmp_path / "bad", "model.layers.0.self_attn.q_proj.weight", np.nan)
    assert list(score(bad).redundancy) == [0, 1, 2]


def test_weights_that_can_only_be_moved_name_the_tensor(tmp_path: Path) -> None:
    source = make_toy(tmp_path / "source")
    tensors = read_tensors(source)
    packed = {n: t.astype(np.int8) if ".experts." in n else t for n, t in tensors.items()}
    with pytest.raises(
        UnscorableWeight, match=r"layers\.0\.mlp\.experts\.0\.gate_proj\.weight \(I8\): experts quantized in this way"
    ):
        score(write_checkpoint(tmp_path / "packed", read_config(source), packed))


def test_dead_experts_of_constant_weights_share_nothing(tmp_path: Path) -> None:
    source = make_toy(tmp_path / "source", layers=1)
    config, tensors = read_config(source), read_tensors(source)
    for projection in PAPER:
        for expert in (1, 3):
            tensors[expert_name(config, 0, expert, projection)] *= 0
    evidence = score(write_checkpoint(tmp_path / "dead", config, tensors))
    assert not evidence.redundancy[0][[1, 3]].any()
    assert evidence.above_noise()["redundancy"]["0"]["noise_floor"] > 0


def test_experts_of_one_number_and_a_layer_of_one_expert_can_be_scored(tmp_path: Path) -> None:
    evidence = score(make_toy(tmp_path / "toy", experts=1, top_k=1))
    assert evidence.redundancy[0].shape == (1, 1)
    assert plan(evidence, tau=1.0).kept == {0: (0,), 1: (0,), 2: (0,)}


def test_a_checkpoint_that_is_no_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        score(tmp_path / "empty")


def test_evidence_that_cannot_be_written_is_a_sentence(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        score(toy, output=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another --output"):
        score(toy, output=tmp_path / "file" / "evidence")


def test_encoding_happens_once_per_weight_not_once_per_pair(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = NMI.encode
    monkeypatch.setattr(NMI, "encode", lambda self, parts: encoded.append(1) or encode(self, parts))
    score(toy)
    assert len(encoded) == 3 * 3 * 6
