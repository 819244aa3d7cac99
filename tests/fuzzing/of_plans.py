"""Plans and evidence."""

import json
import shutil
import struct
from pathlib import Path
from random import Random

import numpy as np

import moeits
from moeits.evidence import Evidence
from tests.fuzzing.mutations import as_json, mutated, mutated_bytes, mutated_json
from tests.fuzzing.parser import Parser, now_and_then, toy


def plan(folder: Path) -> Parser:
    model = toy(folder / "model")
    value = moeits.plan(moeits.score(model), reduction=0.3).facts()
    file = folder / "plan.json"

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.inspect(file)
        if now_and_then(content, 2):
            shutil.rmtree(folder / "pruned", ignore_errors=True)
            moeits.prune(model, plan=file, output=folder / "pruned")

    return Parser("plan.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def evidence(folder: Path) -> Parser:
    from safetensors.numpy import load, save

    path = folder / "evidence.safetensors"
    moeits.score(toy(folder / "model"), output=path)
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["moeits"])
    facts.pop("tensors_sha256")
    tensors = load(content)

    def mutant(random: Random) -> bytes:
        if random.random() < 0.2:
            return mutated_bytes(content, random)
        matrices = {name: matrix.copy() for name, matrix in tensors.items()}
        told = facts
        if random.random() < 0.4:
            name = random.choice(list(matrices))
            matrices[name] = _damaged(matrices[name], random)
        else:
            told = mutated(facts, random)
        text = as_json(told).decode()
        return save(matrices, metadata={random.choice(("moeits",) * 20 + ("other",)): text})

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        read = Evidence.load(path)
        read.facts()
        for budget in ({"reduction": 0.3}, {"tau": 1.0}):
            moeits.plan(read, **budget)

    return Parser("evidence", (content,), mutant, feed)


def _damaged(matrix: np.ndarray, random: Random) -> np.ndarray:
    """Another shape, another dtype, or entries that no estimator gives; often as symmetric as before."""
    kind = random.randrange(6)
    if kind == 0:
        return matrix[:-1]
    if kind == 1:
        return matrix.astype(random.choice((np.float32, np.float16, np.int64, np.bool_)))
    if kind == 2:
        return matrix.reshape(-1)
    value = random.choice((np.nan, np.inf, 1e308, -1e308, 1e99, 0.0, 5.0, -1.0, 1.0))
    if kind == 3:
        return np.where(np.eye(len(matrix)), 0.0, value)
    i, j = random.randrange(len(matrix)), random.randrange(len(matrix))
    matrix[i, j] = value
    if kind == 4:
        matrix[j, i] = value
    return matrix
