"""Pairs counted on a device of torch: every count and every score as the CPU has them, to the last bit."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import moeits
from moeits.command_line.app import application
from moeits.errors import SettingError
from moeits.signals import on_device
from moeits.signals.nmi import NMI
from moeits.signals.on_device import DeviceCodes, DeviceNMI, counts_of_counts

torch = pytest.importorskip("torch")


def weights(seed: int, shape: tuple[int, int] = (96, 160)) -> list[np.ndarray]:
    """Of every kind that counts differently: many bins, few, one, cells that pass 255."""
    rng = np.random.default_rng(seed)
    normal, noise = rng.standard_normal((2, *shape))
    made = [normal, 0.8 * normal + 0.6 * noise, rng.standard_t(2, shape), rng.integers(0, 2, shape), np.ones(shape)]
    return [weight.astype(ml_dtypes.bfloat16) for weight in made]


@pytest.mark.parametrize("bins", ["auto", 3, 64, 4096])
def test_a_score_is_that_of_the_cpu_to_the_last_bit(bins: str | int) -> None:
    here, there = NMI(bins=bins), DeviceNMI(bins=bins, device="cpu")
    ours, theirs = ([each.encode_weight(weight) for weight in weights(0)] for each in (here, there))
    assert np.array_equal(here.compare(ours, ours), there.compare(theirs, theirs))


def test_what_is_counted_in_bands_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = DeviceNMI(bins=64, device="cpu")
    a, b = (measure.encode_weight(weight) for weight in weights(1)[:2])
    whole = measure.compare_two(a, b)
    monkeypatch.setattr(on_device, "CELLS", 200)
    assert len(list(counts_of_counts(a.there, b.there, a.counts.size, b.counts.size))) > 10
    assert measure.compare_two(a, b) == whole


def test_counts_are_those_of_numpy() -> None:
    measure = DeviceNMI(bins=200, device="cpu")
    a, b = (measure.encode_weight(weight) for weight in weights(2)[:2])
    joint = np.histogram2d(a.codes, b.codes, bins=[np.arange(a.counts.size + 1), np.arange(b.counts.size + 1)])[0]
    counts, times = np.unique(joint.astype(np.int64), return_counts=True)
    ((found, how_often),) = counts_of_counts(a.there, b.there, a.counts.size, b.counts.size)
    assert np.array_equal(counts, found)
    assert np.array_equal(times, how_often)


def test_codes_beyond_fifteen_bits_are_no_negative_numbers() -> None:
    rng = np.random.default_rng(3)
    wide, narrow = rng.permutation(60_000).astype(np.float32), rng.integers(0, 3, 60_000).astype(np.float32)
    scores = {}
    for measure in (NMI(bins=60_000), DeviceNMI(bins=60_000, device="cpu")):
        a, b = measure.encode_weight(wide), measure.encode_weight(narrow)
        scores[type(measure)] = (measure.compare_two(a, b), measure.compare_two(b, a))
    assert isinstance(a, DeviceCodes)
    assert int(a.there.min()) < 0
    assert scores[NMI] == scores[DeviceNMI]


def test_evidence_is_the_same_file(toy: Path, tmp_path: Path) -> None:
    moeits.score(toy, output=tmp_path / "cpu.safetensors")
    moeits.score(toy, output=tmp_path / "device.safetensors", device="cpu")
    assert (tmp_path / "cpu.safetensors").read_bytes() == (tmp_path / "device.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--device", "cpu", "--sample", "1/8"], "Leave --device out for a sample."),
        (["--device", "cpu", "--estimator", "correlation"], "Leave --device out for correlation."),
        (["--device", "cpu", "--engine", "ray"], "leave one of them out."),
        (["--device", "cuda:7"], "--device cuda:7 cannot be used here"),
        (["--device", "toaster"], "--device toaster cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--device", "meta", "--dry-run"], "--device meta cannot be used here"),
        (["--device", "cpu", "--estimator", "correlation", "--dry-run"], "Leave --device out for correlation."),
    ],
)
def test_a_device_that_cannot_count_is_refused(toy: Path, tmp_path: Path, asked: list[str], said: str) -> None:
    output = tmp_path / "evidence.safetensors"
    ended = CliRunner().invoke(application(), ["score", str(toy), "--output", str(output), *asked])
    assert said in " ".join(str(ended.exception or "").split()) or said in " ".join(ended.output.split())
    assert isinstance(ended.exception, SettingError | SystemExit)
    assert not output.exists()
