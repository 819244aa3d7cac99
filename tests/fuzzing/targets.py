"""The parsers of moeits, each with well-formed inputs to begin with and the stage that reads them.

A parser is made in a folder of its own, where its stages may write. `feed` returns if the input was accepted and raises
whatever the stage raises; only MoeitsError is right.
"""

import contextlib
import io
import json
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

import moeits
from moeits.choosing.settings import share
from moeits.errors import MoeitsError, SettingError
from moeits.evaluation.perplexity import read_text
from moeits.evidence import Evidence
from moeits.experts.architectures import ARCHITECTURES
from moeits.healing.recipe import RECIPES, recipe_named
from moeits.sizes import parse_size
from moeits.stages.sweep import parse_taus
from tests import runs
from tests.fuzzing.mutations import (
    as_json,
    mutated,
    mutated_bytes,
    mutated_json,
    mutated_words,
    strange_text,
    strange_value,
)
from tests.healing_toys import conversations, texts, write_tokenizer
from tests.toys import make_toy, read_config

FAMILIES = ("qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "jamba")
CONFIGS_OF_FAMILIES = FAMILIES[1:]


class Refused(MoeitsError):
    """The command line said a sentence and left with exit code 2."""


@dataclass(frozen=True)
class Parser:
    """What reads one kind of input."""

    name: str
    valid: tuple[bytes, ...]
    """Inputs that must be accepted."""
    mutant: Callable[[Random], bytes]
    feed: Callable[[bytes], None]


def _toy(folder: Path, family: str = "qwen2_moe", **changes: Any) -> Path:
    return make_toy(folder, family, experts=4, layers=2, **changes)


def _cut(model: Path, output: Path) -> None:
    """All that simplify does, on a checkpoint whose header or config is damaged."""
    shutil.rmtree(output, ignore_errors=True)
    evidence = moeits.score(model)
    moeits.prune(model, plan=moeits.plan(evidence, reduction=0.3), output=output)


def _now_and_then(content: bytes, every: int) -> bool:
    """Whether to go through the slow stages too; the same for the same input."""
    return sum(content[-64:]) % every == 0


def header(folder: Path) -> Parser:
    model = _toy(folder / "model")
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
        if _now_and_then(content[8:200], 4):
            _cut(model, folder / "pruned")

    return Parser("safetensors header", (content,), mutant, feed)


def index(folder: Path) -> Parser:
    model = _toy(folder / "model", shards=2)
    file = model / "model.safetensors.index.json"
    value = json.loads(file.read_text())

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.inspect(model, reduction=0.5)

    return Parser("index.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def config(folder: Path) -> Parser:
    models = {family: _toy(folder / family, family) for family in FAMILIES}
    configs = [{"family": family, "config": read_config(model)} for family, model in models.items()]

    def mutant(random: Random) -> bytes:
        chosen = random.choice(configs)
        return chosen["family"].encode() + b"\n" + mutated_json(chosen["config"], random)

    def feed(content: bytes) -> None:
        family, _, text = content.partition(b"\n")
        model = models[family.decode()]
        (model / "config.json").write_bytes(text)
        moeits.inspect(model)
        if _now_and_then(text, 4):
            _cut(model, folder / "pruned")

    valid = tuple(each["family"].encode() + b"\n" + as_json(each["config"]) for each in configs)
    return Parser("config.json of six families", valid, mutant, feed)


def plan(folder: Path) -> Parser:
    model = _toy(folder / "model")
    value = moeits.plan(moeits.score(model), reduction=0.3).facts()
    file = folder / "plan.json"

    def feed(content: bytes) -> None:
        file.write_bytes(content)
        moeits.inspect(file)
        if _now_and_then(content, 2):
            shutil.rmtree(folder / "pruned", ignore_errors=True)
            moeits.prune(model, plan=file, output=folder / "pruned")

    return Parser("plan.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def evidence(folder: Path) -> Parser:
    from safetensors.numpy import load, save

    path = folder / "evidence.safetensors"
    moeits.score(_toy(folder / "model"), output=path)
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


def _few_items(accuracy: float) -> dict[str, Any]:
    """Results of eight items a task, so that a mutation often falls on something else than an item."""
    value = runs.results(accuracy, parameters=1000, nbytes=2000)
    value["samples"] = {
        task: {name: column[:8] for name, column in columns.items()} for task, columns in value["samples"].items()
    }
    return value


def results(folder: Path) -> Parser:
    value, other = _few_items(0.5), folder / "other.json"
    runs.write(other, _few_items(0.6))
    path = folder / "results.json"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        compared = moeits.compare(path, other, resamples=100)
        json.dumps(compared.facts())

    return Parser("results.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def _small_run(folder: Path) -> Path:
    """One point of a sweep with everything that a report shows."""
    run = folder / "run"
    runs.swept(_toy(folder / "model"), run, "1")
    runs.evaluated(run)
    for path in run.rglob("unhealed.json"):
        runs.write(path, _few_items(0.6))
    for path in run.rglob("healed.json"):
        runs.write(path, _few_items(0.5))
    return run


def _file_of_a_run(name: str, file: str) -> Callable[[Path], Parser]:
    def make(folder: Path) -> Parser:
        run = _small_run(folder)
        path = next(run.rglob(file))
        value = json.loads(path.read_text())
        for other in run.rglob("healed.json"):
            other.unlink()
        for other in run.rglob("unhealed.json"):
            other.unlink()

        def feed(content: bytes) -> None:
            path.write_bytes(content)
            moeits.report(run, output=folder / "report.md", format="md")

        return Parser(name, (as_json(value),), lambda random: mutated_json(value, random), feed)

    return make


def run_folder(folder: Path) -> Parser:
    run = _small_run(folder)
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}

    def mutant(random: Random) -> bytes:
        name = random.choice(list(files))
        if random.random() < 0.05:
            return name.encode()
        damaged = (
            mutated_bytes
            if name.endswith(".safetensors")
            else lambda text, random: mutated_json(json.loads(text), random)
        )
        return name.encode() + b"\n" + damaged(files[name], random)

    def feed(content: bytes) -> None:
        """Name of a file and what is in it; a name alone says that the file is missing."""
        name, given, text = content.partition(b"\n")
        path = run / name.decode()
        try:
            path.write_bytes(text) if given else path.unlink()
            moeits.report(run, output=folder / "report.md", format="md")
        finally:
            path.write_bytes(files[name.decode()])

    valid = tuple(name.encode() + b"\n" + text for name, text in files.items())
    return Parser("run folder, as Markdown", valid, mutant, feed)


def recipes(folder: Path) -> Parser:  # noqa: ARG001
    fields = RECIPES["small"].facts() | {"targets": "experts,router"}

    def mutant(random: Random) -> bytes:
        changes = {
            name: random.choice((value, strange_value(random), strange_text(random)))
            for name, value in fields.items()
            if random.random() < 0.2
        }
        return as_json({"recipe": random.choice((*RECIPES, strange_text(random))), "changes": changes})

    def feed(content: bytes) -> None:
        try:
            asked = json.loads(content)
        except (ValueError, RecursionError):  # what Python itself cannot hold is not a recipe
            raise SettingError("not a value") from None
        for architecture in ARCHITECTURES[:3]:
            recipe_named(asked["recipe"], architecture).changed(asked["changes"])

    return Parser("recipes", (as_json({"recipe": "small", "changes": fields}),), mutant, feed)


def sizes(folder: Path) -> Parser:  # noqa: ARG001
    readers: dict[str, Callable[[str], Any]] = {
        "--max-size": lambda text: parse_size(text, "--max-size"),
        "--tau": parse_taus,
        "--reduction": share,
    }
    valid = (
        ("--max-size", "12GiB"),
        ("--max-size", "1.5 MB"),
        ("--tau", "0.5:5:0.25"),
        ("--tau", "1,2"),
        ("--reduction", "0.5"),
        ("--reduction", "50%"),
    )

    def mutant(random: Random) -> bytes:
        flag, text = random.choice(valid)
        return f"{flag} ".encode() + " ".join(mutated_words([text], random)).encode("utf-8", "surrogatepass")

    def feed(content: bytes) -> None:
        flag, _, text = content.decode("utf-8", "surrogatepass").partition(" ")
        readers[flag](text)

    return Parser("sizes, taus, shares", tuple(f"{flag} {text}".encode() for flag, text in valid), mutant, feed)


def healing_data(folder: Path) -> Parser:
    from transformers import AutoTokenizer

    from moeits.healing.batches import Sequencer
    from moeits.healing.conversations import read_rows
    from moeits.healing.template import Template

    write_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    sequencer = Sequencer(
        template=Template.of(tokenizer, "instruction"), length=16, packing=False, answers_only=True, most=64, seed=0
    )
    tool = {
        "messages": [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "w2"},
            {"role": "assistant", "content": [{"type": "text", "text": "w3"}]},
        ],
        "tools": "[]",
    }
    kinds = [
        conversations(2),
        texts(2),
        [{"instruction": "w1", "input": "w2", "output": "w3"}] * 2,
        [conversations(1)[0], tool],
    ]
    parquet = _parquet(folder / "rows.parquet", conversations(4))

    def mutant(random: Random) -> bytes:
        rows = random.choice(kinds)
        kind = random.random()
        if kind < 0.1:
            return b".parquet\n" + mutated_bytes(parquet, random)
        if kind < 0.3:
            return b".json\n" + mutated_json(rows, random)
        text = b"\n".join(as_json(mutated(row, random)) for row in rows)
        return b".jsonl\n" + (mutated_bytes(text, random) if random.random() < 0.2 else text)

    def feed(content: bytes) -> None:
        suffix, _, text = content.partition(b"\n")
        path = folder / f"rows{suffix.decode()}"
        path.write_bytes(text)
        sequencer.split(read_rows(path), samples=None, holdout=0, valid=None)

    valid = (*(b".json\n" + as_json(rows) for rows in kinds), b".parquet\n" + parquet)
    return Parser("data of heal", valid, mutant, feed)


def _parquet(path: Path, rows: Sequence[Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def evaluation_texts(folder: Path) -> Parser:
    from transformers import AutoTokenizer

    write_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    rows = texts(3)

    def mutant(random: Random) -> bytes:
        if random.random() < 0.2:
            return b".txt\n" + mutated_bytes(rows[0]["text"].encode(), random)
        text = b"\n".join(as_json(mutated(row, random) if random.random() < 0.5 else row) for row in rows)
        return b".jsonl\n" + (mutated_bytes(text, random) if random.random() < 0.4 else text)

    def feed(content: bytes) -> None:
        suffix, _, text = content.partition(b"\n")
        path = folder / f"text{suffix.decode()}"
        path.write_bytes(text)
        for document in read_text(path).documents:
            tokenizer.encode(document, add_special_tokens=False)

    return Parser("texts of evaluate", (b".jsonl\n" + b"\n".join(map(as_json, rows)), b".txt\nw1 w2"), mutant, feed)


def command_line(folder: Path) -> Parser:
    from moeits.command_line.app import main

    model, scores, made, out = (
        _toy(folder / "model"),
        folder / "scores.safetensors",
        folder / "plan.json",
        folder / "out",
    )
    moeits.plan(moeits.score(model, output=scores), reduction=0.3, output=made)
    nowhere = str(folder / "nowhere")
    valid = (
        ["inspect", str(model), "--reduction", "0.5"],
        ["inspect", str(made), "--json"],
        ["plan", str(scores), "--tau", "1", "--min-experts", "2", "--output", f"{out}.json"],
        [
            "plan",
            str(scores),
            "--experts-per-layer",
            "3",
            "--criterion",
            "random",
            "--seed",
            "3",
            "--output",
            f"{out}.json",
        ],
        ["--version"],
    )
    # Stages that would train or run a model: of a model that is not there, so that what is read are the flags.
    refused = (
        ["heal", nowhere, "--data", nowhere, "--steps", "3", "--learning-rate", "1e-3", "--output", str(out)],
        ["evaluate", nowhere, "--tasks", "x", "--limit", "3", "--output", str(out)],
        ["measure", nowhere, "--repeats", "3"],
        ["sweep", nowhere, "--tau", "0:1:0.5", "--output", str(out)],
        ["simplify", nowhere, "--reduction", "0.5", "--bins", "64", "--output", str(out)],
    )

    def mutant(random: Random) -> bytes:
        return json.dumps(mutated_words(random.choice((*valid, *refused)), random)).encode()

    def feed(content: bytes) -> None:
        words = json.loads(content)
        said, wrong = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", ["moeits", *words]),
            mock.patch("gc.set_threshold"),
            mock.patch("atexit.register"),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(wrong),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        sentence = wrong.getvalue()
        if code == 2 and not sentence and "Usage: moeits" in said.getvalue():
            raise Refused("help, where no command was given")
        if code == 2:
            assert sentence.startswith("moeits: "), sentence
            assert sentence.count("\n") == 1, sentence
            assert sentence.rstrip("\n").isprintable(), sentence
            raise Refused(sentence)
        assert code == 0, (code, sentence)

    return Parser("command line", tuple(json.dumps(words).encode() for words in valid), mutant, feed)


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "header": header,
    "index": index,
    "config": config,
    "plan": plan,
    "evidence": evidence,
    "results": results,
    "healing": _file_of_a_run("healing.json", "healing.json"),
    "footprint": _file_of_a_run("footprint.json", "footprint.json"),
    "ledger": _file_of_a_run("ledger.json", "ledger.json"),
    "sweep": _file_of_a_run("sweep.json", "sweep.json"),
    "run": run_folder,
    "recipes": recipes,
    "sizes": sizes,
    "data": healing_data,
    "texts": evaluation_texts,
    "cli": command_line,
}
