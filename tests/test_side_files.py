"""What is copied beside the tensors: the checkpoint's own files, and none from elsewhere on the machine."""

import os
from pathlib import Path

import pytest

import moeits
from moeits.checkpoint.side_files import side_files
from moeits.errors import CheckpointError
from tests.toys import make_toy


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.model", "additional_chat_templates/rag.jinja"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_checkpoint_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, relative: bool
) -> None:
    source, private = make_toy(tmp_path / "toy", "mixtral"), tmp_path / "id_rsa"
    private.write_text("PRIVATE KEY")
    link = source / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(os.path.relpath(private, link.parent) if relative else private)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint's folder"):
        moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_templates_that_leads_out_is_refused(tmp_path: Path) -> None:
    source, private = make_toy(tmp_path / "toy", "mixtral"), tmp_path / "home"
    private.mkdir()
    (private / "id_rsa").write_text("PRIVATE KEY")
    (source / "additional_chat_templates").symlink_to(private, target_is_directory=True)
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint's folder"):
        side_files(source)


def test_links_within_the_checkpoint_and_into_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    source = make_toy(model / "snapshots" / "0a1b", "mixtral")
    (model / "blobs").mkdir()
    (model / "blobs" / "cafe").write_text("terms")
    (source / "LICENSE").symlink_to("../../blobs/cafe")
    (source / "NOTICE").symlink_to("LICENSE")
    moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)
    assert [(tmp_path / "out" / name).read_text() for name in ("LICENSE", "NOTICE")] == ["terms", "terms"]


def test_a_link_in_a_circle_is_said_of_the_source(tmp_path: Path) -> None:
    source = make_toy(tmp_path / "toy", "mixtral")
    (source / "LICENSE").symlink_to("circle")
    (source / "circle").symlink_to("LICENSE")
    with pytest.raises(CheckpointError, match="LICENSE is a link that leads nowhere"):
        moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)


def test_a_pipe_with_the_name_of_a_side_file_is_not_read(tmp_path: Path) -> None:
    source = make_toy(tmp_path / "toy", "mixtral")
    os.mkfifo(source / "LICENSE")
    assert "LICENSE" not in side_files(source)
