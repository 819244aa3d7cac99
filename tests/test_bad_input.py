"""Whatever is wrong is one sentence that names the thing and says what to do; exit code 2; nothing is left behind.

Every case runs the command line as a user does, and compares the folder around it and the source before and after.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

import moeits
from moeits.checkpoint import staging
from moeits.checkpoint import writing as checkpoint_writer
from moeits.checkpoint.reading import Checkpoint
from moeits.command_line import app as cli
from moeits.errors import CheckpointError, MoeitsError, OutputError
from moeits.experts.layout import MoELayout
from tests.toys import (
    fuse,
    make_toy,
    mark_as_made_by_moeits,
    read_config,
    read_tensors,
    reshard,
    toy_config,
    toy_tensors,
    write_checkpoint,
)

TOY = "qwen2_moe"
EXPERT_0 = "model.layers.0.mlp.experts.0.down_proj.weight"
ROUTER_0 = "model.layers.0.mlp.gate.weight"


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below, by name, with the hash of its bytes or the target of its link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        else:
            found[str(path.relative_to(folder))] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
    return found


class Shell:
    """Runs commands in one folder, and expects them to be refused."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["moeits", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self.capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    def refuses(self, *arguments: object, saying: str | tuple[str, ...] = ()) -> str:
        """The one sentence with which a command is refused; it leaves everything as it was."""
        before = contents(self.folder)
        code, out, err = self.run(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("moeits: "), err
        assert err.count("\n") == 1, err
        assert err.rstrip().endswith((".", "?")) or ": moeits " in err, "it should say what to do: " + err
        assert contents(self.folder) == before, "something was left behind, or the source was touched"
        for part in (saying,) if isinstance(saying, str) else saying:
            assert part in err
        return err


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def plan(tmp_path: Path, toy: Path) -> Path:
    moeits.plan(moeits.score(toy), tau=0.5, output=tmp_path / "plan.json")
    return tmp_path / "plan.json"


# ------------------------------------------------------------------------------------------- broken checkpoints


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = read_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reindex(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def reconfigure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**read_config(folder), **changes}))


def without(folder: Path, *keys: str) -> None:
    config = {key: value for key, value in read_config(folder).items() if key not in keys}
    (folder / "config.json").write_text(json.dumps(config))


def truncate(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def drop(tensors: dict[str, Any], part: str) -> None:
    for name in [name for name in tensors if part in name]:
        del tensors[name]


def rename(tensors: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def renamed_index_entry(name: str) -> Callable[[Path], None]:
    """An index that sends the first shard's tensors to another file name."""

    def change(index: dict[str, Any]) -> None:
        first = "model-00001-of-00003.safetensors"
        index["weight_map"] = {k: name if v == first else v for k, v in index["weight_map"].items()}

    return lambda folder: reindex(folder, change)


# What is wrong -> (how it comes about in a toy of one file, what the sentence says).
BROKEN: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{oops"), "config.json cannot be read as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "should hold a JSON object"),
    "config is nested too deeply": (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "config is not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\xfa"), "cannot be read as JSON"),
    "config is a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "cannot be read"),
    "no model_type": (lambda f: without(f, "model_type"), "has no model_type"),
    "model_type is null": (lambda f: reconfigure(f, model_type=None), "has no model_type"),
    "a misspelt model_type": (lambda f: reconfigure(f, model_type="qwen2moe"), "Did you mean 'qwen2_moe'?"),
    "an unknown MoE": (lambda f: reconfigure(f, model_type="qwen9_moe_next"), "No architecture 'qwen9_moe_next'"),
    "no MoE": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 3}'),
        "not a Mixture of Experts",
    ),
    "no MoE layer": (lambda f: reconfigure(f, mlp_only_layers=[0, 1, 2]), "Layer 0 has a router, but no experts"),
    "a layer that should be dense": (lambda f: reconfigure(f, mlp_only_layers=[1]), "Layer 1 has a router"),
    "no number of experts": (lambda f: without(f, "num_experts"), "has no num_experts"),
    "no top_k": (lambda f: without(f, "num_experts_per_tok"), "num_experts_per_tok as numbers"),
    "top_k is zero": (lambda f: reconfigure(f, num_experts_per_tok=0), "it has 6 and 0"),
    "top_k above the experts": (lambda f: reconfigure(f, num_experts_per_tok=7), "it has 6 and 7"),
    "experts in words": (lambda f: reconfigure(f, num_experts="six"), "it has 'six' and 2"),
    "experts in floats": (lambda f: reconfigure(f, num_experts=6.5), "it has 6.5 and 2"),
    "more experts than there are": (lambda f: reconfigure(f, num_experts=8), "expert 6 is not among them"),
    "fewer experts than there are": (lambda f: reconfigure(f, num_experts=5), "should have 5 experts"),
    "a googol of experts": (lambda f: reconfigure(f, num_experts=10**100), "hold 6, and expert 6 is not"),
    "layers in words": (lambda f: reconfigure(f, num_hidden_layers="x"), "num_hidden_layers as a number"),
    "layers are null": (lambda f: reconfigure(f, num_hidden_layers=None), "num_hidden_layers as a number"),
    "layers are negative": (lambda f: reconfigure(f, num_hidden_layers=-3), "num_hidden_layers as a number"),
    "layers are infinite": (lambda f: reconfigure(f, num_hidden_layers=float("inf")), "num_hidden_layers as a number"),
    "no number of layers": (lambda f: without(f, "num_hidden_layers"), "num_hidden_layers as a number"),
    "more layers than there are": (lambda f: reconfigure(f, num_hidden_layers=10**12), "no tensors of layer 3"),
    "a sparse step of zero": (lambda f: reconfigure(f, decoder_sparse_step=0), "does not say which layers"),
    "dense layers as a number": (lambda f: reconfigure(f, mlp_only_layers=7), "does not say which layers"),
    "per_layer_config is a list": (lambda f: reconfigure(f, per_layer_config=[1]), "per_layer_config"),
    "per_layer_config of no layer": (lambda f: reconfigure(f, per_layer_config={"a": {}}), "per_layer_config"),
    "per_layer_config without settings": (lambda f: reconfigure(f, per_layer_config={"0": 5}), "per_layer_config"),
    "a moeits block in words": (lambda f: reconfigure(f, moeits="yes"), "per_layer_config"),
    "a missing file": (lambda f: (f / "model.safetensors").unlink(), "has neither"),
    "a left-over shard": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-00001-of-00002.safetensors"),
        "holds model-00001-of-00002.safetensors",
    ),
    "a truncated file": (lambda f: truncate(f / "model.safetensors", 7), "is truncated: its header promises"),
    "a file of three bytes": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "is truncated (3 bytes)"),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "is truncated (0 bytes)"),
    "no tensors": (lambda f: (f / "model.safetensors").write_bytes(save({})), "no tensors"),
    "a header of garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\5" + b"\0" * 7 + b"garbage"), "not a s"),
    "a header that is a list": (lambda f: (f / "model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"[]"), "not a s"),
    "a header without a dtype": (
        lambda f: (f / "model.safetensors").write_bytes(header(a={"shape": [1], "data_offsets": [0, 1]})),
        "is not a safetensors file",
    ),
    "a negative shape": (
        lambda f: (f / "model.safetensors").write_bytes(
            header(a={"dtype": "U8", "shape": [-1, -2], "data_offsets": [0, 2]}) + b"ab"
        ),
        "is not a safetensors file",
    ),
    "infinite offsets": (
        lambda f: (f / "model.safetensors").write_bytes(
            header(a={"dtype": "U8", "shape": [1], "data_offsets": [0, float("inf")]}) + b"ab"
        ),
        "is not a safetensors file",
    ),
    "a shape of another size": (
        lambda f: (f / "model.safetensors").write_bytes(
            header(a={"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}) + b"abcd"
        ),
        "cannot have 4 bytes",
    ),
    "overlapping tensors": (
        lambda f: (f / "model.safetensors").write_bytes(
            header(
                a={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                b={"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
            )
            + b"abcdef"
        ),
        "does not begin where",
    ),
    "bytes of no tensor": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"more"),
        "has bytes that belong to no tensor",
    ),
    "a weight file that is a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "model.safetensors",
    ),
    "expert numbers with holes": (
        lambda f: rewrite(f, lambda t: rename(t, "layers.1.mlp.experts.5.", "layers.1.mlp.experts.7.")),
        "Layer 1 should have 6 experts by config.json, but its tensors hold 6, and expert 5 is not",
    ),
    "a missing expert": (lambda f: rewrite(f, lambda t: drop(t, "layers.2.mlp.experts.3.")), "and expert 3 is not"),
    "a missing projection": (
        lambda f: rewrite(f, lambda t: drop(t, "layers.1.mlp.experts.4.up_proj")),
        "Layer 1, expert 4 has no up_proj.weight",
    ),
    "a missing router": (lambda f: rewrite(f, lambda t: drop(t, ROUTER_0)), f"there is no {ROUTER_0}"),
    "a router of another width": (
        lambda f: rewrite(f, lambda t: t.update({ROUTER_0: t[ROUTER_0][:5].copy()})),
        f"{ROUTER_0} has shape [5, 32], but layer 0 has 6 experts",
    ),
    "an expert of another shape": (
        lambda f: rewrite(f, lambda t: t.update({EXPERT_0: t[EXPERT_0][:, :8].copy()})),
        "of layer 0 differ in shape or dtype",
    ),
    "an expert of another dtype": (
        lambda f: rewrite(f, lambda t: t.update({EXPERT_0: t[EXPERT_0].astype(np.float32)})),
        "of layer 0 differ in shape or dtype",
    ),
    "experts without entries": (
        lambda f: rewrite(f, lambda t: t.update({n: v[:0].copy() for n, v in t.items() if "experts." in n})),
        "has shape [0, ",
    ),
    "a tensor nobody knows": (
        lambda f: rewrite(f, lambda t: t.update({"model.layers.0.mlp.mystery": t[ROUTER_0]})),
        "model.layers.0.mlp.mystery is none of the tensors",
    ),
    "only pickles": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only as pickles (pytorch_model.bin)",
    ),
    "an adapter": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        "is a LoRA adapter, not a model",
    ),
    "shards without an index": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        "but no model.safetensors.index.json",
    ),
}

# The same for a toy of three shards and an index.
BROKEN_SHARDS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "1 of 3 shards are missing",
    ),
    "an extra shard": (
        lambda f: shutil.copy(f / "model-00002-of-00003.safetensors", f / "model-00004-of-00004.safetensors"),
        "holds model-00004-of-00004.safetensors",
    ),
    "swapped shards": (
        lambda f: shutil.copy(f / "model-00002-of-00003.safetensors", f / "model-00001-of-00003.safetensors"),
        "The shards are of another version than the index",
    ),
    "a promised tensor": (
        lambda f: reindex(f, lambda i: i["weight_map"].update({"more": "model-00001-of-00003.safetensors"})),
        "promises more in",
    ),
    "no weight_map": (lambda f: reindex(f, lambda i: i.pop("weight_map")), "has no weight_map"),
    "an empty weight_map": (lambda f: reindex(f, lambda i: i.update(weight_map={})), "has no weight_map"),
    "an index of garbage": (lambda f: (f / "model.safetensors.index.json").write_text("no"), "cannot be read as JSON"),
    "an index that leads outside": (renamed_index_entry("../secret.safetensors"), "not a plain file name"),
    "an index with an absolute path": (renamed_index_entry("/etc/passwd"), "not a plain file name"),
    "an index that leads below": (renamed_index_entry("sub/model.safetensors"), "not a plain file name"),
    "an index that names the parent": (renamed_index_entry(".."), "not a plain file name"),
    "an index that names nothing": (renamed_index_entry(""), "not a plain file name"),
    "an index with a NUL": (renamed_index_entry("a\0b"), "shards are missing"),
    "a truncated shard": (lambda f: truncate(f / "model-00003-of-00003.safetensors", 1), "is truncated"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_a_sentence(shell: Shell, toy: Path, case: str) -> None:
    breaks, sentence = BROKEN[case]
    breaks(toy)
    shell.refuses("inspect", "toy", saying=sentence)
    shell.refuses("score", "toy", "--output", "evidence.safetensors", saying=sentence)
    shell.refuses("simplify", "toy", "--tau", "1", "--output", "out", saying=sentence)


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_a_broken_set_of_shards_is_a_sentence(shell: Shell, tmp_path: Path, toy: Path, case: str) -> None:
    breaks, sentence = BROKEN_SHARDS[case]
    breaks(reshard(toy, tmp_path / "sharded", shards=3))
    shell.refuses("inspect", "sharded", saying=sentence)
    shell.refuses("simplify", "sharded", "--tau", "1", "--output", "out", saying=sentence)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["per-expert", "fused"])
def test_a_weight_that_is_no_number_is_named(shell: Shell, tmp_path: Path, toy: Path, value: float, form: str) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.experts.3.up_proj.weight"][2, 5] = value

    rewrite(toy, spoil)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    if form == "fused":
        toy, name = fuse(toy, tmp_path / "fused"), "model.layers.1.mlp.experts.gate_up_proj[3] (up)"
    shell.refuses("simplify", toy.name, "--tau", "1", "--output", "out", saying=name)


def test_other_tensors_may_hold_what_they_like(tmp_path: Path, toy: Path) -> None:
    rewrite(toy, lambda t: t["model.norm.weight"].fill(np.nan))
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    assert np.isnan(read_tensors(tmp_path / "out")["model.norm.weight"]).all()


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["nowhere", "a/b/nowhere", "", "no such\nfolder", "toy/model.safetensors"])
def test_a_missing_folder_is_a_sentence(shell: Shell, name: str) -> None:
    code, out, err = shell.run("inspect", name)
    assert (code, out) == (2, "")
    assert err.startswith("moeits: ")


def test_what_the_system_refuses_is_a_sentence_too(shell: Shell) -> None:
    shell.refuses("inspect", "x" * 5000, saying="File name too long")


def test_fused_experts_must_be_whole(shell: Shell, tmp_path: Path, toy: Path) -> None:
    fused = fuse(toy, tmp_path / "fused")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    rewrite(fused, lambda t: t.update({name: t[name][:, :23].copy()}))
    shell.refuses("inspect", "fused", saying=(name, "made of 2 equal parts"))
    rewrite(fused, lambda t: t.update({name: t[name][:, 0].copy()}))
    shell.refuses("inspect", "fused", saying="has shape [6, 32], where a weight with 3 axes")
    rewrite(fused, lambda t: t.pop(name))
    shell.refuses("inspect", "fused", saying="1 fused tensors")


def test_an_unscorable_dtype_is_named(shell: Shell, toy: Path) -> None:
    data = (toy / "model.safetensors").read_bytes()
    (toy / "model.safetensors").write_bytes(data.replace(b'"BF16"', b'"XX16"'))
    shell.refuses("score", "toy", "--output", "e.safetensors", saying=".weight (XX16)")


def test_a_checkpoint_that_may_not_be_read_is_a_sentence(shell: Shell, toy: Path) -> None:
    (toy / "model.safetensors").unlink()
    (toy / "model.safetensors").symlink_to("/proc/self/mem")
    shell.refuses("inspect", "toy", saying="model.safetensors")


# ------------------------------------------------------------------------------------------------- bad settings

SETTINGS = {
    "tau in words": (["--tau", "much"], "Invalid value for '--tau'"),
    "tau is nan": (["--tau", "nan"], "--tau nan is not a number"),
    "tau is infinite": (["--tau", "inf"], "--tau inf is not a number"),
    "no budget": ([], "Give exactly one of --tau"),
    "two budgets": (["--tau", "1", "--reduction", "0.5"], "Give exactly one of --tau"),
    "a reduction above 1": (["--reduction", "1.5"], "--reduction 1.5 is out of range"),
    "a reduction that is nan": (["--reduction", "nan"], "--reduction nan is not a number"),
    "a reduction out of reach": (["--reduction", "0.9"], "--reduction 0.9 is out of reach"),
    "a size out of reach": (["--max-size", "1KB"], "is out of reach"),
    "a size in words": (["--max-size", "small"], "--max-size small is not a size"),
    "a size of many digits": (["--max-size", "1" * 400], "--max-size is out of range: it is a number of more than"),
    "too few experts": (["--experts-per-layer", "1"], "--experts-per-layer 1 is out of reach"),
    "too many experts": (["--experts-per-layer", "7"], "--experts-per-layer 7 is out of reach"),
    "a floor of zero": (["--tau", "1", "--min-experts", "0"], "--min-experts 0 is out of range"),
    "zeros everywhere": (
        ["--tau", "1", "--edit", "mask", "--mask-by", "magnitude", "--sparsity", "1"],
        "--sparsity '1' is out of range",
    ),
    "a mask without its norms": (["--tau", "1", "--edit", "mask"], "--criterion moeits watches no tokens"),
    "a rank of nothing": (["--tau", "1", "--edit", "low-rank", "--mean-rank", "0"], "--mean-rank '0' is out of range"),
    "no bits": (["--tau", "1", "--edit", "quantize", "--bits", "0"], "--bits 0.0 is met by no width"),
    "bits without their errors": (["--tau", "1", "--edit", "quantize"], "--criterion moeits watches no tokens"),
    "a setting of another edit": (
        ["--tau", "1", "--edit", "average", "--min-similarity", "0.5"],
        "--edit average has no setting min_similarity: leave --min-similarity out",
    ),
    "a similarity that is none": (
        ["--tau", "1", "--edit", "recombine", "--min-similarity", "4"],
        "--min-similarity 4.0 is out of range",
    ),
    "an unknown criterion": (["--tau", "1", "--criterion", "moits"], "Did you mean 'moeits'?"),
    "a random choice by tau": (
        ["--tau", "1", "--criterion", "random"],
        "--criterion random has none: give --reduction",
    ),
    "a plan to follow that is missing": (["--like", "none.json"], "There is no plan none.json"),
    "an unknown layout": (["--tau", "1", "--layout", "square"], "--layout square is not one of"),
    "a shard size in words": (["--tau", "1", "--max-shard-size", "big"], "--max-shard-size big is not a size"),
    "shards of nothing": (["--tau", "1", "--max-shard-size", "0"], "--max-shard-size 0 is out of range"),
    "an unknown flag": (["--tau", "1", "--taw", "1"], "No such option: --taw"),
}


@pytest.fixture
def never_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(*_: Any, **__: Any) -> None:
        raise AssertionError("this costs minutes on a real model, and could have been said before")

    monkeypatch.setattr(sys.modules["moeits.stages.simplify"], "scored", scored)


@pytest.mark.usefixtures("never_scored", "toy")
@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_makes_no_sense_is_a_sentence(shell: Shell, case: str) -> None:
    flags, sentence = SETTINGS[case]
    shell.refuses("simplify", "toy", *flags, "--output", "out", saying=sentence)


@pytest.mark.usefixtures("never_scored")
@pytest.mark.parametrize("flags", [["--tau", "1"], ["--experts-per-layer", "4", "--layout", "per-layer"]])
def test_a_config_without_a_class_is_found_before_scoring(shell: Shell, toy: Path, flags: list[str]) -> None:
    without(toy, "architectures")
    shell.refuses("simplify", "toy", *flags, "--output", "out", saying="names no class under architectures")


@pytest.mark.parametrize("flags", [["--experts-per-layer", "4"], ["--tau", "1", "--layout", "uniform"]])
def test_a_config_without_a_class_will_do_for_equal_counts(tmp_path: Path, toy: Path, flags: list[str]) -> None:
    without(toy, "architectures")
    arguments: dict[str, Any] = {flags[0][2:].replace("-", "_"): int(flags[1])}
    moeits.simplify(toy, output=tmp_path / "out", **arguments, layout="uniform" if "--layout" in flags else "auto")


@pytest.mark.usefixtures("never_scored", "toy")
def test_what_an_interrupted_healing_left_is_found_before_scoring(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["moeits.stages.simplify"], "check_healing", lambda *_, **__: None)
    asked = ["simplify", "toy", "--tau", "1", "--heal", "my data.jsonl", "--recipe", "small", "--output", "out"]
    mark_as_made_by_moeits(make_toy(tmp_path / "out.pruned"))
    go_on = "moeits heal out.pruned --data 'my data.jsonl' --recipe small --output out"
    assert go_on + "\n" in shell.refuses(*asked, saying="out.pruned is left over from an earlier run")
    (tmp_path / "out.healing").mkdir()
    said = "Remove it and out.healing to begin again, or go on with: " + go_on + " --resume"
    shell.refuses(*asked, saying=said)
    shell.refuses(*asked, "--overwrite", saying=said)
    shutil.rmtree(tmp_path / "out.pruned")
    shell.refuses(*asked, "--overwrite", saying="out.healing is left over from an earlier healing")
    (tmp_path / "out.healing").rmdir()
    (tmp_path / "out.pruned").mkdir()
    (tmp_path / "out.pruned" / "diary.txt").touch()
    shell.refuses(*asked, "--overwrite", saying="out.pruned is not a checkpoint")


# ------------------------------------------------------------------------------------------- plans and evidence


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plan: {**plan, **changes}


def missing(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plan: {name: value for name, value in plan.items() if name != key}


PLANS: Mapping[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda _: [], "is not a plan"),
    "a number": (lambda _: 7, "is not a plan"),
    "null": (lambda _: None, "is not a plan"),
    "empty": (lambda _: {}, "is not a plan"),
    "without fingerprint": (missing("fingerprint"), "is not a plan"),
    "without kept": (missing("kept"), "is not a plan"),
    "without settings": (missing("settings"), "is not a plan"),
    "of a newer format": (edited(format=99), "format 99"),
    "of another checkpoint": (edited(fingerprint="0" * 64), "The plan was made for"),
    "of no layers": (edited(kept={}), "it keeps nothing"),
    "of fewer layers": (edited(kept={"0": [1, 2]}), "the same layers: [1, 2]"),
    "of layers in words": (edited(kept={"first": [1, 2]}), "is not a plan"),
    "that keeps nothing": (edited(kept={"0": [], "1": [1, 2], "2": [1, 2]}), "at least one"),
    "that keeps an expert twice": (edited(kept={"0": [1, 1], "1": [1, 2], "2": [1, 2]}), "different ids"),
    "in falling order": (edited(kept={"0": [2, 1], "1": [1, 2], "2": [1, 2]}), "ascending"),
    "with a negative expert": (edited(kept={"0": [-1, 1], "1": [1, 2], "2": [1, 2]}), "$.kept"),
    "with an expert too many": (edited(kept={"0": [1, 6], "1": [1, 2], "2": [1, 2]}), "keeps expert 6 of layer 0"),
    "with experts in words": (edited(kept={"0": ["a"], "1": [1, 2], "2": [1, 2]}), "$.kept"),
    "with one number for a layer": (edited(kept={"0": 3, "1": [1, 2], "2": [1, 2]}), "is not a plan"),
    "with kept as a list": (edited(kept=[[1, 2]]), "is not a plan"),
    "with an order of numbers": (edited(order={"0": [1, 2, 3]}), "is not a plan"),
    "with an order in words": (edited(order="none"), "is not a plan"),
    "with levels in words": (edited(order={"0": [[3, "high"]]}), "is not a plan"),
    "with a level that is nan": (edited(order={"0": [[3, float("nan")]]}), "is not a plan"),
    "with an order of floats": (edited(order={"0": [[3.5, 0.1]]}), "is not a plan"),
    "with a summary in words": (edited(summary="none"), "is not a plan"),
    "with parameters in words": (edited(summary={"parameters_after": "x"}), "$.parameters_after"),
    "with negative bytes": (edited(summary={"bytes_after": -5}), "$.bytes_after"),
    "with layers in words": (edited(summary={"floored_layers": "all"}), "$.floored_layers"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_broken_plan_is_a_sentence(shell: Shell, plan: Path, case: str) -> None:
    change, sentence = PLANS[case]
    plan.write_text(json.dumps(change(json.loads(plan.read_text()))))
    shell.refuses("prune", "toy", "--plan", "plan.json", "--output", "out", saying=sentence)
    code, _, err = shell.run("inspect", "plan.json")
    assert (code, err) == (0, "") or (code == 2 and sentence in err), "whoever looks at it gets no traceback either"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_a_plan_that_is_no_json_is_a_sentence(shell: Shell, plan: Path, text: str) -> None:
    plan.write_text(text)
    for command in (["prune", "toy", "--plan", plan, "--output", "out"], ["inspect", plan]):
        shell.refuses(*command, saying="plan.json")


@pytest.mark.usefixtures("plan")
def test_a_plan_for_another_checkpoint_names_both(shell: Shell, tmp_path: Path) -> None:
    make_toy(tmp_path / "other", seed=1)
    shell.refuses("prune", "other", "--plan", "plan.json", "--output", "out", saying=("made for toy", "but other has"))


def test_an_uneven_plan_edited_by_hand_is_not_evened_out(shell: Shell, plan: Path) -> None:
    value = json.loads(plan.read_text())
    value["kept"] = {"0": [0, 1, 2], "1": [1, 2], "2": [1, 2]}
    value["order"] = {}
    plan.write_text(json.dumps(value))
    shell.refuses("prune", "toy", "--plan", plan, "--output", "out", "--layout", "uniform", saying="edited by hand?")


def test_evidence_and_plans_are_not_taken_for_each_other(shell: Shell, toy: Path, plan: Path) -> None:
    moeits.score(toy, output="evidence.safetensors")
    shell.refuses("plan", plan, "--tau", "1", "--output", "new.json", saying="plan.json cannot be read")
    shell.refuses("plan", "toy/model.safetensors", "--tau", "1", "--output", "new.json", saying="is not evidence")
    shell.refuses("plan", "toy", "--tau", "1", "--output", "new.json", saying="toy cannot be read")
    shell.refuses("plan", "nothing", "--tau", "1", "--output", "new.json", saying="There is no evidence nothing")
    shell.refuses("prune", "toy", "--plan", "evidence.safetensors", "--output", "out", saying="evidence.safetensors")
    shell.refuses("prune", "toy", "--plan", "toy", "--output", "out", saying="toy")
    shell.refuses("inspect", "evidence.safetensors", saying="evidence.safetensors is a file of tensors")


EVIDENCE_METADATA = {
    "no facts": None,
    "a list": "[]",
    "garbage": "{",
    "no layers": json.dumps({"format": 1}),
    "another format": json.dumps({"format": 7}),
    "layers in words": json.dumps({"format": 1, "layers": "x"}),
}


@pytest.mark.parametrize("case", EVIDENCE_METADATA)
def test_broken_evidence_is_a_sentence(shell: Shell, tmp_path: Path, case: str) -> None:
    text = EVIDENCE_METADATA[case]
    metadata = None if text is None else {"moeits": text}
    save_file({"layers.0.redundancy": np.zeros((2, 2))}, tmp_path / "evidence.safetensors", metadata=metadata)
    shell.refuses("plan", "evidence.safetensors", "--tau", "1", "--output", "plan.json", saying="evidence.safetensors")


# ------------------------------------------------------------------------------------------------- bad outputs


OUTPUTS = {
    "the source": (["toy"], "overlap"),
    "the source, overwritten": (["toy", "--overwrite"], "overlap"),
    "inside the source": (["toy/out"], "overlap"),
    "deep inside the source": (["toy/a/b/c"], "overlap"),
    "around the source": (["."], "overlap"),
    "around the source, overwritten": ([".", "--overwrite"], "overlap"),
    "the source by another way": (["notes/../toy"], "overlap"),
    "a link to the source": (["link", "--overwrite"], "overlap"),
    "inside a link to the source": (["link/out"], "overlap"),
    "a link in a circle": (["circle/out"], "circle"),
    "an existing folder": (["older"], "older exists"),
    "an existing file": (["file"], "file exists"),
    "no checkpoint, overwritten": (["notes", "--overwrite"], "is not a checkpoint"),
    "a checkpoint of somebody else, overwritten": (["older", "--overwrite"], "that moeits made"),
    "a file, overwritten": (["file", "--overwrite"], "is not a checkpoint"),
    "below a file": (["file/out"], "cannot be written"),
    "below /proc": (["/proc/out"], "/proc"),
    "below /sys": (["/sys/kernel/a/b"], "/sys/kernel"),
    "a name too long": (["x" * 300], "cannot be written"),
    "an empty name": ([""], "overlap"),
}


@pytest.fixture
def furnished(tmp_path: Path, toy: Path) -> Path:
    """A folder with what may lie around a checkpoint."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "link").symlink_to(toy, target_is_directory=True)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    make_toy(tmp_path / "older")
    return tmp_path


@pytest.mark.usefixtures("furnished", "plan")
@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_is_a_sentence(shell: Shell, case: str) -> None:
    where, sentence = OUTPUTS[case]
    shell.refuses("prune", "toy", "--plan", "plan.json", "--output", *where, saying=sentence)
    if case not in {"below a file", "below /proc", "below /sys", "a name too long"}:  # these show on writing only
        shell.refuses("simplify", "toy", "--tau", "1", "--output", *where, saying=sentence)


@pytest.mark.usefixtures("plan")
def test_a_checkpoint_whose_files_the_source_links_to_is_not_replaced(shell: Shell, tmp_path: Path, toy: Path) -> None:
    (tmp_path / "linked").mkdir()
    for path in toy.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    shell.refuses("prune", "linked", "--plan", "plan.json", "--output", "toy", "--overwrite", saying="overlap")


@pytest.mark.usefixtures("furnished")
@pytest.mark.parametrize("output", ["toy", "file/plan.json", "no/such/folder/plan.json", "/proc/plan.json"])
def test_a_plan_that_cannot_be_written_is_a_sentence(shell: Shell, output: str) -> None:
    moeits.score("toy").save("evidence.safetensors")
    shell.refuses("plan", "evidence.safetensors", "--tau", "1", "--output", output, saying=output)


@pytest.mark.usefixtures("furnished")
@pytest.mark.parametrize("output", ["toy", "file/e.safetensors", "/proc/e.safetensors"])
def test_evidence_that_cannot_be_written_is_a_sentence(shell: Shell, output: str) -> None:
    shell.refuses("score", "toy", "--output", output, saying=output)


@pytest.mark.usefixtures("furnished")
@pytest.mark.parametrize(
    "output", ["toy/model.safetensors", "toy/e.safetensors", "toy/a/e.safetensors", "link/e.safetensors", "older-toy"]
)
def test_evidence_is_never_written_into_the_model_that_is_scored(shell: Shell, tmp_path: Path, output: str) -> None:
    (tmp_path / "older-toy").symlink_to(tmp_path / "toy" / "model.safetensors")
    shell.refuses("score", "toy", "--output", output, saying="the source toy, which is never touched")


@pytest.mark.usefixtures("toy", "plan")
def test_a_plan_is_not_written_over_what_it_is_made_from(shell: Shell, tmp_path: Path) -> None:
    moeits.score("toy").save("e.safetensors")
    (tmp_path / "link").symlink_to("e.safetensors")
    for output in ("e.safetensors", "link", "../" + tmp_path.name + "/e.safetensors"):
        shell.refuses(
            "plan", "e.safetensors", "--tau", "1", "--output", output, saying="is what the output is made from"
        )
    shell.refuses("plan", "e.safetensors", "--like", "plan.json", "--output", "plan.json", saying="is made from")
    shell.refuses("plan", "e.safetensors", "--tau", "1", "--output", "toy/model.safetensors", saying="of a checkpoint")


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_the_source_that_leads_elsewhere_is_blamed_on_the_source(shell: Shell, toy: Path, name: str) -> None:
    (toy / name).symlink_to("/proc/self/mem")
    # Outside of `contents`, which would read the file.
    code, out, err = shell.run("prune", "toy", "--plan", "plan.json", "--output", "out")
    assert (code, out) == (2, "")
    assert f"toy/{name} is a link out of the checkpoint's folder" in " ".join(err.split())
    assert not Path("out").exists()


# ------------------------------------------------------------------------------------- what happens while writing


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root may mount one."""
    where = tmp_path.parent / f"{tmp_path.name}-disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", where], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root: " + mounted.stderr.decode().strip())
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def test_a_disk_that_is_too_small_is_noticed_before_writing(shell: Shell, tmp_path: Path, small_disk: Path) -> None:
    big = make_toy(tmp_path / "big", experts=48)
    shell.refuses(
        "simplify", "big", "--reduction", "0", "--force", "--output", small_disk / "out", saying="free, the checkpoint"
    )
    assert big.is_dir()
    assert not [*small_disk.iterdir()]


def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind(
    shell: Shell, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path / "big", experts=48)
    monkeypatch.setattr(checkpoint_writer, "check_space", lambda *_: None)
    shell.refuses(
        "simplify", "big", "--reduction", "0", "--force", "--output", small_disk / "out", saying="became full"
    )
    assert not [*small_disk.iterdir()]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("free", [0, 1, 3])
def test_a_disk_that_is_full_at_any_artefact_is_a_sentence(shell: Shell, small_disk: Path, free: int) -> None:
    """Pages that are left: none for the mark of the work under way, one for it, some for finished layers."""
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - free * 4096))
    for arguments in (
        ("score", "toy", "--output", small_disk / "e.safetensors"),
        ("simplify", "toy", "--tau", "1", "--output", small_disk / "out"),
        ("sweep", "toy", "--tau", "1", "--output", small_disk / "run"),
    ):
        shell.refuses(*arguments)
        left = {path.name for path in small_disk.iterdir()} - {"ballast"}
        assert left <= {"e.safetensors.partial", "run"}, "finished layers are kept, and nothing half-written"
        for name in left:
            shutil.rmtree(small_disk / name)


@pytest.mark.usefixtures("toy")
def test_a_folder_without_permission_is_a_sentence(shell: Shell, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    shell.refuses("simplify", "toy", "--tau", "1", "--output", small_disk / "out", saying="No permission to write")
    shell.refuses("score", "toy", "--output", small_disk / "e.safetensors", saying="e.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the test above mounts a read-only disk")
@pytest.mark.usefixtures("toy")
def test_a_folder_of_somebody_else_is_a_sentence(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    shell.refuses("simplify", "toy", "--tau", "1", "--output", "theirs/out", saying="No permission to write")


@pytest.mark.parametrize("step", ["_write_shard", "_put_in_place", "_append"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(5, "Input/output error"), RuntimeError("a bug")])
def test_whatever_fails_while_writing_leaves_nothing_behind(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[int]:
        raise failure

    before = contents(tmp_path)
    monkeypatch.setattr(checkpoint_writer, step, fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        moeits.simplify(toy, tau=0.5, output=tmp_path / "new" / "folder" / "out")
    if isinstance(failure, KeyboardInterrupt):  # whoever interrupts goes on later: the scores are kept
        assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["out.partial"]
    else:
        assert contents(tmp_path) == before


def test_a_replacement_that_fails_leaves_the_older_checkpoint(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_as_made_by_moeits(make_toy(tmp_path / "older"))
    before, rename = contents(tmp_path), Path.rename

    def rename_fails(path: Path, target: Path) -> Path:
        if path.name == "checkpoint":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename_fails)
    with pytest.raises(OutputError, match="No permission"):
        moeits.simplify(toy, tau=0.5, output=tmp_path / "older", overwrite=True)
    assert contents(tmp_path) == before


def test_a_replacement_that_succeeds_leaves_only_the_new_checkpoint(tmp_path: Path, toy: Path) -> None:
    mark_as_made_by_moeits(make_toy(tmp_path / "older", experts=4))
    moeits.simplify(toy, experts_per_layer=3, output=tmp_path / "older", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older", "toy"]
    assert read_config(tmp_path / "older")["num_experts"] == 3


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_polite_kill_in_the_middle_of_writing_leaves_nothing_behind(
    tmp_path: Path, toy: Path, signal_number: signal.Signals
) -> None:
    before = contents(tmp_path)
    # The process kills itself when the first tensor is written: no race with a clock. It begins with the signals of a
    # terminal, for whoever runs these tests may be under nohup, or in the background of a script, and ignore some.
    code = f"""
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from moeits.checkpoint import writing as checkpoint_writer
from moeits.command_line import app as cli
append = checkpoint_writer._append
def killed(*arguments):
    append(*arguments)
    os.kill(os.getpid(), {int(signal_number)})
checkpoint_writer._append = killed
sys.argv = ["moeits", "simplify", {str(toy)!r}, "--output", {str(tmp_path / "out")!r}]
sys.argv += ["--criterion", "random", "--experts-per-layer", "3"]
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode in {128 + signal_number, 130}
    assert "Traceback" not in ended.stderr
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------------- code in sources


def test_code_that_a_checkpoint_brings_is_never_run(tmp_path: Path, toy: Path) -> None:
    marker = tmp_path / "it ran"
    planted = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    for name in ("modeling_toy.py", "configuration_toy.py", "tokenization_toy.py"):
        (toy / name).write_text(planted)
    reconfigure(toy, auto_map={"AutoConfig": "configuration_toy.Toy", "AutoModelForCausalLM": "modeling_toy.Toy"})
    (toy / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_toy.Toy", null], "AutoProcessor": "a/b--c.D"}, "a": 1}'
    )
    for layout, output in (("per-layer", tmp_path / "uneven"), ("uniform", tmp_path / "even")):
        moeits.simplify(toy, tau=0.5, layout=layout, output=output)
        moeits.load(output)
        own = {"per-layer": {"AutoModelForCausalLM": "modeling_moeits.Qwen2MoeForCausalLM"}, "uniform": None}
        assert read_config(output).get("auto_map") == own[layout]
        kept = {"auto_map": {"AutoTokenizer": ["tokenization_toy.Toy", None]}, "a": 1}
        assert json.loads((output / "tokenizer_config.json").read_text()) == kept
        code = {path.name for path in output.glob("*.py")}
        assert code == {"tokenization_toy.py", *(["modeling_moeits.py"] if own[layout] else [])}
        assert "never run and is left out" in (output / "README.md").read_text()
    assert not marker.exists()
    exec(planted)
    assert marker.exists(), "the planted code would have left its mark"


# ------------------------------------------------------------------------------------------------------- fuzzing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "model_type",
    "num_hidden_layers",
    "num_experts",
    "num_experts_per_tok",
    "mlp_only_layers",
    "decoder_sparse_step",
    "architectures",
    "per_layer_config",
    "moeits",
    "auto_map",
]


def open_and_prune(folder: Path, output: Path) -> None:
    """All that reads a checkpoint without scoring it; only a MoeitsError may come out."""
    try:
        checkpoint = Checkpoint.open(folder)
        MoELayout.of(checkpoint)
        moeits.inspect(folder)
        moeits.simplify(folder, criterion="random", experts_per_layer=3, output=output, layout="per-layer")
    except MoeitsError as error:
        assert str(error)  # noqa: PT017 - either a checkpoint comes out, or a sentence
    finally:
        shutil.rmtree(output, ignore_errors=True)


@given(
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3), drop=st.sets(st.sampled_from(KEYS))
)
def test_no_config_makes_anything_but_a_sentence_or_a_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], drop: set[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-config"
    if not folder.exists():
        make_toy(folder)
    config = {key: value for key, value in toy_config(TOY).items() if key not in drop}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    open_and_prune(folder, folder.with_name("fuzzed-output"))


@given(
    text=JSON | st.dictionaries(st.sampled_from(["model.norm.weight", ROUTER_0, "__metadata__"]), JSON),
    size=st.integers(0, 40),
)
def test_no_header_makes_anything_but_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: Any, size: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-header"
    if not folder.exists():
        make_toy(folder)
    header = json.dumps(text).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    open_and_prune(folder, folder.with_name("fuzzed-output"))


@settings(max_examples=60)
@given(
    name=st.sampled_from([ROUTER_0, EXPERT_0, "model.norm.weight"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets"]),
    value=JSON | st.lists(st.integers(-5, 500), max_size=3),
)
def test_no_entry_of_a_header_makes_anything_but_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-entry"
    if not folder.exists():
        make_toy(folder)
    data = save(toy_tensors(toy_config(TOY)))
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries[name][key] = value
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    open_and_prune(folder, folder.with_name("fuzzed-output"))


@given(data=st.binary(max_size=64))
def test_no_bytes_make_anything_but_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-bytes"
    if not folder.exists():
        write_checkpoint(folder, toy_config(TOY), {"a": np.zeros(1)})
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        MoELayout.of(Checkpoint.open(folder))
