"""Evidence on disk: what scoring found, with all that planning needs to know."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import EvidenceError, MoeitsError, OutputError
from moeits.evidence import Evidence
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.files import write_whole
from moeits.stages.plan import plan
from moeits.stages.score import score
from tests.test_files import full_disk
from tests.toys import MODEL_TYPES, make_toy, random_redundancy, read_tensors, toy_evidence


def made_up(layers: int = 3, **changes: Any) -> Evidence:
    rng = np.random.default_rng(0)
    matrices = {i: random_redundancy(rng, 6) for i in range(1, layers + 1)}
    floors = {i: 0.3 * matrix for i, matrix in matrices.items()}
    return toy_evidence(matrices, **{"top_k": 2, "floor": floors, **changes})


def assert_same(a: Evidence, b: Evidence) -> None:
    for kind in ("redundancy", "floor"):
        mine, other = getattr(a, kind), getattr(b, kind)
        assert list(mine) == list(other)
        assert all(np.array_equal(mine[layer], other[layer]) for layer in mine)
    assert replace(a, redundancy={}, floor={}) == replace(b, redundancy={}, floor={})


def test_evidence_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for number, evidence in enumerate((made_up(), made_up(floor={}), made_up(layers=1, groups=2))):
        evidence.save(tmp_path / str(number))
        assert_same(Evidence.load(tmp_path / str(number)), evidence)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_evidence_of_every_architecture_is_read_back_and_planned_from(tmp_path: Path, model_type: str) -> None:
    evidence = score(make_toy(tmp_path / "toy", model_type), output=tmp_path / "evidence")
    read = Evidence.load(tmp_path / "evidence")
    assert_same(read, evidence)
    assert plan(tmp_path / "evidence", tau=0.5) == plan(evidence, tau=0.5)


def test_evidence_is_a_safetensors_file_that_anyone_can_open(tmp_path: Path) -> None:
    made_up().save(tmp_path / "evidence.safetensors")
    tensors = load_file(tmp_path / "evidence.safetensors")
    assert sorted(tensors) == [f"layers.{i}.{kind}" for i in (1, 2, 3) for kind in ("floor", "redundancy")]
    assert {(t.dtype, t.shape) for t in tensors.values()} == {(np.dtype(np.float64), (6, 6))}
    with safe_open(tmp_path / "evidence.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["moeits"])
    assert (facts["format"], facts["model_type"], facts["estimator"]) == (1, "qwen2_moe", "nmi")
    assert facts["layers"]["1"] == {
        "num_experts": 6,
        "top_k": 2,
        "groups": 1,
        "sizes": {"parameters": 100, "nbytes": 200, "router_parameters": 10, "router_nbytes": 20},
        "least_per_group": 1,
    }
    assert (facts["other_parameters"], facts["other_bytes"]) == (1000, 2000)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sizes_add_up_to_those_of_the_checkpoint(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float16")
    checkpoint = Checkpoint.open(toy)
    facts = Inventory.of(checkpoint, MoELayout.of(checkpoint))
    tensors = read_tensors(toy).values()
    routed = [(f.num_experts, f.sizes) for f in facts.layers.values()]
    assert facts.other_parameters + sum(n * (s.parameters + s.router_parameters) for n, s in routed) == sum(
        t.size for t in tensors
    )
    assert facts.other_bytes + sum(n * (s.nbytes + s.router_nbytes) for n, s in routed) == sum(
        t.nbytes for t in tensors
    )


# ---------------------------------------------------------------------------------------------- above the noise


def test_layers_on_their_noise_floor_are_named() -> None:
    floor = np.full((6, 6), 0.01)
    noise, signal = 1.05 * floor, 1.05 * floor
    signal[0, 1] = signal[1, 0] = 0.02
    evidence = toy_evidence({3: noise, 4: signal}, floor={3: floor, 4: floor})
    facts = evidence.above_noise()
    assert facts["layers_on_noise_floor"] == [3]
    assert facts["redundancy"]["4"]["max"] == 0.02
    assert facts["redundancy"]["4"]["noise_floor"] == pytest.approx(0.01)
    assert facts["redundancy"]["4"]["max_over_noise_floor"] == pytest.approx(2)
    assert plan(evidence, tau=1).summary["layers_on_noise_floor"] == [3]


def test_a_random_toy_sits_on_its_noise_floor_and_one_with_copies_does_not(tmp_path: Path) -> None:
    evidence = score(make_toy(tmp_path / "toy", layers=1))
    floor = evidence.floor[0]
    copies = replace(evidence, redundancy={0: np.where(floor > 0, floor, 0) + np.eye(6)[::-1]})
    assert copies.above_noise()["layers_on_noise_floor"] == []
    on_floor = replace(evidence, redundancy={0: floor})
    assert on_floor.above_noise()["layers_on_noise_floor"] == [0]


def test_without_a_floor_nothing_is_said_of_noise() -> None:
    for floor in ({}, {1: np.zeros((6, 6))}):
        assert made_up(layers=1, floor=floor).above_noise() == {"redundancy": {}, "layers_on_noise_floor": []}


def test_one_dead_expert_does_not_hide_what_is_known_of_the_others() -> None:
    evidence = made_up(layers=1)
    for matrix in (evidence.redundancy[1], evidence.floor[1]):
        matrix[2], matrix[:, 2] = 0, 0
    assert evidence.above_noise()["redundancy"]["1"]["max_over_noise_floor"] == pytest.approx(1 / 0.3)


# ---------------------------------------------------------------------------------------------- broken evidence


def rewritten(tmp_path: Path, *, tensors: dict[str, np.ndarray] | None = None, **facts: Any) -> Path:
    """Evidence with other tensors, and with some of its facts changed; a fact of None is left out."""
    source, path = tmp_path / "source", tmp_path / "broken.safetensors"
    made_up().save(source)
    with safe_open(source, framework="numpy") as file:
        known = json.loads(file.metadata()["moeits"])
    kept = {key: value for key, value in {**known, **facts}.items() if value is not None}
    save_file({**load_file(source), **(tensors or {})}, path, metadata={"moeits": json.dumps(kept)})
    return path


def test_rewritten_evidence_with_nothing_changed_is_evidence(tmp_path: Path) -> None:
    assert_same(Evidence.load(rewritten(tmp_path)), made_up())


LAYER: dict[str, Any] = {
    "num_experts": 6,
    "top_k": 2,
    "groups": 1,
    "sizes": {"parameters": 100, "nbytes": 200, "router_parameters": 10, "router_nbytes": 20},
    "least_per_group": 1,
}


@pytest.mark.parametrize(
    "facts",
    [
        {"format": None},
        {"layers": None},
        {"layers": {"1": {"num_experts": 6}}},
        {"layers": {"first": {}}},
        {"layers": 7},
        {"fingerprint": None},
        {"layers": {}},
        {"layers": {"-1": LAYER}},
        {"layers": {"1": {**LAYER, "top_k": 0}}},
        {"layers": {"1": {**LAYER, "groups": 0}}},
        {"layers": {"1": {**LAYER, "groups": 4}}},
        {"layers": {"1": {**LAYER, "least_per_group": "two"}}},
        {"layers": {"1": {**LAYER, "num_experts": 10**400}}},
        {"layers": {"1": {**LAYER, "num_experts": 10**9}}},
        {"layers": {"1": {**LAYER, "sizes": {**LAYER["sizes"], "parameters": 0}}}},
        {"layers": {"1": {**LAYER, "sizes": {**LAYER["sizes"], "router_nbytes": -1}}}},
        {"layers": {"1": {**LAYER, "sizes": [1, 2, 3, 4]}}},
        {"other_bytes": 1.5},
        {"other_parameters": -1},
        {"other_parameters": 10**30},
        {"settings": []},
        {"settings": {"diagonal": []}},
        {"settings": {"bins": 10**400}},
        {"model_type": 7},
        {"estimator": ["nmi"]},
    ],
    ids=str,
)
def test_evidence_with_broken_facts_is_a_sentence(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=r"broken\.safetensors is not evidence .* Score the model again"):
        Evidence.load(rewritten(tmp_path, **facts))


def test_evidence_of_another_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="has format 2, and this moeits reads format 1"):
        Evidence.load(rewritten(tmp_path, format=2))


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((5, 5)), np.zeros(6), np.zeros((6, 7)), np.full((6, 6), np.nan), np.full((6, 6), np.inf)],
    ids=["too small", "a vector", "not square", "nan", "infinite"],
)
def test_a_matrix_that_is_none_is_a_sentence(tmp_path: Path, matrix: np.ndarray) -> None:
    with pytest.raises(EvidenceError, match=r"layers\.2\.redundancy"):
        Evidence.load(rewritten(tmp_path, tensors={"layers.2.redundancy": matrix}, tensors_sha256=None))


@pytest.mark.parametrize("value", [5.0, -0.5, 1e308])
def test_a_redundancy_that_no_estimate_of_it_gives_is_a_sentence(tmp_path: Path, value: float) -> None:
    impossible = made_up().redundancy[2].copy()
    impossible[0, 1] = impossible[1, 0] = value
    with pytest.raises(EvidenceError, match=r"layers\.2\.redundancy has entries out of range: they are from 0 to 1"):
        Evidence.load(rewritten(tmp_path, tensors={"layers.2.redundancy": impossible}, tensors_sha256=None))
    with pytest.raises(EvidenceError, match="symmetric with a diagonal of 0"):
        Evidence.load(rewritten(tmp_path, tensors={"layers.2.redundancy": np.ones((6, 6))}, tensors_sha256=None))


def test_scores_of_an_estimator_without_bounds_may_be_negative_but_not_endless(tmp_path: Path) -> None:
    scores = np.where(np.eye(6) > 0, 0.0, -3.0)
    path = rewritten(tmp_path, tensors={"layers.2.redundancy": scores}, tensors_sha256=None, estimator="of somebody")
    assert (Evidence.load(path).redundancy[2] == scores).all()
    path = rewritten(tmp_path, tensors={"layers.2.redundancy": scores * 1e300}, tensors_sha256=None, estimator="x")
    with pytest.raises(EvidenceError, match="entries out of range"):
        Evidence.load(path)


def test_matrices_that_changed_places_are_noticed(tmp_path: Path) -> None:
    evidence = made_up()
    one, two = evidence.redundancy[1], evidence.redundancy[2]
    swapped = {"layers.1.redundancy": two, "layers.2.redundancy": one}
    with pytest.raises(EvidenceError, match="changed, or mixed up, after it was written"):
        Evidence.load(rewritten(tmp_path, tensors=swapped))
    read = Evidence.load(rewritten(tmp_path, tensors=swapped, tensors_sha256=None))
    assert (read.redundancy[1] == two).all(), "evidence of 0.1 says nothing of its matrices"


def test_facts_of_a_newer_moeits_are_passed_over(tmp_path: Path) -> None:
    assert_same(Evidence.load(rewritten(tmp_path, unheard_of=1)), made_up())


def test_a_matrix_that_is_not_symmetric_is_a_sentence(tmp_path: Path) -> None:
    lopsided = made_up().redundancy[2].copy()
    lopsided[0, 1] += 0.25
    with pytest.raises(EvidenceError, match=r"layers\.2\.redundancy"):
        Evidence.load(rewritten(tmp_path, tensors={"layers.2.redundancy": lopsided}, tensors_sha256=None))


def test_a_layer_without_its_matrix_cannot_be_planned(tmp_path: Path) -> None:
    evidence = made_up()
    del evidence.redundancy[2]  # type: ignore[attr-defined]
    evidence.save(tmp_path / "evidence")
    with pytest.raises(EvidenceError, match=r"needs redundancy, and the evidence has none of layer 2"):
        plan(tmp_path / "evidence", tau=1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10\0\0\0\0\0\0\0{}", b"plain text, and rather a lot of it"])
def test_a_file_that_is_no_safetensors_is_no_evidence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "evidence").write_bytes(content)
    with pytest.raises(EvidenceError, match="Score the model again"):
        Evidence.load(tmp_path / "evidence")


def test_a_checkpoint_is_no_evidence_and_a_missing_file_says_how_to_make_it(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is not evidence that moeits score wrote"):
        Evidence.load(toy / "model.safetensors")
    with pytest.raises(EvidenceError, match=r"There is no evidence .* Make it with: moeits score MODEL --output"):
        Evidence.load(tmp_path / "evidence")
    with pytest.raises(MoeitsError):
        Evidence.load(tmp_path)


def test_evidence_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    made_up().save(path)
    before = path.read_bytes()

    with full_disk(), pytest.raises(OutputError, match="cannot be written: File too large"):
        made_up(layers=1).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["evidence"]


# ---------------------------------------------------------------------------------------------- where files go


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path, link: bool) -> None:
    pipe = output = tmp_path / "pipe"
    os.mkfifo(pipe)
    if link:
        output = tmp_path / "link"
        output.symlink_to(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        write_whole(output, b"content")
        assert read.result(timeout=10) == b"content"
    assert pipe.is_fifo()
    assert output.is_symlink() == link


def test_a_device_is_written_to_and_stays_a_device(toy: Path) -> None:
    score(toy, output="/dev/null")
    assert Path("/dev/null").is_char_device()
    assert not Path("/dev/null.partial").exists()


def test_a_link_stays_a_link_to_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for content in (b"new", b"replaced"):
        write_whole(tmp_path / "link", content)
        assert (tmp_path / "target").read_bytes() == content
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_small_file_is_written_over_a_file_of_a_checkpoint(toy: Path, name: str) -> None:
    before = (toy / name).read_bytes()
    with pytest.raises(OutputError, match="is a file of a checkpoint, which is not written over"):
        made_up().save(toy / name)
    assert (toy / name).read_bytes() == before
    write_whole(toy / "results.json", b"{}")
