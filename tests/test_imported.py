"""Statistics of other tools, taken in as signals; an order of ours, for others."""

import json
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch

import moeits
from moeits.console.refitting import show_calibration
from moeits.errors import CalibrationError, EvidenceError, MoeitsError, OutputError
from tests.toys import make_toy

EXPERTS, LAYERS = 6, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first layer is dense."""
    return make_toy(tmp_path_factory.mktemp("imported") / "toy", "deepseek_v2", experts=EXPERTS, layers=LAYERS)


RNG = np.random.default_rng(0)
COUNTS = RNG.integers(1, 1000, (LAYERS, EXPERTS))
SHARES = COUNTS / COUNTS.sum(1, keepdims=True)


def reap(path: Path) -> Path:
    """As its observer's state is saved."""
    names = ("expert_frequency", "ean_sum", "ean_mean", "reap", "weighted_expert_frequency_sum", "max_activations")
    numbers = {name: torch.from_numpy(COUNTS * (at + 1.0)) for at, name in enumerate(names)}
    state = {
        layer: {"total_tokens": 5, **{name: values[layer] for name, values in numbers.items()}} for layer in (1, 2)
    }
    torch.save(state, path)
    return path


def gguf(path: Path, *, kind: int = 0, counts: np.ndarray = COUNTS) -> Path:
    """An imatrix with a header entry of each kind."""

    def text(value: str) -> bytes:
        return pack("<Q", len(value)) + value.encode()

    header = [
        text("general.type") + pack("<I", 8) + text("imatrix"),
        text("imatrix.datasets") + pack("<IIQ", 9, 8, 1) + text("wiki.txt"),
        text("imatrix.chunk_count") + pack("<II", 4, 7),
    ]
    tensors, data = [], b""
    for layer in (1, 2):
        for part in ("down", "up"):
            name, values = f"blk.{layer}.ffn_{part}_exps.weight.counts", counts[layer].astype("<f4").tobytes()
            tensors.append(text(name) + pack("<IQQIQ", 2, 1, len(counts[layer]), kind, len(data)))
            data += values.ljust(32, b"\0")
    body = b"GGUF" + pack("<IQQ", 3, len(tensors), len(header)) + b"".join(header) + b"".join(tensors)
    path.write_bytes(body.ljust(-(-len(body) // 32) * 32, b"\0") + data)
    return path


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_what_reap_observed_becomes_signals_of_the_same_names(model: Path, tmp_path: Path) -> None:
    signals = moeits.calibrate(model, statistics=reap(tmp_path / "observer.pt")).signals
    for layer in (1, 2):
        np.testing.assert_allclose(signals["frequency"][layer], SHARES[layer])
        np.testing.assert_allclose(signals["ean-sum"][layer], 2.0 * COUNTS[layer])
        np.testing.assert_allclose(signals["reap"][layer], 4.0 * COUNTS[layer])
        np.testing.assert_allclose(signals["largest-activation"][layer], 6.0 * COUNTS[layer])
    assert 0 not in signals["reap"]


RECORDED: dict[str, Callable[[Path], Path]] = {
    "of all layers": lambda folder: written(folder / "a.json", {"logical_count": COUNTS.tolist()}),
    "of layers with experts": lambda folder: written(folder / "b.json", {"logical_count": COUNTS[1:].tolist()}),
    "of every step": lambda folder: written(
        folder / "c.json", {"rank": 0, "logical_count": [(COUNTS - 1).tolist(), np.ones_like(COUNTS).tolist()]}
    ),
    "by torch": lambda folder: (
        torch.save({"logical_count": torch.from_numpy(COUNTS)}, folder / "d.pt"),
        folder / "d.pt",
    )[1],
    "an imatrix": lambda folder: gguf(folder / "e.gguf"),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_counts_become_shares_of_the_choices(kind: str, model: Path, tmp_path: Path) -> None:
    evidence = moeits.calibrate(model, statistics=RECORDED[kind](tmp_path), output=tmp_path / "s.safetensors")
    assert list(evidence.signals) == ["frequency"]
    for layer in (1, 2):
        np.testing.assert_allclose(evidence.signals["frequency"][layer], SHARES[layer])
    plan = moeits.plan(tmp_path / "s.safetensors", criterion="frequency", experts_per_layer=2)
    for layer, kept in plan.kept.items():
        assert set(kept) == set(np.argsort(COUNTS[layer], kind="stable")[-2:].tolist())


def test_an_order_that_was_written_is_taken_in_again(model: Path, tmp_path: Path) -> None:
    evidence = moeits.calibrate(model, statistics=reap(tmp_path / "observer.pt"))
    order = tmp_path / "order.jsonl"
    plan = moeits.plan(evidence, criterion="reap", experts_per_layer=3, write_order=order)
    rows = [json.loads(line) for line in order.read_text().splitlines()]
    assert [list(row) for row in rows] == [["1"], ["2"]]
    for row in rows:
        ((layer, best_first),) = row.items()
        assert best_first == np.argsort(-COUNTS[int(layer)], kind="stable").tolist()
    again = moeits.calibrate(model, statistics=order)
    assert moeits.plan(again, criterion="order", experts_per_layer=3).kept == plan.kept
    with pytest.raises(EvidenceError, match=r"calibrate MODEL --statistics ORDER\.jsonl"):
        moeits.plan(evidence, criterion="order", experts_per_layer=3)
    with pytest.raises(OutputError):
        moeits.plan(evidence, experts_per_layer=3, criterion="reap", write_order=order, output=order)


SELECTIONS: dict[str, Callable[[dict[str, list[int]]], object]] = {
    "layer and experts": lambda kept: kept,
    "below a name": lambda kept: {"model": "org/name", "retained_experts": kept},
    "a list of layers": lambda kept: {
        "layers": [{"layer": int(i), "retained_expert_ids": ids} for i, ids in kept.items()]
    },
    "objects": lambda kept: {"selection": {i: {"kept": ids, "pruned": []} for i, ids in kept.items()}},
}


@pytest.mark.parametrize("form", SELECTIONS)
def test_a_selection_is_replayed_as_an_order(form: str, model: Path, tmp_path: Path) -> None:
    """Of reap_selection.json no real file was seen: these forms are guesses."""
    kept = {"1": [5, 0, 3], "2": [1, 2, 4]}
    path = written(tmp_path / "reap_selection.json", SELECTIONS[form](kept))
    evidence = moeits.calibrate(model, statistics=path)
    plan = moeits.plan(evidence, criterion="order", experts_per_layer=3)
    assert {layer: list(ids) for layer, ids in plan.kept.items()} == {1: [0, 3, 5], 2: [1, 2, 4]}
    assert moeits.plan(evidence, criterion="order", experts_per_layer=2).kept[1] == (0, 5), (
        "the first ones stay longest"
    )


class Foreign:
    """What a pickle could run."""


def refused(model: Path, path: Path, match: str) -> None:
    with pytest.raises(MoeitsError, match=match) as caught:
        moeits.calibrate(model, statistics=path)
    assert isinstance(caught.value, CalibrationError)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_was_found(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = moeits.calibrate(model, statistics=reap(tmp_path / "observer.pt"))
    show_calibration(evidence, {})
    said = capsys.readouterr().out
    assert "of observer.pt: frequency, router-score, ean-sum, ean-mean, reap, largest-activation" in said


def test_what_cannot_be_taken_in_is_said(model: Path, tmp_path: Path) -> None:
    refused(model, tmp_path / "missing.pt", "There is no file")
    refused(model, written(tmp_path / "a.txt", {}), "no ending by which it is known")
    refused(model, written(tmp_path / "b.json", {"counts": []}), "'counts' is not the number of a layer")
    refused(model, written(tmp_path / "b.json", {"model": "a", "top": 3}), "neither a logical_count nor kept experts")
    refused(model, written(tmp_path / "b.json", {"kept": {"1": [0, 1]}}), "it has no order of layer 2")
    for layers in ([[0, 1], [2, 3], [1, 2]], [{"kept": [0, 1]}], [3]):
        refused(model, written(tmp_path / "b.json", {"selection": layers}), "does not say of which layer it is")
    for layer in ([1], None, True, 1.5, "one", {"a": 1}):
        one = {"layers": [{"layer": layer, "kept": [0, 1]}]}
        refused(model, written(tmp_path / "b.json", one), "is not the number of a layer")
    twice = {"layers": [{"layer": "1", "kept": [0, 1]}, {"layer": 1, "kept": [2, 3]}]}
    refused(model, written(tmp_path / "b.json", twice), "it says twice what layer 1 keeps")
    refused(
        model, written(tmp_path / "b.json", {"1": [0, 6], "2": [0]}), "of layer 1 are not ids from 0 to 5, each once"
    )
    refused(
        model, written(tmp_path / "b.json", {"1": [0, 0], "2": [0]}), "of layer 1 are not ids from 0 to 5, each once"
    )
    refused(
        model, written(tmp_path / "b.json", {"1": [], "2": [True]}), "of layer 1 are not ids from 0 to 5, each once"
    )
    refused(model, written(tmp_path / "c.json", {"logical_count": [[1, 2], [3]]}), "not an array of numbers")
    refused(
        model, written(tmp_path / "d.json", {"logical_count": [[1, 2]]}), "counts 1 layers, and this model has .* 2"
    )
    few = COUNTS[:, :4].tolist()
    refused(model, written(tmp_path / "e.json", {"logical_count": few}), "of layer 1 is of 4 experts, not 6")
    negative = (-COUNTS).tolist()
    refused(model, written(tmp_path / "f.json", {"logical_count": negative}), "negative or not finite")
    refused(model, written(tmp_path / "g.jsonl", {"1": [0, 1, 2, 3, 4, 4]}), "does not name each expert once")
    refused(model, written(tmp_path / "h.jsonl", {"1": [0, 1, 2, 3, 4, 5]}), "it has no order of layer 2")
    refused(model, written(tmp_path / "i.jsonl", {"first": [0]}), "cannot be taken in")
    torch.save({1: Foreign()}, tmp_path / "j.pt")
    refused(model, tmp_path / "j.pt", "torch does not read it safely")
    torch.save([1], tmp_path / "k.pt")
    refused(model, tmp_path / "k.pt", "not a dictionary")
    torch.save({"first": {"reap": torch.ones(6)}}, tmp_path / "l.pt")
    refused(model, tmp_path / "l.pt", "'first' is not the number of a layer")
    torch.save({1: {"unknown": torch.ones(6)}}, tmp_path / "m.pt")
    refused(model, tmp_path / "m.pt", "nothing that is known here")
    torch.save({1: {"reap": [[1.0, 2.0], [3.0]]}}, tmp_path / "n.pt")
    refused(model, tmp_path / "n.pt", "entries that are not numbers")


def test_statistics_in_bf16_are_the_same_numbers(model: Path, tmp_path: Path) -> None:
    counts = {layer: {"reap": torch.arange(6, dtype=torch.bfloat16)} for layer in (1, 2)}
    torch.save(counts, tmp_path / "observer.pt")
    found = moeits.calibrate(model, statistics=tmp_path / "observer.pt").signals["reap"]
    assert {layer: values.tolist() for layer, values in found.items()} == {1: [*range(6)], 2: [*range(6)]}


def test_no_damaged_gguf_gets_further_than_a_sentence(model: Path, tmp_path: Path) -> None:
    whole = gguf(tmp_path / "whole.gguf").read_bytes()
    refused(model, gguf(tmp_path / "half.gguf", kind=1), "its counts are not float32")
    path = tmp_path / "damaged.gguf"
    rng = np.random.default_rng(0)
    for cut in range(0, len(whole) - 64, 7):  # what comes last is of no interest
        path.write_bytes(whole[:cut])
        refused(model, path, "cannot be taken in")
    taken = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            found = moeits.calibrate(model, statistics=path).signals["frequency"]
        except CalibrationError:
            continue
        taken += 1
        for layer in (1, 2):
            assert found[layer].min() >= 0
            assert np.isfinite(found[layer]).all()
    assert 0 < taken < 300, "some bytes are of no consequence, and others are"
