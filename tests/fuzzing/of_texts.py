"""What models read: data of heal, texts of evaluate and of calibrate."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from moeits.evaluation.perplexity import read_text
from tests.fuzzing.mutations import as_json, mutated, mutated_bytes, mutated_json
from tests.fuzzing.parser import Parser, toy
from tests.healing_toys import conversations, texts, write_tokenizer


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


def calibration_texts(folder: Path) -> Parser:
    """Texts of calibrate and refit, and the config and tokenizer by which they are cut into windows."""
    from moeits.calibration.settings import Tokens
    from moeits.calibration.texts import windows_of
    from moeits.checkpoint.reading import Checkpoint
    from moeits.progress import silent

    model = toy(folder / "model")
    write_tokenizer(model)
    rows = [{"text": " ".join(f"w{(n + i) % 62}" for i in range(40)), "source": f"s{n % 6}"} for n in range(60)]
    files = {name: (model / name).read_bytes() for name in ("config.json", "tokenizer_config.json")}

    def mutant(random: Random) -> bytes:
        if random.random() < 0.2:
            name = random.choice(list(files))
            return name.encode() + b"\n" + mutated_json(json.loads(files[name]), random)
        text = b"\n".join(as_json(mutated(row, random) if random.random() < 0.1 else row) for row in rows)
        return b"texts.jsonl\n" + (mutated_bytes(text, random) if random.random() < 0.3 else text)

    def feed(content: bytes) -> None:
        name, _, text = content.partition(b"\n")
        path = folder / "texts.jsonl"
        path.write_bytes(b"\n".join(map(as_json, rows)))
        (path if name == b"texts.jsonl" else model / name.decode()).write_bytes(text)
        try:
            asked = Tokens(data=str(path), tokens=256, held_out=256, window=16)
            windows_of(Checkpoint.open(model), asked, silent)
        finally:
            for file, whole in files.items():
                (model / file).write_bytes(whole)

    valid = (b"texts.jsonl\n" + b"\n".join(map(as_json, rows)),)
    return Parser("texts of calibrate", valid, mutant, feed)
