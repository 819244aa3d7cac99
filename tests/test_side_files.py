"""What is copied beside the tensors: the checkpoint's own files, and none from elsewhere on the machine."""

import json
import os
from pathlib import Path

import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_code import code_files
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
        side_files(Checkpoint.open(source))


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
    assert "LICENSE" not in side_files(Checkpoint.open(source))


# ------------------------------------------------------------------------------------------------ code of a tokenizer


def with_tokenizer_code(folder: Path, auto_map: object, **files: str) -> Path:
    """A toy that brings code, whose text would leave a mark if it ran."""
    make_toy(folder, "mixtral")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "padding_side": "left"}))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text + "\nraise SystemExit('it ran')")
    return folder


def test_code_of_the_tokenizer_is_copied_with_what_it_imports_and_the_card_says_so(tmp_path: Path) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_toy.Toy", None]}
    code = {"tokenization_toy": "from .pieces import cut", "pieces": "", "modeling_toy": "import torch"}
    source = with_tokenizer_code(tmp_path / "toy", auto_map, **code)
    moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)
    for name in ("tokenizer_config.json", "tokenization_toy.py", "pieces.py"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "modeling_toy.py").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The tokenizer needs code that the source brings (`pieces.py`, `tokenization_toy.py`). It was copied" in card
    assert "(modeling_toy.py). It was never run and is left out" in card
    moeits.simplify(source, tau=0.4, output=tmp_path / "out", threads=1, overwrite=True)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": ["other/repo--tokenization_toy.Toy", None]},
        {"AutoTokenizer": ["gone.Toy", None]},
        {"AutoTokenizer": "../tokenization_toy.Toy"},
        {"AutoTokenizer": "tokenization_toy"},
        {"AutoTokenizer": 5},
        {"AutoTokenizer": [None, None]},
        {"AutoTokenizer": ["modeling_moeits.Toy", None]},
        [],
        "tokenization_toy.Toy",
    ],
)
def test_an_auto_map_that_names_no_code_of_the_folder_is_left_out(tmp_path: Path, auto_map: object) -> None:
    source = with_tokenizer_code(tmp_path / "toy", auto_map, tokenization_toy="")
    moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"padding_side": "left"}
    assert not (tmp_path / "out" / "tokenization_toy.py").exists()


def test_a_file_that_is_code_of_the_model_is_not_copied_for_a_tokenizer_that_names_it_too(tmp_path: Path) -> None:
    source = with_tokenizer_code(tmp_path / "toy", {"AutoTokenizer": "modeling_toy.Tokenizer"}, modeling_toy="")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "modeling_toy.Config"}}))
    moeits.simplify(source, tau=0.5, output=tmp_path / "out", threads=1)
    assert not (tmp_path / "out" / "modeling_toy.py").exists()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"padding_side": "left"}


def test_code_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    source = with_tokenizer_code(tmp_path / "toy", {"AutoTokenizer": "tokenization_toy.Toy"})
    (tmp_path / "private.py").write_text("PASSWORD = 1")
    (source / "tokenization_toy.py").symlink_to(tmp_path / "private.py")
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint's folder"):
        side_files(Checkpoint.open(source))


def test_files_that_import_each_other_are_named_once(tmp_path: Path) -> None:
    source = with_tokenizer_code(
        tmp_path / "toy",
        {"AutoProcessor": "a.A"},
        a="from .b import x\nfrom . import c, b as d",
        b="  from .a import y",
    )
    assert code_files(source) == ("a.py", "b.py", "c.py")
