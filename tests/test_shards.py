"""A scoring in shards is the scoring, put together; what is not all of one scoring is refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.errors import EvidenceError, OutputError, SettingError
from moeits.evidence import SHARD, Evidence
from moeits.scoring.work_shards import WorkShard
from tests.toys import make_toy

LAYERS, SHARDS = 5, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("shards") / "toy", layers=LAYERS)


@pytest.fixture(scope="module")
def shards(model: Path) -> list[Path]:
    """Evidence of each shard, scored by itself."""
    paths = [model.parent / f"shard-{number}.safetensors" for number in range(1, SHARDS + 1)]
    for number, path in enumerate(paths, 1):
        moeits.score(model, output=path, shard=f"{number}/{SHARDS}", threads=number)
    return paths


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"sample": 0.25, "signals": "router-cosine,weight-norm"},
    {"estimator": "router-cosine", "signals": "nmi"},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=["nmi", "sampled", "another"])
def test_gathered_shards_are_the_file_that_one_scoring_writes(
    model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    moeits.score(model, output=tmp_path / "whole", **settings)
    for number in (2, 1, 3):
        moeits.score(model, output=tmp_path / str(number), shard=f"{number}/3", memory="256MiB", **settings)
    for at, order in enumerate(permutations("123")):
        moeits.gather([tmp_path / name for name in order], output=tmp_path / f"gathered-{at}")
        assert (tmp_path / f"gathered-{at}").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_shard_scores_its_own_layers_only(shards: list[Path]) -> None:
    assert [sorted(Evidence.load(path).redundancy) for path in shards] == [[0], [1, 2], [3, 4]]


@given(st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_every_layer_is_in_one_shard_and_shards_are_of_like_size(of: tuple[int, int]) -> None:
    layers, count = of
    own = [WorkShard(number=number, of=count).of_layers(range(layers)) for number in range(1, count + 1)]
    assert [layer for each in own for layer in each] == list(range(layers))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert all(before[-1] < after[0] for before, after in pairwise(own))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1/0", "x", "1", "-1/3", "1/3/5", "1.5/3", "9" * 30 + "/1"])
def test_what_is_not_one_of_so_many_is_a_sentence(model: Path, shard: str) -> None:
    with pytest.raises(SettingError, match="--shard"):
        moeits.score(model, shard=shard)


def test_more_shards_than_layers_are_a_sentence(model: Path) -> None:
    with pytest.raises(SettingError, match=r"--shard 2/6 .* has 5 layers"):
        moeits.score(model, shard="2/6")


def other_settings(model: Path, tmp_path: Path) -> Path:
    moeits.score(model, output=tmp_path / "other", shard="3/3", bins=32)
    return tmp_path / "other"


def other_count(model: Path, tmp_path: Path) -> Path:
    moeits.score(model, output=tmp_path / "other", shard="3/4")
    return tmp_path / "other"


def other_model(_: Path, tmp_path: Path) -> Path:
    moeits.score(make_toy(tmp_path / "toy", layers=LAYERS, seed=1), output=tmp_path / "other", shard="3/3")
    return tmp_path / "other"


def other_hashing(model: Path, tmp_path: Path) -> Path:
    moeits.score(model, output=tmp_path / "other", shard="3/3", verify="sampled")
    return tmp_path / "other"


def other_version(model: Path, tmp_path: Path) -> Path:
    third = moeits.score(model, shard="3/3")
    facts = {**third.settings[SHARD], "moeits": "0.0.1"}
    replace(third, settings={**third.settings, SHARD: facts}).save(tmp_path / "other")
    return tmp_path / "other"


def other_layers(model: Path, tmp_path: Path) -> Path:
    third, second = moeits.score(model, shard="3/3"), moeits.score(model, shard="2/3")
    replace(third, redundancy=second.redundancy).save(tmp_path / "other")
    return tmp_path / "other"


def whole(model: Path, tmp_path: Path) -> Path:
    moeits.score(model, output=tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("foreign", "sentence"),
    [
        (other_settings, "other settings: bins is 'auto' and 32"),
        (other_count, "other settings: 3 shards and 4"),
        (other_model, "of two checkpoints"),
        (other_hashing, "the same --verify"),
        (other_version, r"scored by moeits \S+, .* by 0\.0\.1"),
        (other_layers, "does not hold the layers of the shard that it says it is"),
        (whole, "is not a shard"),
    ],
)
def test_a_foreign_shard_is_a_sentence(
    model: Path, shards: list[Path], tmp_path: Path, foreign: Callable[[Path, Path], Path], sentence: str
) -> None:
    other = foreign(model, tmp_path)
    with pytest.raises(EvidenceError, match=sentence):
        moeits.gather([*shards[:2], other], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_shards_and_those_given_twice_are_sentences(shards: list[Path]) -> None:
    with pytest.raises(EvidenceError, match="Of 3 shards 2 is missing: score with --shard 2/3"):
        moeits.gather([shards[0], shards[2]])
    with pytest.raises(EvidenceError, match="Of 3 shards 1, 3 are missing"):
        moeits.gather([shards[1]])
    with pytest.raises(EvidenceError, match=r"shard-2\.safetensors are both shard 2/3"):
        moeits.gather([*shards, shards[1]])
    with pytest.raises(EvidenceError, match="There are no shards"):
        moeits.gather([])


def test_no_plan_is_made_of_a_shard(shards: list[Path]) -> None:
    with pytest.raises(EvidenceError, match="is a shard of a scoring"):
        moeits.plan(shards[0], tau=0.5)


def test_a_shard_is_not_written_over(shards: list[Path]) -> None:
    with pytest.raises(OutputError):
        moeits.gather(shards, output=shards[0])
