"""A model of the hub that is scored and pruned without being downloaded, whatever the network does meanwhile."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.streamed import Streamed
from moeits.errors import CheckpointError, PlanError, SettingError
from tests.healing_toys import write_tokenizer
from tests.hub_server import COMMIT, Hub, reach, serving
from tests.kills import WATCHED
from tests.test_changed_source import Killed
from tests.toys import make_toy

THREE = {"shards": 3, "hidden_size": 64}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited before the hub was asked again, though nobody waits here."""
    waited: list[float] = []
    monkeypatch.setattr("moeits.checkpoint.sources.hub_files.time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose model `org/toy` has three shards."""
    toy = make_toy(tmp_path / "toy", **THREE)
    (toy / "generation_config.json").write_text("{}")
    with serving(toy) as hub:
        reach(hub.url, tmp_path / "cache", monkeypatch.setattr)
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bytes_asked(hub: Hub) -> int:
    return sum(last + 1 - first for _, first, last in hub.asked)


def overlaps(hub: Hub) -> list[tuple[str, int, int]]:
    """Ranges of which something had been asked for before."""
    ranges = sorted(hub.asked)
    return [later for one, later in pairwise(ranges) if one[0] == later[0] and later[1] <= one[2]]


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])
def test_evidence_and_output_are_those_of_the_downloaded_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    toy = make_toy(tmp_path / "toy", model_type, shards=2)
    with serving(toy) as hub:
        for place, stream in (("here", False), ("there", True)):
            folder = tmp_path / place
            reach(hub.url, folder / "cache", monkeypatch.setattr)
            evidence = moeits.score("org/toy", output=folder / "e.safetensors", stream=stream)
            plan = moeits.plan(evidence, tau=0.5, output=folder / "plan.json")
            moeits.prune("org/toy", plan=plan, output=folder / "out", stream=stream)
    here, there = (files_of(tmp_path / place / "out") for place in ("here", "there"))
    assert here == there
    for name in ("e.safetensors", "plan.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert plan.source == f"org/toy@{COMMIT}"
    assert not [*(tmp_path / "there" / "cache").rglob("*.safetensors")]
    assert [*(tmp_path / "here" / "cache").rglob("*.safetensors")]


def test_scoring_asks_for_no_byte_twice(hub: Hub) -> None:
    moeits.score("org/toy", stream=True, verify="sampled")
    assert hub.asked
    assert not overlaps(hub)
    assert hub.connections <= 16 + 2  # to read headers, and to read weights
    assert bytes_asked(hub) <= sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))


def test_pruning_asks_for_headers_and_what_stays(hub: Hub, tmp_path: Path) -> None:
    plan = moeits.plan(moeits.score("org/toy", stream=True, verify="sampled"), experts_per_layer=3)
    hub.asked.clear()
    moeits.prune("org/toy", plan=plan, output=tmp_path / "out", stream=True)
    shards = [info.offset for info in Checkpoint.open(hub.folder).tensors.values()]
    headers = sum(min(o for o in shards if o) for _ in range(3))
    kept = Checkpoint.open(tmp_path / "out").nbytes
    assert kept < bytes_asked(hub) <= kept + headers + 3 * 200
    assert not overlaps(hub)


def test_what_lies_together_is_asked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(make_toy(tmp_path / "toy")) as hub:
        reach(hub.url, tmp_path / "cache", monkeypatch.setattr)
        plan = moeits.plan(moeits.score("org/toy", stream=True, verify="sampled"), experts_per_layer=6)
        hub.asked.clear()
        moeits.prune("org/toy", plan=plan, output=tmp_path / "out", stream=True)
        tensors = len(Checkpoint.open(hub.folder).tensors)
    assert len(hub.asked) < tensors / 5


def test_no_more_is_under_way_than_the_threads_work_on(hub: Hub) -> None:
    moeits.score("org/toy", stream=True, verify="sampled", threads=2)
    largest = max(info.nbytes for name, info in Checkpoint.open(hub.folder).tensors.items() if ".experts." in name)
    headers = max(Checkpoint.open(hub.folder).tensors.values(), key=lambda info: info.nbytes).nbytes
    assert hub.most_in_flight <= max(2 * largest, 16 * headers)
    hub.most_in_flight, hub.asked[:] = 0, []
    checkpoint = Streamed.open("org/toy")
    hub.most_in_flight = 0
    for name in checkpoint.tensors:
        checkpoint.read(name)
    assert hub.most_in_flight == max(info.nbytes for info in checkpoint.tensors.values())


def test_pruning_holds_a_buffer_and_not_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy", layers=2, hidden_size=1024, moe_intermediate_size=512)
    nbytes = Checkpoint.open(toy).nbytes
    plan = moeits.plan(moeits.score(toy, verify="sampled"), experts_per_layer=5)
    with serving(toy) as hub:
        reach(hub.url, tmp_path / "cache", monkeypatch.setattr)
        tracemalloc.start()
        moeits.prune("org/toy", plan=plan, output=tmp_path / "out", stream=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert nbytes > 40 << 20
    assert peak < 8 << 20
    assert Checkpoint.open(tmp_path / "out").nbytes < nbytes


@pytest.mark.parametrize(
    ("faults", "waited"),
    [
        (["reset"], [1.0]),
        (["short", "short"], None),
        (["429"], [3.0]),
        (["503", "503", "503"], None),
        (["slow", "slow"], []),
        (["silent"], [1.0]),
        (["", "reset", "", "short", "503", "", "429", "reset"], None),
    ],
    ids=lambda value: (
        "-".join(each or "well" for each in value)
        if isinstance(value, list) and value and str in map(type, value)
        else None
    ),
)
def test_a_bad_network_changes_no_byte(
    hub: Hub, tmp_path: Path, waits: list[float], faults: list[str], waited: list[float] | None
) -> None:
    expected = moeits.score("org/toy", output=tmp_path / "here.safetensors")
    moeits.prune("org/toy", plan=(plan := moeits.plan(expected, tau=0.5)), output=tmp_path / "here")
    hub.faults[:] = faults
    moeits.score("org/toy", stream=True, output=tmp_path / "there.safetensors", threads=1)
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    assert not hub.faults
    assert waits == waited if waited is not None else waits
    hub.faults[:] = faults
    moeits.prune("org/toy", plan=plan, output=tmp_path / "there", stream=True)
    assert not hub.faults
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


def test_a_hub_that_stays_away_is_a_sentence_and_what_was_finished_is_used(
    hub: Hub, tmp_path: Path, waits: list[float]
) -> None:
    output = tmp_path / "e.safetensors"

    def fail_in_the_last_layer(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if done == total * 2 // 3:
            hub.faults[:] = ["503"] * 1000

    with pytest.raises(CheckpointError, match=r"of org/toy@0123\w+ cannot be read: 127.0.0.1 answered 503\. Start"):
        moeits.score("org/toy", stream=True, output=output, threads=1, progress=fail_in_the_last_layer)
    assert waits[:5] == [1, 2, 4, 8, 16]
    hub.faults.clear()
    said: list[str] = []
    moeits.score("org/toy", stream=True, output=output, progress=lambda what, done, total: said.append(what))  # noqa: ARG005
    assert any("which left 2 finished parts" in each for each in said)
    moeits.score("org/toy", output=tmp_path / "here.safetensors")
    assert output.read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def test_finished_layers_are_those_of_one_commit_and_one_content(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "e.safetensors"

    def kill(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        moeits.score("org/toy", stream=True, output=output, threads=1, progress=kill)
    change(hub)
    resumed = moeits.score("org/toy", stream=True, output=output, threads=1)
    for layer, values in moeits.score(hub.folder).redundancy.items():
        np.testing.assert_array_equal(resumed.redundancy[layer], values)


def change(hub: Hub) -> None:
    """Another model under the same names and with the same sizes."""
    other = make_toy(hub.folder.with_name(f"other-{len(hub.asked)}"), seed=1, **THREE)
    for path in other.glob("*.safetensors"):
        os.replace(path, hub.folder / path.name)  # noqa: PTH105 - in one step, as a hub does


@pytest.mark.parametrize("verb", ["score", "prune"])
@pytest.mark.parametrize("expired", [False, True])
def test_a_model_that_changes_while_it_is_read_is_a_sentence(
    hub: Hub, tmp_path: Path, verb: str, expired: bool, waits: list[float]
) -> None:
    output, plan = tmp_path / "out", moeits.plan(moeits.score(hub.folder), tau=0.5)
    changed: list[int] = []

    def begin(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if not changed:
            changed.append(done)
            change(hub)
            hub.links += expired

    run = {"score": lambda: moeits.score("org/toy", stream=True, output=output, threads=1, progress=begin)}
    run["prune"] = lambda: moeits.prune("org/toy", plan=plan, output=output, stream=True, progress=begin)
    with pytest.raises(CheckpointError, match=r"of org/toy@0123\w+ changed while it was read"):
        run[verb]()
    assert not output.exists()
    assert not waits


def test_links_that_expire_are_asked_for_again(hub: Hub, waits: list[float]) -> None:
    expected = moeits.score(hub.folder)

    def expire(what: str, done: int, total: int) -> None:  # noqa: ARG001
        hub.links += 1

    found = moeits.score("org/toy", stream=True, threads=1, progress=expire)
    assert all(np.array_equal(values, expected.redundancy[layer]) for layer, values in found.redundancy.items())
    assert len(hub.looked_up) > 3
    assert waits


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_of_a_test"
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert moeits.score("org/toy", stream=True).redundancy
    assert not hub.tokens_elsewhere
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        CheckpointError, match=r"model-0000\d-of-00003\.safetensors of org/toy@\w+ cannot be read: .*401"
    ):
        moeits.score("org/toy", stream=True)


def test_a_server_without_ranges_is_a_sentence(hub: Hub) -> None:
    hub.ranges = False
    with pytest.raises(CheckpointError, match=r"sends the whole of model-0000.* Leave --stream out"):
        moeits.score("org/toy", stream=True)


def test_a_shard_that_the_hub_has_not_is_a_sentence(hub: Hub) -> None:
    next(hub.folder.glob("*2-of*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="The hub has no model-00002-of-00003"):
        moeits.score("org/toy", stream=True)


def test_what_cannot_be_streamed_is_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"--stream is of models on the hub, and .* is here"):
        moeits.score(hub.folder, stream=True)
    with pytest.raises(CheckpointError, match="not a hub id"):
        moeits.score("./nowhere/at/all", stream=True)
    write_tokenizer(hub.folder)
    with pytest.raises(SettingError, match="Leave --stream out"):
        moeits.calibrate("org/toy", stream=True, data="self")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError, match="HF_HUB_OFFLINE is set"):
        moeits.score("org/toy", stream=True)


def test_a_plan_of_another_copy_is_compared_by_sampled_bytes(hub: Hub, tmp_path: Path) -> None:
    plan = moeits.plan(moeits.score(hub.folder, verify="sampled"), tau=0.5)
    moeits.prune("org/toy", plan=plan, output=tmp_path / "out", stream=True)
    change(hub)
    with pytest.raises(PlanError, match="has fingerprint"):
        moeits.prune("org/toy", plan=plan, output=tmp_path / "other", stream=True)


def test_calibrate_streams_too(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_tokenizer(hub.folder)
    for name, stream in (("there", True), ("here", False)):
        moeits.calibrate("org/toy", output=tmp_path / name, stream=stream, **WATCHED)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.usefixtures("hub")
def test_simplify_streams_too(tmp_path: Path) -> None:
    for name, stream in (("there", True), ("here", False)):
        moeits.simplify("org/toy", reduction=0.5, output=tmp_path / name, stream=stream)
        downloaded = [*(tmp_path / "cache").rglob("*.safetensors")]
        assert bool(downloaded) != stream
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


def test_the_command_line_streams(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    asked = [sys.executable, "-m", "moeits", "score", "org/toy", "--stream", "-o", str(tmp_path / "e.safetensors")]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / "home").rglob("*.safetensors")]
    assert moeits.Evidence.load(tmp_path / "e.safetensors").source == f"org/toy@{COMMIT}"
