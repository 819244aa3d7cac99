"""Models on the hub, with the hub's two calls replaced: nothing here reaches the network."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

import moeits
from moeits.checkpoint.hub import download
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import side_files
from moeits.errors import CheckpointError, SettingError, UnknownArchitecture
from tests.toys import make_toy, read_config

# The HTTP library that this huggingface_hub stands on.
http = sys.modules[HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one model, `org/toy`, as its cache lays it out; what it was asked for is noted."""
    cache, asked = tmp_path / "hub" / "models--org--toy", {}
    asked["revisions"] = []
    blobs, snapshot = cache / "blobs", cache / "snapshots" / COMMIT
    toy = make_toy(tmp_path / "uploaded")
    (toy / "modeling_toy.py").write_text("raise SystemExit('it ran')")
    (toy / "pytorch_model.bin").write_text("a pickle")
    (toy / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Toy\n")

    def snapshot_download(
        model: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked["model"] = model
        asked["revisions"].append(revision)
        blobs.mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in toy.iterdir():
            allowed = any(fnmatch(path.name, each) for each in allow_patterns)
            have = (snapshot / path.name).exists()
            if allowed and not have and not any(fnmatch(path.name, each) for each in ignore_patterns):
                shutil.copy(path, blobs / f"blob-{path.name}")
                (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
        return str(snapshot)

    def get_safetensors_metadata(model: str, *, revision: str) -> SafetensorsRepoMetadata:
        asked["headers"] = (model, revision)
        files = {path.name: file_metadata(path) for path in toy.glob("*.safetensors")}
        return SafetensorsRepoMetadata(metadata=None, sharded=False, weight_map={}, files_metadata=files)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", get_safetensors_metadata)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked["snapshot"], asked["uploaded"] = snapshot, toy
    return asked


def file_metadata(path: Path) -> SafetensorsFileMetadata:
    """The header of a file, as huggingface_hub gives that of a file on the hub."""
    with path.open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = entries.pop("__metadata__", {})
    tensors = {
        name: TensorInfo(entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in entries.items()
    }
    return SafetensorsFileMetadata(metadata=metadata, tensors=tensors)


def raising(error: Exception) -> Callable[..., str]:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    return snapshot_download


def answered(kind: type[Exception], status: int) -> Exception:
    response = http.Response(status, request=http.Request("GET", "https://huggingface.co/org/toy"))
    return kind("the hub's own many-lined words\nand more", response=response)  # type: ignore[call-arg]


def test_the_source_is_the_id_with_its_resolved_commit(hub: dict[str, Any], tmp_path: Path) -> None:
    plan = moeits.simplify("org/toy", revision="main", experts_per_layer=4, output=tmp_path / "out")
    assert (hub["model"], hub["revisions"]) == ("org/toy", ["main", COMMIT])
    assert plan.source == f"org/toy@{COMMIT}"
    assert read_config(tmp_path / "out")["moeits"]["source"] == f"org/toy@{COMMIT}"


def test_only_data_is_asked_for(hub: dict[str, Any]) -> None:
    folder, _ = download("org/toy")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert hub["revisions"] == [None]


SPELLINGS = (
    *("LICENSE", "License", "license.md", "LICENCE", "LICENSE.txt", "MODEL_LICENSE", "COPYING", "notice.txt", "NOTICE"),
    *("Use_Policy.md", "USE_POLICY.md", "COPYRIGHT", "Tokenizer.model", "tokenizer.model.v3", "vocab.bpe", "VOCAB.txt"),
    *("tekken.json", "merges.txt", "qwen.tiktoken", "spiece.model", "chat_template.jinja", "generation_config.json"),
    *("preprocessor_config.json", "hf_quant_config.json"),
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_copied_from_a_folder_is_fetched_from_the_hub(hub: dict[str, Any], name: str) -> None:
    (hub["uploaded"] / name).write_text("{}")
    assert name in side_files(Checkpoint.open(hub["uploaded"]))
    assert name in side_files(Checkpoint.open("org/toy"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_toy.py", "train.py", "model.gguf", "optimizer.pt"])
def test_what_is_not_copied_from_a_folder_is_not_fetched(hub: dict[str, Any], name: str) -> None:
    (hub["uploaded"] / name).write_text("{}")
    assert name not in side_files(Checkpoint.open(hub["uploaded"]))
    assert not (download("org/toy")[0] / name).exists()


def test_code_of_the_tokenizer_is_fetched_with_what_it_imports_and_no_other(hub: dict[str, Any]) -> None:
    toy = hub["uploaded"]
    (toy / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_toy.Toy", null]}}')
    (toy / "tokenization_toy.py").write_text("raise SystemExit('it ran')\nfrom .pieces import cut\n")
    (toy / "pieces.py").write_text("from . import marks")
    (toy / "marks.py").write_text("")
    (toy / "train.py").write_text("")
    folder, _ = download("org/toy")
    assert {path.name for path in folder.glob("*.py")} == {"tokenization_toy.py", "pieces.py", "marks.py"}
    assert set(hub["revisions"][1:]) == {COMMIT}, "more of the same commit"


def test_code_that_the_hub_does_not_have_is_looked_for_once(hub: dict[str, Any]) -> None:
    (hub["uploaded"] / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["gone.Toy", null]}}')
    download("org/toy")
    assert hub["revisions"] == [None, COMMIT]


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
        (http.ConnectError("no route to host"), "cannot download org/toy from the hub: no route to host"),
        (OSError("disk on fire"), "cannot download org/toy from the hub: disk on fire"),
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
    "name",
    [
        "three/part/name",
        "",
        "white space/x",
        "/absolute/path",
        "https://huggingface.co/a/b",
        "./nowhere",
        "../nowhere",
        "~/nowhere",
        "models/.hidden",
        "models/..",
        "ärger/model",
    ],
)
def test_what_is_neither_folder_nor_id_never_reaches_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(AssertionError("the hub was asked")))
    with pytest.raises(CheckpointError, match="is not a hub id"):
        download(name)


def test_inspecting_a_model_on_the_hub_downloads_no_weights(hub: dict[str, Any]) -> None:
    found = moeits.inspect("org/toy", revision="main", reduction=0.5)
    assert not [*hub["snapshot"].glob("*.safetensors")]
    assert hub["headers"] == ("org/toy", COMMIT)
    local = moeits.inspect(hub["uploaded"], reduction=0.5)
    assert found.source == f"org/toy@{COMMIT}"
    assert replace(found, source=local.source) == local


def test_offline_a_model_of_the_hub_is_inspected_in_its_cache(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert moeits.inspect("org/toy").parameters == moeits.inspect(hub["uploaded"]).parameters
    assert "headers" not in hub


@pytest.mark.parametrize("stage", ["inspect", "score", "simplify", "sweep"])
def test_a_model_that_nobody_knows_is_refused_before_its_weights_are_downloaded(
    hub: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    config = read_config(hub["uploaded"])
    (hub["uploaded"] / "config.json").write_text(json.dumps({**config, "model_type": "qwen9_moe"}))
    arguments = {} if stage in {"inspect", "score"} else {"output": tmp_path / "out"}
    with pytest.raises(UnknownArchitecture, match="No architecture 'qwen9_moe'"):
        getattr(moeits, stage)("org/toy", **arguments)
    assert not [*hub["snapshot"].glob("*.safetensors")]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NotASafetensorsRepoError("no"), "org/toy has no safetensors on the hub"),
        (SafetensorsParsingError("a header of garbage"), "cannot download org/toy from the hub: a header of garbage"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_headers_that_cannot_be_had_are_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", raising(error))
    with pytest.raises(CheckpointError, match=sentence):
        moeits.inspect("org/toy")


def test_a_local_folder_has_no_revision(toy: Path) -> None:
    for command in (Checkpoint.open, moeits.inspect, moeits.score):
        with pytest.raises(SettingError, match=r"--revision v9 is of models on the hub, and .* is a folder here"):
            command(toy, revision="v9")


def test_load_takes_hub_ids_too(hub: dict[str, Any]) -> None:
    assert moeits.load("org/toy", revision="main").config.num_experts == 6
    assert hub["revisions"] == ["main"]
