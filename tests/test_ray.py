"""A Ray cluster scores what this machine would, bit for bit, whatever becomes of its workers."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.engines.ray import RayCluster
from moeits.errors import CheckpointError, MissingExtra, SettingError
from moeits.scoring.jobs import LayerJob
from moeits.signals.settings import Scoring
from tests.killed_jobs import killing_its_worker
from tests.toys import make_toy

MEMORY = 1 << 30

# Ray's own, of which there is nothing to mend here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def job_of(model: Path, **changes: Any) -> LayerJob:
    return LayerJob.of(Checkpoint.open(model), Opening(**changes), Scoring(), threads=1, memory_bytes=MEMORY)


# ------------------------------------------------------------------------------------------------ without a cluster


def test_a_job_is_a_function_of_what_it_is_given(toy: Path) -> None:
    import pickle

    job, evidence = job_of(toy), moeits.score(toy)
    sent = pickle.loads(pickle.dumps(job))
    for layer, values in evidence.redundancy.items():
        arrays = sent(layer)
        np.testing.assert_array_equal(arrays["redundancy"], values)
        np.testing.assert_array_equal(arrays["floor"], evidence.floor[layer])


def test_a_machine_that_sees_other_weights_or_has_another_version_is_a_sentence(toy: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    other = replace(job_of(make_toy(tmp_path / "other", seed=1)), model=str(toy))
    with pytest.raises(CheckpointError, match="sees other weights at"):
        other(0)
    with pytest.raises(SettingError, match=r"The cluster has moeits \S+, and this machine 0\.0\.1"):
        replace(job_of(toy), moeits="0.0.1")(0)


def test_a_job_of_the_hub_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeits.checkpoint.streamed import Streamed
    from tests.hub_server import COMMIT, reach, serving

    with serving(make_toy(tmp_path / "toy")) as hub:
        reach(hub.url, tmp_path / "cache", monkeypatch.setattr)
        checkpoint = Streamed.open("org/toy")
        job = LayerJob.of(checkpoint, Opening(stream=True), Scoring(), threads=1, memory_bytes=MEMORY)
        assert (job.model, job.opening.revision, job.opening.stream) == ("org/toy", COMMIT, True)
        np.testing.assert_array_equal(job(0)["redundancy"], moeits.score(hub.folder).redundancy[0])


def test_without_ray_the_extra_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[ray\]'"):
        moeits.score(toy, engine="ray")


def test_what_an_engine_cannot_be_asked_is_a_sentence(toy: Path) -> None:
    with pytest.raises(SettingError, match="--engine dask is not one of threads, ray"):
        moeits.score(toy, engine="dask")
    with pytest.raises(SettingError, match="give --engine ray too"):
        moeits.score(toy, address="auto")


def test_an_address_that_does_not_answer_is_a_sentence(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Failed to connect to GCS\nat 10.0.0.1:6379.")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(
        SettingError, match=r"--address 10\.0\.0\.1:6379 does not answer .*: Failed to connect to GCS at"
    ):
        moeits.score(toy, engine="ray", address="10.0.0.1:6379")


def test_when_the_node_of_this_machine_has_gone_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [type(name, (Exception,), {}) for name in ("LocalRayletDiedError", "RayTaskError", "RayError")]

    def get(_: Any) -> None:
        raise errors[0]

    ray = types.SimpleNamespace(
        init=lambda **_: None,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2}}],
        put=lambda work: work,
        remote=lambda **_: lambda _: types.SimpleNamespace(remote=lambda *_: None),
        get=get,
        shutdown=lambda: None,
        exceptions=types.SimpleNamespace(**{error.__name__: error for error in errors}),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with RayCluster("auto") as engine, pytest.raises(SettingError, match=r"node of this machine has gone, .* again"):
        next(engine.map(str, [0]))


# --------------------------------------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A cluster of two nodes, of processes of this machine."""
    pytest.importorskip("ray", reason="ray is not installed: this test starts a cluster of two nodes")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as surroundings:
        surroundings.setenv("RAY_worker_niceness", "0")  # by default 15, which waits for everybody else
        own = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        own.add_node(num_cpus=1)
        yield own
        own.shutdown()


@pytest.mark.slow
def test_evidence_from_a_cluster_is_the_file_that_threads_write(cluster: Any, toy: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"signals": "router-cosine,weight-norm", "memory": MEMORY}
    moeits.score(toy, output=tmp_path / "here", **asked)
    moeits.score(toy, output=tmp_path / "there", engine="ray", address=cluster.address, **asked)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.slow
def test_layers_of_workers_that_are_killed_are_scored_again(cluster: Any, toy: Path, tmp_path: Path) -> None:
    from functools import partial

    expected = moeits.score(toy)
    with RayCluster(cluster.address) as engine:
        layers = list(expected.redundancy)
        found = list(engine.map(partial(killing_its_worker, (job_of(toy), tmp_path)), layers))
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == len(layers)
    for layer, arrays in zip(layers, found, strict=True):
        np.testing.assert_array_equal(arrays["redundancy"], expected.redundancy[layer])


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_layer(cluster: Any, tmp_path: Path) -> None:
    model = make_toy(tmp_path / "toy", layers=6)
    lost = cluster.add_node(num_cpus=2)

    def lose(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if what == "scoring layers" and done == 1:
            cluster.remove_node(lost, allow_graceful=False)

    moeits.score(model, output=tmp_path / "here", memory=MEMORY)
    moeits.score(model, output=tmp_path / "there", engine="ray", address=cluster.address, memory=MEMORY, progress=lose)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.slow
def test_what_a_job_finds_wrong_and_cores_that_no_node_has_are_sentences(cluster: Any, toy: Path) -> None:
    with pytest.raises(SettingError, match=r"--memory .* is too little for two experts of layer 0"):
        moeits.score(toy, engine="ray", address=cluster.address, memory="1KiB")
    with pytest.raises(SettingError, match="--threads 64 are more than a machine of the cluster has: at most"):
        moeits.score(toy, engine="ray", address=cluster.address, threads=64)


@pytest.mark.slow
def test_kills_on_a_cluster_break_nothing() -> None:
    """A worker, a node and the program that asked; `python -m tests.ray_kills` for many."""
    pytest.importorskip("ray", reason="ray is not installed: this test starts a cluster of two nodes")
    from tests.ray_kills import run

    assert not [example for tally in run(3).values() for example in tally.examples]
