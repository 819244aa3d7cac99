"""A checkpoint gets its name only if its headers are what its own config.json says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from moeits.experts.layout import MoELayout
from moeits.surgery import carried_out
from moeits.surgery.written import check_written
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint

ROUTER = "model.layers.1.mlp.gate.weight"
EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


FAULTS = {
    "a router of another width": (lambda of: {**of, ROUTER: of[ROUTER][:-1].copy()}, ROUTER),
    "a router that is missing": (without(ROUTER), ROUTER),
    "an expert without a projection": (without(EXPERT), r"Layer 1, expert 2 has no down_proj\.weight"),
    "an expert more": (lambda of: {**of, EXPERT.replace(".2.", ".6."): of[EXPERT]}, "Layer 1 should have 6 experts"),
    "a cut expert": (lambda of: {**of, EXPERT: of[EXPERT][:, :-1].copy()}, "Experts 0 and 2 of layer 1 differ"),
    "a layer of cut experts": (
        lambda of: {
            name: value[:, :-2].copy() if name.startswith("model.layers.1.mlp.experts.") else value
            for name, value in of.items()
        },
        r"experts or router rows of model\.layers\.1\.mlp do not have the size",
    ),
}


@pytest.mark.parametrize(("change", "says"), FAULTS.values(), ids=FAULTS.keys())
def test_what_does_not_fit_is_said_by_name(tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe")
    source = MoELayout.of(Checkpoint.open(toy))
    check_written(toy, source)
    broken = write_checkpoint(tmp_path / "broken", read_config(toy), change(read_tensors(toy)))
    with pytest.raises(CheckpointError, match=f"contradict its own config.*{says}"):
        check_written(broken, source)


@pytest.mark.parametrize("counts", [{0: 6, 1: 6, 2: 5}, {0: 6, 1: 6}])
def test_another_count_than_the_plan_keeps_is_said_with_its_layer(tmp_path: Path, counts: dict[int, int]) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe")
    with pytest.raises(CheckpointError, match=r"layer 2 has 6 experts|not the same layers.*\[2\]"):
        check_written(toy, MoELayout.of(Checkpoint.open(toy)), counts)


def test_a_draft_head_of_another_count_does_not_pass_in_a_uniform_output(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "glm4_moe")
    tensors = read_tensors(toy)
    head = {name.replace(".layers.2.", ".layers.3."): of for name, of in tensors.items() if ".layers.2." in name}
    source = write_checkpoint(tmp_path / "source", read_config(toy), {**tensors, **head})
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    mixed = write_checkpoint(
        tmp_path / "mixed", read_config(tmp_path / "out"), {**read_tensors(tmp_path / "out"), **head}
    )
    with pytest.raises(CheckpointError, match=r"model\.layers\.3.* has other experts than the one number there"):
        check_written(mixed, MoELayout.of(Checkpoint.open(source)), {1: 4, 2: 4})


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_a_tensor_lost_in_surgery_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    toy = make_toy(tmp_path / "toy")
    whole = carried_out.new_tensors
    monkeypatch.setattr(
        carried_out, "new_tensors", lambda *of, **named: [t for t in whole(*of, **named) if t.name != EXPERT]
    )
    with pytest.raises(CheckpointError, match="Layer 1, expert 2 has no down_proj"):
        moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "deep/out", layout=layout)
    assert list(tmp_path.iterdir()) == [toy]


def test_a_router_cut_short_by_merging_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    from moeits.stages import heal as healing
    from tests.healing_toys import make_pruned, texts, write_rows

    pruned, data = make_pruned(tmp_path, layers=2), write_rows(tmp_path / "data.jsonl", texts())
    rows = len(read_tensors(pruned)[ROUTER]) - 1
    whole = healing.merged_tensors

    def cut(*of: Any) -> list[Any]:
        width = read_tensors(pruned)[ROUTER][:rows]
        part = np.ascontiguousarray(width)
        return [
            replace(t, shape=part.shape, nbytes=part.nbytes, parts=(part.tobytes(),)) if t.name == ROUTER else t
            for t in whole(*of)
        ]

    monkeypatch.setattr(healing, "merged_tensors", cut)
    with pytest.raises(CheckpointError, match=f"contradict its own config.*{ROUTER}"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", recipe="small", rank=2, batch_size=2, steps=1)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.*.partial"))
