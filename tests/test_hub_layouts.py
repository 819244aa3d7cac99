"""Releases that people prune: which are scored and pruned, and which refused with what sentence."""

import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moeits
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import MoeitsError
from tests.hub_layouts import EXPERTS, RELEASES, Release, write
from tests.packed import raw_tensors
from tests.toys import read_config

ROOT = Path(__file__).parents[1]
KEPT = ((0, 3, 4, 7), (1, 2, 5, 6))


@pytest.fixture(params=RELEASES, ids=lambda release: release.name)
def release(request: pytest.FixtureRequest) -> Release:
    return request.param


def with_sets(plan: PruningPlan) -> PruningPlan:
    """As many in each layer, and other ones in every second."""
    kept = {layer: KEPT[at % 2] for at, layer in enumerate(plan.kept)}
    return replace(plan, kept=kept, order={})


def test_it_is_scored_and_pruned_to_the_byte_or_refused_with_a_reason(release: Release, tmp_path: Path) -> None:
    folder = write(release, tmp_path / "release")
    if release.expected == "refused":
        with pytest.raises(MoeitsError, match=release.sentence) as error:
            moeits.score(folder)
        assert release.sentence
        assert "\n" not in str(error.value)
        return
    plan = with_sets(moeits.plan(moeits.score(folder), experts_per_layer=len(KEPT[0])))
    assert list(plan.kept) == list(release.moe_layers)
    moeits.prune(folder, plan=plan, output=tmp_path / "out", drop_mtp=bool(release.mtp))
    before, after = raw_tensors(folder), raw_tensors(tmp_path / "out")
    wanted = dict(what_is_left(release, before))
    assert wanted.keys() == {name for name in after if not name.startswith(release.mtp or "-")}
    for name, value in wanted.items():
        assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype), name
        assert torch.equal(as_bytes(after[name]), as_bytes(value)), name
    quantization = read_config(folder).get("quantization_config")
    assert read_config(tmp_path / "out").get("quantization_config") == quantization


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def what_is_left(release: Release, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the kept experts under their new numbers, by the names that were written down."""
    for name, value in tensors.items():
        if release.mtp and name.startswith(release.mtp):
            continue
        index = next((i for i in release.moe_layers if name.startswith(in_block(release, i))), None)
        kept = list(KEPT[0 if index is None else index - release.dense])
        rest = "" if index is None else name.removeprefix(in_block(release, index))
        expert = next((e for e in range(EXPERTS) if is_of(release, rest, e)), None)
        if expert is not None:
            if expert in kept:
                yield name.replace(f"experts.{expert}.", f"experts.{kept.index(expert)}."), value
        elif rest in release.router or any(rest.startswith(fused) for fused in release.fused):
            axis = release.expert_axis.get(rest, 0)
            more = range(EXPERTS, value.shape[axis])
            yield (
                name,
                value.index_select(axis, torch.tensor([*kept, *more])) if value.dtype.itemsize > 1 else value[kept],
            )
        else:
            yield name, value


def in_block(release: Release, index: int) -> str:
    return release.layers.format(l=index) + release.block


def is_of(release: Release, rest: str, expert: int) -> bool:
    return any(rest.startswith(module.format(e=expert) + ".") for module in release.experts)


def test_the_page_of_releases_is_what_they_make() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "releases_page.py"))["page"]()
    assert (ROOT / "docs" / "releases.md").read_text(encoding="utf-8") == page


def test_of_54_releases_52_are_scored_and_pruned() -> None:
    assert len(RELEASES) == len({release.name for release in RELEASES}) == 54
    assert sum(release.expected == "scored" for release in RELEASES) == 52
