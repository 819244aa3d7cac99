"""Plans and evidence."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

import moeits
from moeits.choosing.criteria import CRITERIA
from moeits.evidence import Evidence
from moeits.signals import SIGNALS
from moeits.signals.watched import MEAN_OUTPUT, SEARCHED, SPECIALISTS
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

    path = folder / "evidence.safetensors"
    moeits.score(toy(folder / "model"), output=path)
    content = path.read_bytes()

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        read = Evidence.load(path)
        read.facts()
        for budget in ({"reduction": 0.3}, {"tau": 1.0}):
            moeits.plan(read, **budget)

    return Parser("evidence", (content,), _mutants_of_evidence(content), feed)


def _mutants_of_evidence(content: bytes) -> Callable[[Random], bytes]:
    """Damaged in its bytes, in what it says of itself, or in a matrix with nothing that would tell."""
    from safetensors.numpy import load, save

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
            matrices[name] = damaged(matrices[name], random)
        else:
            told = mutated(facts, random)
        text = as_json(told).decode()
        return save(matrices, metadata={random.choice(("moeits",) * 20 + ("other",)): text})

    return mutant


def signals(folder: Path) -> Parser:
    """Evidence of experts and of tokens, by which every criterion plans that they are enough for."""
    path = folder / "evidence.safetensors"
    random_numbers = np.random.default_rng(0)
    scored = moeits.score(toy(folder / "model"), signals=",".join(signal.name for signal in SIGNALS))
    names = {name for criterion in CRITERIA for name in (*criterion.needs, "largest-activation")} - {
        "redundancy",
        *scored.signals,
    }
    of_tokens = {name: {i: random_numbers.random(4) for i in scored.layers} for name in sorted(names)}
    of_tokens |= dict.fromkeys(("naee", SEARCHED, SPECIALISTS), dict.fromkeys(scored.layers, np.tri(4)))
    of_tokens |= {"naee-error": of_tokens["reap"]}
    of_tokens |= {
        name: {i: random_numbers.random((4, 4)) for i in scored.layers} for name in ("coactivation", MEAN_OUTPUT)
    }
    searched = {**scored.settings, "search": {"seed": 0}}
    whole = replace(scored, settings=searched, signals={**scored.signals, **of_tokens})
    whole.save(path)
    mutant = _mutants_of_evidence(path.read_bytes())

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        read = Evidence.load(path)
        for criterion in CRITERIA:
            if all(read.known(name) for name in criterion.needs):
                moeits.plan(read, reduction=0.3, criterion=criterion.name)
        if read.known("reap") and read.known("largest-activation"):
            moeits.plan(read, reduction=0.3, criterion="reap", super_experts=True)

    return Parser("signals of experts and tokens", (path.read_bytes(),), mutant, feed)


def protected(folder: Path) -> Parser:
    """A file of experts that stay."""
    evidence, file = moeits.score(toy(folder / "model")), folder / "protect.json"
    value = {"0": [1, 2], "1": [0]}

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.plan(evidence, reduction=0.3, protect=file)

    return Parser("protected experts", (as_json(value),), lambda random: mutated_json(value, random), feed)


def damaged(matrix: np.ndarray, random: Random) -> np.ndarray:
    """Another shape, another dtype, or entries that no estimator gives; often as symmetric as before."""
    kind = random.randrange(6)
    if kind == 0:
        return matrix[:-1]
    if kind == 1:
        return matrix.astype(random.choice((np.float32, np.float16, np.int64, np.bool_)))
    if kind == 2:
        return matrix.reshape(-1)
    value: float | int = random.choice((np.nan, np.inf, 1e308, -1e308, 1e99, 0.0, 5.0, -1.0, 1.0))
    if matrix.dtype.kind != "f":
        value = random.randrange(128)
    elif matrix.dtype != np.float64:
        value = random.choice((np.nan, np.inf, 1e30, 0.0, -1.0))
    if kind == 3:
        return np.where(np.eye(len(matrix)), 0.0, value)
    place = tuple(random.randrange(size) for size in matrix.shape)
    matrix[place] = value
    if kind == 4 and len(set(matrix.shape)) == 1:
        matrix[place[::-1]] = value
    return matrix
