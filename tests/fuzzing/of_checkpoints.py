"""Headers, indices and configs, as scoring and pruning read them."""

import contextlib
import json
import shutil
import struct
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import moeits
from moeits.experts.families import TABLE, read_families
from tests.fuzzing.mutations import as_json, mutated, mutated_bytes, mutated_json
from tests.fuzzing.parser import Parser, Refused, cut, now_and_then, toy
from tests.healing_toys import write_tokenizer
from tests.toys import read_config

FAMILIES = ("qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "jamba")


def header(folder: Path) -> Parser:
    model = toy(folder / "model")
    file = model / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    entries, data = json.loads(content[8 : 8 + size]), content[8 + size :]

    def mutant(random: Random) -> bytes:
        text = mutated_json(entries, random)
        length = random.choice((0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1)) if random.random() < 0.1 else len(text)
        whole = struct.pack("<Q", length) + text + data
        return whole[: random.randrange(len(whole))] if random.random() < 0.05 else whole

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.inspect(model)
        if now_and_then(content[8:200], 4):
            cut(model, folder / "pruned")

    return Parser("safetensors header", (content,), mutant, feed)


def index(folder: Path) -> Parser:
    model = toy(folder / "model", shards=2)
    file = model / "model.safetensors.index.json"
    value = json.loads(file.read_text())

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.inspect(model, reduction=0.5)

    return Parser("index.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def config(folder: Path) -> Parser:
    models = {family: toy(folder / family, family) for family in FAMILIES}
    configs = [{"family": family, "config": read_config(model)} for family, model in models.items()]

    def mutant(random: Random) -> bytes:
        chosen = random.choice(configs)
        return chosen["family"].encode() + b"\n" + mutated_json(chosen["config"], random)

    def feed(content: bytes) -> None:
        family, _, text = content.partition(b"\n")
        model = models[family.decode()]
        (model / "config.json").write_bytes(text)
        moeits.inspect(model)
        if now_and_then(text, 4):
            cut(model, folder / "pruned")

    valid = tuple(each["family"].encode() + b"\n" + as_json(each["config"]) for each in configs)
    return Parser("config.json of six families", valid, mutant, feed)


PATTERNS = (
    "model.layers.0.mlp.experts.3.up_proj",
    r"re:.*experts\.(1|3)\..*",
    r"-:model\.layers\.1\.mlp\.experts\.\d+\.down_proj$",
    r"re:(.*?)*experts\.[0-3]+(?:\.|$)",
)


def quantizer(folder: Path) -> Parser:
    """Names and patterns of experts in config.json and beside it."""
    model, output = toy(folder / "model"), folder / "pruned"
    plain, made = read_config(model), moeits.plan(moeits.score(model), experts_per_layer=3)
    settings = {
        "config": {"quant_method": "fp8", "ignore": ["lm_head", "*experts.2*", *PATTERNS]},
        "side": {"bits": 4, "dynamic": {pattern: {"bits": 8} for pattern in PATTERNS}},
    }

    def mutant(random: Random) -> bytes:
        pattern = mutated_bytes(random.choice(PATTERNS).encode(), random).decode("utf-8", "replace")
        value = settings | {random.choice(("config", "side")): {random.choice(("ignore", "dynamic")): {pattern: {}}}}
        return mutated_json(value, random) if random.random() < 0.5 else as_json(value)

    def feed(content: bytes) -> None:
        try:
            value = json.loads(content)
            config = plain | {"quantization_config": value["config"]}
            (model / "config.json").write_bytes(as_json(config))
            (model / "hf_quant_config.json").write_bytes(as_json(value["side"]))
        except (ValueError, RecursionError, KeyError, TypeError):  # what Python itself cannot hold is not tried
            raise Refused("not a value") from None
        shutil.rmtree(output, ignore_errors=True)
        moeits.prune(model, plan=made, output=output)

    return Parser("names and patterns of quantizers", (as_json(settings),), mutant, feed)


def opened(folder: Path) -> Parser:
    """Config and tokenizer, as heal and evaluate open them."""
    from moeits.checkpoint.reading import Checkpoint
    from moeits.runtime import context_of, load_checked, load_tokenizer, quiet

    model = toy(folder / "model", dtype="float32")
    write_tokenizer(model, chat=True)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    files = {name: (model / name).read_bytes() for name in names}

    def mutant(random: Random) -> bytes:
        name = random.choice(names)
        return name.encode() + b"\n" + mutated_json(json.loads(files[name]), random)

    def feed(content: bytes) -> None:
        name, _, text = content.partition(b"\n")
        (model / name.decode()).write_bytes(text)
        try:
            checkpoint = Checkpoint.open(model)
            with quiet():
                context_of(checkpoint)
                load_tokenizer(checkpoint)
                load_checked(checkpoint)
        finally:
            (model / name.decode()).write_bytes(files[name.decode()])

    return Parser("config and tokenizer, opened", tuple(n.encode() + b"\n" + files[n] for n in names), mutant, feed)


def families(folder: Path) -> Parser:
    """A table of families."""
    whole = TABLE.read_text(encoding="utf-8")
    small = """
[defaults]
blocks = ["model.layers.{layer}.mlp."]
expert = "experts.{expert}.{tensor}"
projections = { gate = "gate_proj.weight", up = "up_proj.weight", down = "down_proj.weight" }
fused = { "experts.gate_up_proj" = ["gate", "up"], "experts.down_proj" = ["down"] }
router = ["gate.weight"]
num_experts_keys = ["num_experts"]
top_k_key = "num_experts_per_tok"

[one]
groups = { number = { key = "n_group", absent = 1 }, chosen = { key = "topk_group" } }

[two]
like = "one"
least_experts = 2
"""
    value, file = tomllib.loads(small), folder / "families.toml"

    def mutant(random: Random) -> bytes:
        if random.random() < 0.4:
            return mutated_bytes(random.choice((whole, small)).encode(), random)
        return _as_toml(mutated(value, random), random)

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        for family in read_families(file):
            with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # a config that does not fit
                family.groups({"n_group": 2, "num_experts_per_tok": 2})

    return Parser("families.toml", (whole.encode(), small.encode()), mutant, feed)


def _as_toml(value: Any, random: Random) -> bytes:
    """JSON values as entries of a table; what TOML has no word for stays JSON, which is not TOML."""
    if not isinstance(value, dict):
        return as_json(value)
    parts = []
    for name, entry in value.items():
        parts.append(b"[" + as_json(name) + b"]")
        keys = entry.items() if isinstance(entry, dict) else [("like", entry)]
        parts += [as_json(key) + b" = " + _inline(held) for key, held in keys]
    text = b"\n".join(parts)
    return mutated_bytes(text, random) if random.random() < 0.2 else text


def _inline(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b", ".join(as_json(key) + b" = " + _inline(held) for key, held in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(map(_inline, value)) + b"]"
    return as_json(value)
