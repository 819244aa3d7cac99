"""A checkpoint as it lies on disk: what is read, when, and by what it is known again."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from moeits.checkpoint.reading import DTYPES, Checkpoint
from moeits.errors import UnscorableWeight
from tests.toys import make_toy, read_config, read_tensors, reshard, write_checkpoint

CONFIG = {"model_type": "toy"}


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_that_stock_safetensors_reads(tmp_path: Path, shards: int) -> None:
    toy = make_toy(tmp_path / "toy", shards=shards)
    checkpoint, tensors = Checkpoint.open(toy), read_tensors(toy)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert checkpoint.tensors[name].shape == value.shape
        assert checkpoint.tensors[name].nbytes == value.nbytes
        assert checkpoint.read(name).tobytes() == value.tobytes()
    assert len(checkpoint.shards) == shards


@pytest.mark.parametrize(
    "dtype", [each for each in DTYPES.values() if each != np.dtype(ml_dtypes.float8_e4m3fn)], ids=str
)
def test_every_dtype_is_read_as_it_is_stored(tmp_path: Path, dtype: np.dtype) -> None:
    value = np.arange(24).reshape(2, 3, 4).astype(dtype)
    try:
        folder = write_checkpoint(tmp_path / "one", CONFIG, {"a": value})
    except (KeyError, ValueError, RuntimeError):
        pytest.skip(f"stock safetensors does not write {dtype} from numpy")
    found = Checkpoint.open(folder).read("a")
    assert found.dtype == dtype
    assert found.tobytes() == value.tobytes()


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_part_of_a_tensor_is_what_numpy_calls_that_part(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], data: st.DataObject
) -> None:
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    folder = write_checkpoint(tmp_path_factory.mktemp("part") / "one", CONFIG, {"b": np.zeros(1), "a": value})
    where: list[int | slice] = [
        data.draw(st.integers(0, n - 1)) for n in shape[: data.draw(st.integers(0, len(shape)))]
    ]
    if len(where) < len(shape):
        stop = data.draw(st.integers(0, shape[len(where)]))
        where.append(slice(data.draw(st.integers(0, stop)), stop))
    found = Checkpoint.open(folder).read("a", tuple(where))
    assert np.array_equal(found, value[tuple(where)])
    assert found.shape == value[tuple(where)].shape


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "one", CONFIG, {"a": np.zeros((512, 1024), np.float32)})
    read, opened = [], Path.open

    def counting(path: Path, mode: str = "r", *rest: object, **more: object) -> Any:
        file = opened(path, mode, *rest, **more)  # type: ignore[arg-type]
        if path.suffix == ".safetensors":
            whole = file.read

            def counted(size: int = -1) -> bytes:
                data = whole(size)
                read.append(len(data))
                return data

            file.read = counted  # type: ignore[method-assign]
        return file

    monkeypatch.setattr(Path, "open", counting)
    checkpoint = Checkpoint.open(folder)
    assert sum(read) < 1000
    assert checkpoint.fingerprint
    assert sum(read) < 10_000, "two megabytes are known again by a few samples"


def test_a_dtype_without_numbers_can_be_looked_at_but_not_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.tensors["a"].parameters, checkpoint.tensors["a"].nbytes) == (8, 4)
    with pytest.raises(UnscorableWeight, match="F4 can be moved but not computed with"):
        checkpoint.read("a")


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_the_same_for_any_sharding(tmp_path: Path, toy: Path) -> None:
    prints = {Checkpoint.open(reshard(toy, tmp_path / str(n), shards=n)).fingerprint for n in (1, 2, 5)}
    assert prints == {Checkpoint.open(toy).fingerprint}


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "less", "more"])
def test_the_fingerprint_tells_checkpoints_apart(tmp_path: Path, toy: Path, change: str) -> None:
    tensors, name = read_tensors(toy), "model.norm.weight"
    match change:
        case "value":
            tensors[name][17] += 1
        case "name":
            tensors["model.norm.scale"] = tensors.pop(name)
        case "dtype":
            tensors[name] = tensors[name].view(np.float16)
        case "shape":
            tensors[name] = tensors[name].reshape(4, 8)
        case "less":
            del tensors[name]
        case "more":
            tensors["more"] = np.zeros(0, np.float32)
    other = write_checkpoint(tmp_path / "other", read_config(toy), tensors)
    assert Checkpoint.open(other).fingerprint != Checkpoint.open(toy).fingerprint


@pytest.mark.parametrize("where", ["first", "last"])
def test_the_ends_of_a_large_tensor_count(tmp_path: Path, where: str) -> None:
    value = np.zeros(100_000, np.float32)
    one = write_checkpoint(tmp_path / "one", CONFIG, {"a": value})
    value[0 if where == "first" else -1] = 1
    two = write_checkpoint(tmp_path / "two", CONFIG, {"a": value})
    assert Checkpoint.open(one).fingerprint != Checkpoint.open(two).fingerprint


def test_the_config_is_not_part_of_the_fingerprint(tmp_path: Path, toy: Path) -> None:
    other = write_checkpoint(tmp_path / "other", {**read_config(toy), "note": 1}, read_tensors(toy))
    assert Checkpoint.open(other).fingerprint == Checkpoint.open(toy).fingerprint


# ---------------------------------------------------------------------------------------------------------- names


def test_a_folder_is_called_by_its_name_and_not_by_its_path(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Checkpoint.open(toy).source == "toy"
    assert Checkpoint.open(str(toy) + "/").source == "toy"
    monkeypatch.chdir(toy)
    assert Checkpoint.open(".").source == "toy"
    assert tmp_path.name not in Checkpoint.open(toy).source


def test_metadata_of_any_kind_is_no_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", CONFIG, {"a": np.zeros(1)})
    save_file({"a": np.zeros(1)}, tmp_path / "one" / "model.safetensors", metadata={"format": "pt", "x": "y"})
    assert [*Checkpoint.open(tmp_path / "one").tensors] == [*load_file(tmp_path / "one" / "model.safetensors")]
