"""Models on the hub, with the hub's one call replaced: nothing here reaches the network."""

import re
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import moeits
from moeits.checkpoint import Checkpoint
from moeits.errors import CheckpointError
from moeits.hub import download
from tests.toys import make_toy, read_config

# The HTTP library that this huggingface_hub stands on.
http = sys.modules[HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one model, `org/toy`, as its cache lays it out; what it was asked for is noted."""
    cache, asked = tmp_path / "hub" / "models--org--toy", {}
    blobs, snapshot = cache / "blobs", cache / "snapshots" / COMMIT
    toy = make_toy(tmp_path / "uploaded")
    (toy / "modeling_toy.py").write_text("raise SystemExit('it ran')")
    (toy / "pytorch_model.bin").write_text("a pickle")
    (toy / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Toy\n")

    def snapshot_download(
        model: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.update(model=model, revision=revision)
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for path in toy.iterdir():
            allowed = any(fnmatch(path.name, each) for each in allow_patterns)
            if allowed and not any(fnmatch(path.name, each) for each in ignore_patterns):
                shutil.copy(path, blobs / f"blob-{path.name}")
                (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def raising(error: Exception) -> Callable[..., str]:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    return snapshot_download


def answered(kind: type[Exception], status: int) -> Exception:
    response = http.Response(status, request=http.Request("GET", "https://huggingface.co/org/toy"))
    return kind("the hub's own many-lined words\nand more", response=response)  # type: ignore[call-arg]


def test_the_source_is_the_id_with_its_resolved_commit(hub: dict[str, Any], tmp_path: Path) -> None:
    plan = moeits.simplify("org/toy", revision="main", experts_per_layer=4, output=tmp_path / "out")
    assert hub == {"model": "org/toy", "revision": "main"}
    assert plan.source == f"org/toy@{COMMIT}"
    assert read_config(tmp_path / "out")["moeits"]["source"] == f"org/toy@{COMMIT}"


def test_only_data_is_asked_for(hub: dict[str, Any]) -> None:
    folder, _ = download("org/toy")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert hub["revision"] is None


def test_links_of_the_cache_become_files(hub: dict[str, Any], tmp_path: Path) -> None:  # noqa: ARG001
    moeits.simplify("org/toy", experts_per_layer=4, output=tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_the_card_names_the_base_model_and_keeps_its_licence(hub: dict[str, Any], tmp_path: Path) -> None:  # noqa: ARG001
    moeits.simplify("org/toy", experts_per_layer=4, output=tmp_path / "out")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert (card.base_model, card.license, card.language) == ("org/toy", "apache-2.0", ["en"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (answered(GatedRepoError, 403), "org/toy is gated: accept its terms on the hub and set HF_TOKEN"),
        (answered(RepositoryNotFoundError, 404), "the hub has no such model"),
        (answered(RevisionNotFoundError, 404), "org/toy has no revision v9"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (http.ConnectError("no route to host"), "org/toy cannot be had from the hub: no route to host"),
        (OSError("disk on fire"), "org/toy cannot be had from the hub: disk on fire"),
    ],
    ids=["gated", "not found", "no revision", "offline", "no network", "disk"],
)
def test_what_the_hub_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(CheckpointError, match=re.escape(sentence)) as raised:
        Checkpoint.open("org/toy", revision="v9")
    assert "\n" not in str(raised.value)


def test_offline_means_offline_because_the_library_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="unset HF_HUB_OFFLINE"):
        Checkpoint.open("org/no-such-model")


@pytest.mark.parametrize(
    "name", ["three/part/name", "", "white space/x", "/absolute/path", "https://huggingface.co/a/b"]
)
def test_what_is_neither_folder_nor_id_never_reaches_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(AssertionError("the hub was asked")))
    with pytest.raises(CheckpointError, match="is no hub id"):
        download(name)


def test_load_takes_hub_ids_too(hub: dict[str, Any]) -> None:
    assert moeits.load("org/toy", revision="main").config.num_experts == 6
    assert hub["revision"] == "main"
