"""Writing by moving bytes: shards, and a folder that is there as a whole or not at all."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from moeits.checkpoint import staging
from moeits.checkpoint import writing as checkpoint_writer
from moeits.checkpoint.sources.local_files import LocalFile
from moeits.checkpoint.writing import ByteRange, NewTensor, new_checkpoint, split_into_shards
from moeits.errors import CheckpointError, OutputError
from tests.test_bad_input import contents
from tests.toys import make_toy, mark_as_made_by_moeits


def tensor(name: str, nbytes: int, dtype: str = "U8", shape: tuple[int, ...] | None = None) -> NewTensor:
    parts = (bytes(range(256)) * (nbytes // 256 + 1))[:nbytes]
    return NewTensor(name=name, dtype=dtype, shape=(nbytes,) if shape is None else shape, nbytes=nbytes, parts=(parts,))


@given(sizes=st.lists(st.integers(0, 50), max_size=30), most=st.integers(1, 60))
def test_shards_hold_every_tensor_once_and_as_much_as_fits(sizes: list[int], most: int) -> None:
    tensors = [tensor(str(number), size) for number, size in enumerate(sizes)]
    shards = list(split_into_shards(tensors, most))
    assert sorted(t.name for shard in shards for t in shard) == sorted(t.name for t in tensors)
    for shard in shards:
        assert len(shard) == 1 or sum(t.nbytes for t in shard) <= most
    for shard, following in pairwise(shards):
        first = min(following, key=lambda t: int(t.name))
        assert sum(t.nbytes for t in shard) + first.nbytes > most, "no shard is cut before it is full"


def test_a_tensor_can_be_put_together_from_several_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"abcdefghij")
    parts = (
        ByteRange(shard=LocalFile(tmp_path / "b"), offset=2, length=3),
        b"XY",
        ByteRange(shard=LocalFile(tmp_path / "a"), offset=9, length=1),
        ByteRange(shard=LocalFile(tmp_path / "a"), offset=0, length=0),
        ByteRange(shard=LocalFile(tmp_path / "a"), offset=0, length=2),
    )
    made = NewTensor(name="t", dtype="U8", shape=(8,), nbytes=8, parts=parts)
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=8) as writer:
        writer.write_tensors([made], max_shard_bytes=100)
    assert load_file(tmp_path / "out" / "model.safetensors")["t"].tobytes() == b"cdeXY901"


@pytest.mark.parametrize("buffer_bytes", [1, 7, 4096, 1 << 20])
def test_a_range_is_copied_whole_whatever_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_BUFFER_BYTES", buffer_bytes)
    data = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "a").write_bytes(data)
    part = ByteRange(shard=LocalFile(tmp_path / "a"), offset=7, length=9_000)
    made = NewTensor(name="t", dtype="U8", shape=(9_000,), nbytes=9_000, parts=(part,))
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer:
        writer.write_tensors([made], max_shard_bytes=10**9)
    assert load_file(tmp_path / "out" / "model.safetensors")["t"].tobytes() == data[7:9_007]


def test_bytes_may_be_made_at_the_moment_they_are_written(tmp_path: Path) -> None:
    made = NewTensor(name="t", dtype="U8", shape=(5,), nbytes=5, parts=(b"ab", lambda: b"cde"))
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer:
        writer.write_tensors([made], max_shard_bytes=10**9)
    assert load_file(tmp_path / "out" / "model.safetensors")["t"].tobytes() == b"abcde"


def test_a_source_that_shrinks_while_it_is_read_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"short")
    part = ByteRange(shard=LocalFile(tmp_path / "a"), offset=0, length=10)
    made = NewTensor(name="t", dtype="U8", shape=(10,), nbytes=10, parts=(part,))
    with (
        pytest.raises(CheckpointError, match="became shorter"),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer,
    ):
        writer.write_tensors([made], max_shard_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_small_file_that_cannot_be_read_is_said_of_the_source(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="/proc/self/mem cannot be read"),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer,
    ):
        writer.copy(Path("/proc/self/mem"), "LICENSE")


@pytest.mark.parametrize("source", ["gone", "."])
def test_a_shard_that_cannot_be_read_is_said_of_the_source(tmp_path: Path, source: str) -> None:
    part = ByteRange(shard=LocalFile(tmp_path / source), offset=0, length=10)
    made = NewTensor(name="t", dtype="U8", shape=(10,), nbytes=10, parts=(part,))
    with (
        pytest.raises(CheckpointError, match="Mend this file of the source"),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer,
    ):
        writer.write_tensors([made], max_shard_bytes=100)


def test_nothing_has_the_name_of_the_output_before_it_is_complete(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer:
        writer.write_tensors([tensor("t", 9)], max_shard_bytes=100)
        assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == [writer.folder.parent.name]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_checkpoint_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer:
            writer.write_text("note", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "note").stat().st_mode & 0o777 == 0o640


def test_a_checkpoint_is_on_the_disk_before_it_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced, fsync = mark_as_made_by_moeits(make_toy(tmp_path / "out")), [], os.fsync

    def noted(number: int) -> None:
        assert not (out / "note").exists(), "it was replaced before it was on the disk"
        synced.append(Path(f"/proc/self/fd/{number}").readlink().name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    with new_checkpoint(out, sources=[], nbytes=1, overwrite=True) as writer:
        writer.write_tensors([tensor("a", 9), tensor("b", 9)], max_shard_bytes=10)
        writer.write_text("note", "x")
    assert {*synced} >= {path.name for path in out.iterdir()}
    assert synced[-1] == "checkpoint", "the folder itself, after its files"


def test_folders_on_the_way_to_an_output_are_made_and_stay(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path / "a" / "b" / "out", sources=[], nbytes=1) as writer:
        writer.write_json("config.json", {"a": 1})
    assert (tmp_path / "a" / "b" / "out" / "config.json").read_text() == '{\n  "a": 1\n}\n'


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"), new_checkpoint(tmp_path / "out", sources=[], nbytes=1):
        pass
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=1, overwrite=True) as writer:
        writer.write_text("note", "x")
    assert (tmp_path / "out" / "note").read_text() == "x"


@pytest.mark.parametrize(
    "name", ["thesis.txt", "results.json", ".git/HEAD", "notes/diary.txt", "adapter/mine.txt", "data", "tokenizer/x"]
)
def test_a_checkpoint_with_something_else_in_its_folder_is_not_replaced(tmp_path: Path, name: str) -> None:
    path = make_toy(tmp_path / "out") / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name == "data" else path.write_text("mine")
    with (
        pytest.raises(OutputError, match="which is not part of a checkpoint, so --overwrite does not replace it"),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=0, overwrite=True),
    ):
        pass
    assert path.exists()


@pytest.mark.parametrize("config", ["{}", "[]", '{"model_type": null}', "", '{"model_type": "toy"}'])
def test_a_folder_with_a_config_alone_is_no_checkpoint_and_not_replaced(tmp_path: Path, config: str) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text(config)
    with (
        pytest.raises(OutputError, match="is not a checkpoint, so --overwrite does not replace it"),
        new_checkpoint(tmp_path / "project", sources=[], nbytes=0, overwrite=True),
    ):
        pass
    assert (tmp_path / "project" / "config.json").read_text() == config


def test_a_checkpoint_with_all_that_belongs_to_one_is_replaced(tmp_path: Path) -> None:
    out = make_toy(tmp_path / "out", shards=2)
    parts = ["README.md", "plan.json", "healing.json", "modeling_moeits.py", "LICENSE", "tokenizer.json", "merges.txt"]
    parts += ["additional_chat_templates/tools.jinja", "adapter/adapter_model.safetensors", ".gitattributes"]
    for name in parts:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    mark_as_made_by_moeits(out)
    with new_checkpoint(out, sources=[], nbytes=0, overwrite=True) as writer:
        writer.write_text("note", "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "note"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_comes_to_be_at_the_output_while_it_is_written_is_not_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result").write_text("of another run")
    with (
        pytest.raises(OutputError, match=r"out (was created by another process|is not a checkpoint)"),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=0, overwrite=overwrite),
    ):
        (tmp_path / "other").rename(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "result"], "and nothing half-written is left"


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link"])
def test_a_name_taken_at_the_last_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "out"

    def takes_the_name(partial: Path, *_: Any, **__: Any) -> None:
        if kind == "link":
            out.symlink_to(tmp_path / "nowhere")
        elif kind == "file":
            out.write_text("mine")
        else:
            out.mkdir()
        if kind == "folder":
            (out / "result").write_text("mine")
        rename(partial, out)

    rename = checkpoint_writer._rename
    monkeypatch.setattr(checkpoint_writer, "_rename", takes_the_name)
    with (
        pytest.raises(OutputError, match="out was created by another process in the meantime"),
        new_checkpoint(out, sources=[], nbytes=0) as writer,
    ):
        writer.write_text("config.json", "{}")
    assert not (out / "config.json").exists()


def test_signals_have_their_own_handlers_again_afterwards(tmp_path: Path) -> None:
    import signal

    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGHUP, mine)
    try:
        with new_checkpoint(tmp_path / "out", sources=[], nbytes=1):
            assert signal.getsignal(signal.SIGHUP) is mine, "nohup and its like keep their will"
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is mine
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_checkpoint_can_be_written_from_another_thread(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def write() -> None:
        with new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer:
            writer.write_text("note", "x")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()
    assert (tmp_path / "out" / "note").exists()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "became full"),
        (errno.EDQUOT, "became full"),
        (errno.EROFS, "No permission"),
        (errno.EIO, "cannot be"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def fail(*_: Any) -> Callable[..., None]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint_writer, "_append", fail)
    with (
        pytest.raises(OutputError, match=sentence),
        new_checkpoint(tmp_path / "out", sources=[], nbytes=1) as writer,
    ):
        writer.write_tensors([tensor("t", 9)], max_shard_bytes=100)
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------------------------------------ what killed runs left


def killed_while_writing(out: Path, *, overwrite: bool = False, at: str = "write") -> None:
    """A process that writes `out` and is killed: while it writes, or between the two renames of a replacement."""
    child = os.fork()
    if child == 0:
        if at == "renames":
            staging._exchanged = lambda *_: False  # type: ignore[assignment]
            sys.addaudithook(
                lambda event, args: (
                    os.kill(os.getpid(), signal.SIGKILL)
                    if event == "os.rename" and os.fspath(args[1]) == str(out)
                    else None
                )
            )
        with new_checkpoint(out, sources=[], nbytes=1, overwrite=overwrite) as writer:
            writer.write_text("config.json", "{}")
            if at == "write":
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_the_next_run_removes_what_killed_ones_left_of_the_same_output(tmp_path: Path) -> None:
    for _ in range(2):
        killed_while_writing(tmp_path / "out")
    killed_while_writing(tmp_path / "other")
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1, "the second run removed what the first one left"
    (tmp_path / ".out.mine.partial").mkdir()
    (tmp_path / ".out.mine.partial" / "notes").write_text("mine")
    (left,) = (path for path in tmp_path.glob(".out.*.partial") if path.name != ".out.mine.partial")
    said: list[str] = []
    with new_checkpoint(tmp_path / "out", sources=[], nbytes=1, progress=lambda what, *_: said.append(what)) as writer:
        writer.write_text("config.json", "{}")
    assert said == [f"removed {left}, which an interrupted run left half-written."]
    assert [path.name for path in tmp_path.glob(".out.*")] == [".out.mine.partial"], "no mark of ours: it stays"
    assert list(tmp_path.glob(".other.*.partial")), "of another output, which its own next run clears"


def test_a_replacement_killed_between_two_renames_is_undone_by_the_next_run(tmp_path: Path) -> None:
    out = mark_as_made_by_moeits(make_toy(tmp_path / "out"))
    before = contents(out)
    killed_while_writing(out, overwrite=True, at="renames")
    assert not out.exists()
    with pytest.raises(OutputError, match="out exists"), new_checkpoint(out, sources=[], nbytes=1):
        pass
    assert contents(out) == before
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.skipif(sys.platform != "linux", reason="two folders change places in one step on Linux only")
def test_a_name_is_never_without_its_checkpoint_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = mark_as_made_by_moeits(make_toy(tmp_path / "out"))
    renamed = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("two steps"))
    with new_checkpoint(out, sources=[], nbytes=1, overwrite=True) as writer:
        writer.write_text("config.json", "{}")
    monkeypatch.setattr(Path, "rename", renamed)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert not list(tmp_path.glob(".out.*"))


def test_the_second_of_two_runs_on_one_output_says_so_and_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_checkpoint(out, sources=[], nbytes=1) as first:
        first.write_text("config.json", "{}")
        before = contents(tmp_path)
        says = f"out is being written by another run .process {os.getpid()}"
        with pytest.raises(OutputError, match=says), new_checkpoint(out, sources=[], nbytes=1):
            pass
        assert contents(tmp_path) == before
    assert (out / "config.json").exists()
