"""What the healing tests share: a pruned toy with unequal layers and a tokenizer, and a little to read."""

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import moeits
from tests.toys import make_toy

# What a toy can say: 64 tokens, of which the first is the end of sequence and the second the padding.
WORDS = ("<eos>", "<pad>", *(f"w{number}" for number in range(62)))
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def write_tokenizer(folder: Path, *, eos: bool = True, pad: str = "<pad>", chat: bool = False) -> None:
    """A tokenizer of whole words; a word it does not know is w0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>"} if eos else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token="w0", **special)
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


LETTERS = string.ascii_letters + string.digits
"""The tokens of a toy that reads bytes, after <eos> and <pad>."""


def write_letters(folder: Path) -> None:
    """A tokenizer of single letters: some families open any file as byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "<pad>": 1, **{letter: 2 + number for number, letter in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", "unk_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def spelt(numbers: Iterable[int]) -> str:
    """Letters by their numbers."""
    return "".join(LETTERS[number] for number in numbers)


def make_pruned(tmp_path: Path, model_type: str = "qwen2_moe", *, dtype: str = "float32", **changes: Any) -> Path:
    """A toy that keeps another number of experts in each layer, with a tokenizer."""
    toy = make_toy(tmp_path / "toy", model_type, dtype=dtype, **changes)
    write_tokenizer(toy)
    plan = moeits.plan(moeits.score(toy), tau=0.2)
    sizes = [3, 5, 4, 6]
    kept = {layer: tuple(range(sizes[at % 4])) for at, layer in enumerate(plan.kept)}
    pruned = tmp_path / "pruned"
    from dataclasses import replace

    moeits.prune(toy, plan=replace(plan, kept=kept), output=pruned)
    return pruned


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int = 24) -> list[Mapping[str, Any]]:
    """Texts that can be learnt: each word is followed by the next one."""
    return [{"text": " ".join(f"w{(start + at) % 62}" for at in range(12))} for start in range(count)]


def conversations(count: int = 24) -> list[Mapping[str, Any]]:
    """Conversations of two turns."""
    return [
        {"conversations": [{"from": "human", "value": f"w{at} w1"}, {"from": "gpt", "value": f"w{at + 1} w2 w3"}]}
        for at in range(count)
    ]
