"""What a fingerprint proves: sampled bytes, which says so wherever it is told, or the SHA-256 of every byte."""

import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

import moeits
from moeits.checkpoint import fingerprints, opening
from moeits.checkpoint.fingerprints import Coverage, full_sha256, sampled_spans
from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.choosing.pruning_plan import PruningPlan
from moeits.console.plans import show_inspection
from moeits.errors import EvidenceError, PlanError, SettingError
from moeits.evidence import Evidence, merged
from tests.toys import make_toy, read_tensors, reshard


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "toy", "mixtral", hidden_size=96)


def flip_a_bit(model: Path, *, sampled: bool = False) -> None:
    """One bit of the largest tensor, where the fingerprint looks or where it does not."""
    info = max(Checkpoint.open(model).tensors.values(), key=lambda info: info.nbytes)
    seen = {at for start, length in sampled_spans(info.nbytes) for at in range(start, start + length)}
    at = next(at for at in range(info.nbytes) if (at in seen) == sampled)
    with info.shard.path.open("r+b") as file:
        file.seek(info.offset + at)
        (byte,) = file.read(1)
        file.seek(info.offset + at)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy is as large as what auto only samples."""
    monkeypatch.setattr(opening, "ALWAYS_HASHED_BYTES", 0)


def saved(model: Path, folder: Path, **given: str) -> Path:
    """A plan on disk, by way of evidence on disk."""
    moeits.score(model, output=folder / "e.safetensors", threads=1, **given)
    moeits.plan(folder / "e.safetensors", tau=0.5, output=folder / "plan.json")
    return folder / "plan.json"


# ------------------------------------------------------------------------------------------------ what is hashed


def test_the_full_hash_is_over_names_dtypes_shapes_and_the_bytes_of_every_tensor(model: Path) -> None:
    expected = hashlib.sha256()
    for name, values in sorted(read_tensors(model).items()):
        info = Checkpoint.open(model).tensors[name]
        expected.update(json.dumps([name, info.dtype, info.shape]).encode() + hashlib.sha256(values.tobytes()).digest())
    assert Checkpoint.open(model).coverage(full=True).sha256 == expected.hexdigest()


def test_the_full_hash_does_not_depend_on_the_sharding_and_sees_every_bit(tmp_path: Path, model: Path) -> None:
    sharded = Checkpoint.open(reshard(model, tmp_path / "sharded", shards=3))
    before = Checkpoint.open(model)
    assert sharded.coverage(full=True) == before.coverage(full=True)
    fingerprint, sha256 = before.fingerprint, before.coverage(full=True).sha256
    flip_a_bit(model)
    after = Checkpoint.open(model)
    assert after.fingerprint == fingerprint, "the sample does not see it"
    assert after.coverage(full=True).sha256 != sha256


def test_hashing_holds_a_buffer_for_each_thread_and_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_BUFFER_BYTES", 1 << 14)
    monkeypatch.setattr(fingerprints, "_MOST_THREADS", 2)
    checkpoint = Checkpoint.open(make_toy(tmp_path / "large", "mixtral", hidden_size=1024, dtype="float32", layers=1))
    largest = max(info.nbytes for info in checkpoint.tensors.values())
    full_sha256(checkpoint.tensors)  # what is imported and set up on first use is not counted
    tracemalloc.start()
    full_sha256(checkpoint.tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 < largest / 4


def test_ctrl_c_ends_the_hashing_in_the_middle_of_a_tensor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = Checkpoint.open(model).tensors
    started: list[str] = []
    sha256_of = fingerprints._sha256_of

    def slowly(info: TensorInfo, given_up: Event) -> bytes:
        started.append(info.name)
        if len(started) > 1:
            assert given_up.wait(60), "it is told"
        return sha256_of(info, given_up)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fingerprints, "_sha256_of", slowly)
    monkeypatch.setattr(fingerprints, "_MOST_THREADS", 2)
    with pytest.raises(KeyboardInterrupt):
        full_sha256(tensors, interrupt)
    assert len(started) <= 3 < len(tensors)


def test_progress_of_hashing_is_in_bytes(model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = Checkpoint.open(model)
    checkpoint.coverage(full=True, progress=lambda *step: seen.append(step))
    assert {what for what, _, _ in seen} == {"hashing every byte"}
    assert seen[-1][1:] == (checkpoint.nbytes, checkpoint.nbytes)


# ------------------------------------------------------------------------------------------------ who compares


@pytest.mark.parametrize("verify", ["auto", "full"])
def test_one_flipped_bit_between_score_and_prune_is_a_sentence(tmp_path: Path, model: Path, verify: str) -> None:
    plan = saved(model, tmp_path, verify=verify)
    flip_a_bit(model)
    with pytest.raises(PlanError, match=r"The weights of toy are not those that the plan was made for: their SHA-256"):
        moeits.prune(model, plan=plan, output=tmp_path / "out", verify=verify)
    assert not (tmp_path / "out").exists()
    moeits.prune(model, plan=plan, output=tmp_path / "out", verify="sampled")


@pytest.mark.usefixtures("as_if_large")
def test_a_plan_that_has_a_full_hash_is_compared_with_every_byte_however_large(tmp_path: Path, model: Path) -> None:
    plan = saved(model, tmp_path, verify="full")
    flip_a_bit(model)
    with pytest.raises(PlanError, match="They were changed or damaged"):
        moeits.prune(model, plan=plan, output=tmp_path / "out")


@pytest.mark.usefixtures("as_if_large")
def test_what_cannot_be_compared_is_not_promised(tmp_path: Path, model: Path) -> None:
    plan = saved(model, tmp_path)
    with pytest.raises(PlanError, match="Score with --verify full and plan again, or prune with --verify sampled"):
        moeits.prune(model, plan=plan, output=tmp_path / "out", verify="full")
    with pytest.raises(SettingError, match="--verify fully is not one of auto, sampled, full"):
        moeits.score(model, verify="fully")


@pytest.mark.parametrize("given", [{"tau": 0.5}, {"criterion": "random", "experts_per_layer": 4}])
def test_simplify_hashes_the_source_once_and_says_so(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object]
) -> None:
    hashed = []
    monkeypatch.setattr("moeits.checkpoint.reading.full_sha256", lambda *a: hashed.append(a) or full_sha256(*a))
    plan = moeits.simplify(model, output=tmp_path / "out", threads=1, verify="full", **given)
    assert len(hashed) == 1
    assert plan.coverage == Checkpoint.open(model).coverage(full=True)
    assert PruningPlan.load(tmp_path / "out" / "plan.json").coverage == plan.coverage
    assert f"SHA-256\n`{plan.coverage.sha256}`" in (tmp_path / "out" / "README.md").read_text()


def test_another_form_of_the_model_has_nothing_to_compare_with(tmp_path: Path, model: Path) -> None:
    plan = saved(model, tmp_path, verify="full")
    flip_a_bit(model, sampled=True)
    with pytest.raises(PlanError, match="--any-fingerprint"):
        moeits.prune(model, plan=plan, output=tmp_path / "out", verify="full")
    done = moeits.prune(model, plan=plan, output=tmp_path / "out", verify="full", any_fingerprint=True)
    assert done.coverage == Checkpoint.open(model).coverage(full=True), "of what was read, not of what was planned for"


# ------------------------------------------------------------------------------------------------ what is said of it


@pytest.mark.usefixtures("as_if_large")
def test_a_sampled_fingerprint_says_so_in_evidence_plan_card_and_inspect(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = saved(model, tmp_path)
    seen = Checkpoint.open(model).coverage()
    assert 0 < seen.nbytes < seen.of == Checkpoint.open(model).nbytes
    said = {"kind": "sampled", "nbytes": seen.nbytes, "of": seen.of}
    assert Evidence.load(tmp_path / "e.safetensors").facts()["coverage"] == said
    assert json.loads(plan.read_text())["coverage"] == said
    moeits.prune(model, plan=plan, output=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The fingerprint is sampled, {seen.nbytes:,} bytes of {seen.of:,}" in card
    show_inspection(moeits.inspect(tmp_path / "out" / "plan.json"), {})
    assert f"fingerprint is sampled: {seen.nbytes:,} bytes of {seen.of:,}\n" in capsys.readouterr().out


def test_calibration_says_what_was_hashed_too(tmp_path: Path, model: Path) -> None:
    evidence = moeits.score(model, threads=1, verify="full")
    assert evidence.inventory.coverage == Checkpoint.open(model).coverage(full=True)
    evidence.save(tmp_path / "e.safetensors")
    assert Evidence.load(tmp_path / "e.safetensors").inventory == evidence.inventory


def test_files_of_one_checkpoint_say_what_the_surest_of_them_says(model: Path) -> None:
    sampled, full = (moeits.score(model, threads=1, verify=verify) for verify in ("sampled", "full"))
    beside = replace(sampled, redundancy={})
    assert merged([beside, full]).inventory.coverage == full.inventory.coverage
    flip_a_bit(model)
    other = replace(moeits.score(model, threads=1, verify="full"), redundancy={})
    with pytest.raises(EvidenceError, match="two versions of toy"):
        merged([full, other])


def test_plans_and_evidence_of_0_1_do_not_say_and_are_read_as_before(tmp_path: Path, model: Path) -> None:
    plan = saved(model, tmp_path)
    facts = json.loads(plan.read_text())
    del facts["coverage"]
    plan.write_text(json.dumps(facts))
    assert PruningPlan.load(plan).coverage is None
    done = moeits.prune(model, plan=plan, output=tmp_path / "out")
    assert done.coverage == Checkpoint.open(model).coverage(), "what was looked at now is said"
    evidence = replace(
        Evidence.load(tmp_path / "e.safetensors"),
        inventory=replace(Evidence.load(tmp_path / "e.safetensors").inventory, coverage=None),
    )
    evidence.save(tmp_path / "old.safetensors")
    assert "coverage" not in Evidence.load(tmp_path / "old.safetensors").facts()


@pytest.mark.parametrize("wrong", [{"nbytes": -1, "of": 2}, {"nbytes": 1, "of": 2, "sha256": "x"}, "full", {}])
def test_a_coverage_that_cannot_be_one_is_a_sentence(tmp_path: Path, model: Path, wrong: object) -> None:
    plan = saved(model, tmp_path)
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "coverage": wrong}))
    with pytest.raises(PlanError, match=r"\$\.coverage"):
        PruningPlan.load(plan)


def test_coverage_is_told_apart_by_its_hash() -> None:
    assert not Coverage(nbytes=2, of=2).full
    assert Coverage(nbytes=2, of=2, sha256="0" * 64).facts()["kind"] == "full"
