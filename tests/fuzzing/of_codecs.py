"""Headers and configs of quantized checkpoints, as scoring decodes them, and edits of plans."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import moeits
from tests.fuzzing.mutations import as_json, mutated_json
from tests.fuzzing.parser import Parser, toy
from tests.packed import packed_copies
from tests.toys import read_config

_BYTE_WIDE = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL", "XX1")
_HERE = "the block goes here"
_SUFFIXES = ("_scale_inv", "_scale", "_scales", "_blocks", "_zero_point", ".absmax")


def packed(folder: Path) -> Parser:
    """Shapes, dtypes and names that a file can have, but no quantizer gives."""
    copies = {}
    for family, width in (("qwen3_moe", "moe_intermediate_size"), ("gpt_oss", "intermediate_size")):
        made = packed_copies(toy(folder / family, family, **{width: 32}), folder / f"{family}-copies")
        copies |= {f"{family}-{form}": made[form] for form in ("fp8", "mxfp4")}
    files = {name: (copy / "model.safetensors").read_bytes() for name, copy in copies.items()}
    parts = {name: _split(content) for name, content in files.items()}
    configs = {name: read_config(copy) for name, copy in copies.items()}

    def mutant(random: Random) -> bytes:
        name = random.choice([*copies])
        header, config = dict(parts[name][0]), as_json(configs[name])
        for _ in range(random.choice((0, 1, 1, 3))):
            _change(header, random)
        if random.random() < 0.5:
            key = random.choice(("quantization_config", "quantization_config", "dtype"))
            value = mutated_json({key: configs[name][key]}, random)[1:-1]
            config = as_json({**configs[name], _HERE: 0}).replace(as_json({_HERE: 0})[1:-1], value)
        return b"\n".join((name.encode(), as_json(header), config))

    def feed(content: bytes) -> None:
        name, header, config = content.split(b"\n", 2)
        folder, (_, data) = copies[name.decode()], parts[name.decode()]
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
        (folder / "config.json").write_bytes(config)
        moeits.score(folder)

    valid = tuple(b"\n".join((name.encode(), as_json(parts[name][0]), as_json(configs[name]))) for name in copies)
    return Parser("quantized checkpoints", valid, mutant, feed)


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _change(header: dict[str, Any], random: Random) -> None:
    """Another dtype of as many bytes, another shape of as many entries, or another name; of one kind of tensors."""
    of = random.choice([name for name in header if ".experts." in name])
    kind = of.rpartition(".")[2]
    how: Callable[[dict[str, Any]], dict[str, Any]] = random.choice((_retyped(random), _reshaped(random)))
    every = random.random() < 0.7
    for name in [name for name in header if name == of or (every and name.endswith(kind))]:
        if random.random() < 0.1:
            header[name.removesuffix("_scale_inv") + random.choice(_SUFFIXES)] = header.pop(name)
        else:
            header[name] = how(header[name])


def _retyped(random: Random) -> Callable[[dict[str, Any]], dict[str, Any]]:
    dtype, flat = random.choice(_BYTE_WIDE), random.random() < 0.3

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        begin, end = entry["data_offsets"]
        return {**entry, "dtype": dtype, **({"shape": [end - begin]} if flat else {})}

    return change


def _reshaped(random: Random) -> Callable[[dict[str, Any]], dict[str, Any]]:
    kind = random.randrange(5)

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        shape = entry["shape"]
        return {**entry, "shape": [shape[::-1], [1, *shape], [*shape, 1], [*shape[:-2], 1, 1], []][kind]}

    return change


def edits(folder: Path) -> Parser:
    """What a plan says that its kept experts are made of, by one edit or by two."""
    model = toy(folder / "model")
    evidence, ranks = moeits.score(model), {"mean_rank": "4", "rank_power": 0.0}
    value = moeits.plan(evidence, reduction=0.5, edit="average").facts()
    both = moeits.plan(evidence, reduction=0.5, edit="average,low-rank", **ranks).facts()["edit"]
    file = folder / "plan.json"

    def feed(content: bytes) -> None:
        file.write_bytes(as_json({**value, "edit": _HERE}).replace(as_json(_HERE), content))
        shutil.rmtree(folder / "pruned", ignore_errors=True)
        moeits.prune(model, plan=file, output=folder / "pruned")

    def mutant(random: Random) -> bytes:
        return mutated_json(random.choice((value["edit"], both)), random)

    return Parser("edits of plans", (as_json(value["edit"]), as_json(both)), mutant, feed)
