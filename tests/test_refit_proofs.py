"""What a refit and a calibration promise of whole checkpoints: exact where it can be, else nothing lost."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import moeits
from moeits.calibration import activations
from moeits.errors import CalibrationError, CheckpointError, EvidenceError, OutputError, PlanError
from moeits.evidence import Evidence
from tests.evaluation_toys import give_tokenizer, write_jsonl
from tests.toys import make_toy, read_tensors

SMALL: dict[str, Any] = {"tokens": 1024, "held_out": 512, "window": 32, "device": "cpu"}


def toy(folder: Path, family: str = "qwen2_moe", *, change: Callable[..., None] | None = None, **facts: Any) -> Path:
    make_toy(folder, family, dtype="float32", **facts)
    give_tokenizer(folder)
    if change is not None:
        tensors = read_tensors(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A parent, and what half of its experts are."""
    folder = tmp_path_factory.mktemp("pair")
    moeits.simplify(toy(folder / "parent"), output=folder / "pruned", experts_per_layer=3)
    return folder / "parent", folder / "pruned"


# ------------------------------------------------------------------------------------------------------------- exact


def every_expert_alike_to_the_router(tensors: dict[str, np.ndarray]) -> None:
    """Routers that give all experts the same gate, and of each layer a last expert that is the first but for its down
    projection: what both give can be given by the first alone."""
    for name in tensors:
        if name.endswith("mlp.gate.weight"):
            tensors[name] = np.zeros_like(tensors[name])
        if ".experts.3." in name and ".down_proj." not in name:
            tensors[name] = tensors[name.replace(".experts.3.", ".experts.0.")].copy()


def test_with_a_planted_copy_removed_the_error_falls_to_rounding(tmp_path: Path) -> None:
    parent = toy(tmp_path / "parent", experts=4, top_k=4, layers=2, change=every_expert_alike_to_the_router)
    plan = moeits.plan(moeits.score(parent), experts_per_layer=3, min_experts=3)
    moeits.prune(parent, plan=replace(plan, kept=dict.fromkeys(plan.kept, (0, 1, 2))), output=tmp_path / "pruned")
    made = moeits.refit(tmp_path / "pruned", parent=parent, output=tmp_path / "out", **SMALL)
    assert made.layers
    for layer in made.layers:
        assert layer["error_before"] > 1e-2
        assert layer["error_after"] < 1e-8
    assert made.loss["kl_to_parent"]["refitted"] < 1e-6 < made.loss["kl_to_parent"]["pruned"]


def last_expert_within_the_shared_one(tensors: dict[str, np.ndarray]) -> None:
    """Gates that are the same for all tokens, and of each layer a last expert that is a part of the shared one but for
    its down projection: what it gives the shared one can give."""
    for name in tensors:
        if name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
            tensors[name] = np.zeros_like(tensors[name])
        if ".experts.3." in name and ".down_proj." not in name:
            shared, gone = tensors[name.replace(".experts.3.", ".shared_expert.")], np.zeros_like(tensors[name])
            rows = min(len(shared), len(gone))
            gone[:rows] = shared[:rows]
            tensors[name] = gone


def test_the_shared_expert_takes_over_what_it_can_give_and_only_where_it_may(tmp_path: Path) -> None:
    parent = toy(tmp_path / "parent", experts=4, top_k=4, layers=2, change=last_expert_within_the_shared_one)
    plan = moeits.plan(moeits.score(parent), experts_per_layer=3, min_experts=3)
    moeits.prune(parent, plan=replace(plan, kept=dict.fromkeys(plan.kept, (0, 1, 2))), output=tmp_path / "pruned")
    for also in ("shared", "none"):
        made = moeits.refit(tmp_path / "pruned", parent=parent, output=tmp_path / also, also=also, **SMALL)
        changed = {name.split("mlp.")[1] for name in made.tensors["computed"]}
        assert ("shared_expert.down_proj.weight" in changed) == (also == "shared")
        for layer in made.layers:
            assert layer["shared"] == (also == "shared")
            assert (layer["error_after"] < 1e-8) == (also == "shared")
            assert layer["error_before"] > 1e-2
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shared", dtype=torch.float32)
    whole = transformers.AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, whole(ids).logits, rtol=1e-3, atol=1e-3)


# -------------------------------------------------------------------------------------- the same numbers on any machine


def test_two_threads_find_what_one_finds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    parent, pruned = pair
    few = {**SMALL, "tokens": 256, "held_out": 256}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            signals = moeits.calibrate(parent, selection=64, **few).signals
            moeits.refit(pruned, parent=parent, output=tmp_path / str(threads), **few)
            found.append((signals, load_file(tmp_path / str(threads) / "model.safetensors")))
    finally:
        torch.set_num_threads(before)
    (signals, weights), (again, same) = found
    for name, layers in signals.items():
        for layer, values in layers.items():
            np.testing.assert_allclose(again[name][layer], values, rtol=1e-6, atol=1e-9, err_msg=name)
    for name, weight in weights.items():
        np.testing.assert_allclose(same[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


def test_tokens_of_another_seed_move_the_loss_by_less_than_the_interval_says(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    parent, pruned = pair
    gains = [
        moeits.refit(pruned, parent=parent, output=tmp_path / str(seed), seed=seed, **SMALL).loss["difference"]
        for seed in (0, 1)
    ]
    one, two = gains
    halves = [(gain["high"] - gain["low"]) / 2 for gain in gains]
    assert abs(one["mean"] - two["mean"]) <= sum(half**2 for half in halves) ** 0.5


# ------------------------------------------------------------------------------------------------------------ bad input


def unreachable(expert: int) -> Callable[[dict[str, np.ndarray]], None]:
    """Selection biases that no logit makes good for."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith("e_score_correction_bias"):
                tensors[name][expert] = -100.0

    return change


def test_an_expert_that_no_token_reaches_has_zeros_and_keeps_its_weights(tmp_path: Path) -> None:
    parent = toy(tmp_path / "parent", "deepseek_v3", change=unreachable(1))
    signals = moeits.calibrate(parent, output=tmp_path / "s.safetensors", **SMALL).signals
    for name in ("frequency", "reap", "ean-mean", "ean-sum", "router-score", "largest-activation"):
        assert all(values[1] == 0 and np.isfinite(values).all() for values in signals[name].values())
    for values in signals["reconstruction"].values():
        assert values[1] == 0  # it goes first
    plan = moeits.plan(moeits.score(parent), experts_per_layer=4)
    moeits.prune(parent, plan=replace(plan, kept=dict.fromkeys(plan.kept, (0, 1, 2, 3))), output=tmp_path / "pruned")
    made = moeits.refit(tmp_path / "pruned", parent=parent, output=tmp_path / "out", **SMALL)
    assert [layer["unreached"] for layer in made.layers] == [[1]] * len(made.layers)
    before, after = (read_tensors(tmp_path / name) for name in ("pruned", "out"))
    for name in before:
        if ".experts.1." in name:
            assert before[name].tobytes() == after[name].tobytes()


def test_text_of_one_repeated_line_is_refused_and_text_of_one_character_is_fitted_or_left_alone(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    parent, pruned = pair
    again = write_jsonl(tmp_path / "again.jsonl", [{"text": "the same line"}] * 300)
    with pytest.raises(CalibrationError, match="in 0 different documents: each counts once"):
        moeits.calibrate(parent, data=str(again), **SMALL)
    # Documents that differ in their length alone: of features there is one.
    alike = write_jsonl(tmp_path / "alike.jsonl", [{"text": "a" * n} for n in range(20, 120)])
    made = moeits.refit(pruned, parent=parent, data=str(alike), output=tmp_path / "out", **SMALL)
    assert all(np.isfinite(value).all() for value in read_tensors(tmp_path / "out").values())
    for layer in made.layers:
        assert layer["error_after"] <= layer["error_before"]


def test_too_few_tokens_are_refused_with_the_number_that_would_do(tmp_path: Path) -> None:
    parent = toy(tmp_path / "parent", experts=200, top_k=2, layers=1)
    moeits.simplify(parent, output=tmp_path / "pruned", experts_per_layer=150, criterion="random")
    with pytest.raises(CalibrationError, match="256 tokens are too few for a fit: give --tokens 300 or more"):
        moeits.refit(tmp_path / "pruned", parent=parent, output=tmp_path / "out", **{**SMALL, "tokens": 256})


def test_signals_of_another_checkpoint_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = toy(tmp_path / "other", seed=1)
    signals = moeits.calibrate(other, **SMALL)
    with pytest.raises(EvidenceError, match="of two checkpoints"):
        moeits.plan([moeits.score(pair[0]), signals], experts_per_layer=3)
    moeits.prune(other, plan=moeits.plan(signals, criterion="reap", experts_per_layer=3), output=tmp_path / "pruned")
    with pytest.raises(PlanError, match="was pruned from other"):
        moeits.refit(tmp_path / "pruned", parent=pair[0], output=tmp_path / "out", **SMALL)


class Stop(Exception):
    """The run ends here."""


def after(layers: int, kind: str, then: Callable[[], None]) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == kind and done == layers:
            then()

    return progress


def stop() -> None:
    raise Stop


def test_a_checkpoint_that_is_edited_meanwhile_stops_the_run_with_its_finished_layers_kept(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    parent, pruned = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair)

    def edit(folder: Path) -> Callable[[], None]:
        return lambda: os.utime(folder / "model.safetensors", ns=(1, 1))

    calls = {
        "refitting layers": lambda progress: moeits.refit(
            pruned, parent=parent, output=tmp_path / "out", progress=progress, **SMALL
        ),
        "calibrating layers": lambda progress: moeits.calibrate(
            parent, output=tmp_path / "s.safetensors", progress=progress, **SMALL
        ),
    }
    for (kind, call), folder in zip(calls.items(), (pruned, parent), strict=True):
        with pytest.raises(CheckpointError, match="changed while it was read"):
            call(after(1, kind, edit(folder)))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "s.safetensors").exists()
    assert [path.name for path in tmp_path.glob("*.partial/*/*")] == ["layer-0.safetensors"] * 2


def test_without_room_for_activations_finished_layers_are_kept(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, pruned = pair
    calls: list[Callable[..., Any]] = [
        lambda **facts: moeits.calibrate(parent, output=tmp_path / "s.safetensors", **SMALL, **facts),
        lambda **facts: moeits.refit(pruned, parent=parent, output=tmp_path / "out", **SMALL, **facts),
    ]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call, kind in zip(calls, ("calibrating layers", "refitting layers"), strict=True):
        with pytest.raises(Stop):
            call(progress=after(1, kind, stop))
        with monkeypatch.context() as patched:
            patched.setattr(activations.tempfile, "TemporaryDirectory", full)
            with pytest.raises(OutputError, match=r"There is no room for \d+ bytes .*Give a larger --memory, or fewer"):
                call(memory="16KiB")
    assert len(list(tmp_path.glob("*.partial/*/layer-0.safetensors"))) == 2
    for call in calls:
        call(memory="16KiB")
    assert Evidence.load(tmp_path / "s.safetensors").signals
    assert (tmp_path / "out" / "refit.json").is_file()
    assert not list(tmp_path.glob("*.partial"))
