"""Headers, indices and configs, as scoring and pruning read them."""

import json
import struct
from pathlib import Path
from random import Random

import moeits
from tests.fuzzing.mutations import as_json, mutated_json
from tests.fuzzing.parser import Parser, cut, now_and_then, toy
from tests.toys import read_config

FAMILIES = ("qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "jamba")
CONFIGS_OF_FAMILIES = FAMILIES[1:]


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
