"""A toy that has something to lose: text that it wrote itself, so that whoever prunes it is surprised by more."""

import shutil
from pathlib import Path

import numpy as np
import torch

import moeits
from tests.evaluation_toys import CHARACTERS, give_tokenizer, make_speaking_toy, write_jsonl
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint

WINDOW = 32


def make_opinionated_toy(folder: Path, family: str = "qwen2_moe", **toy: object) -> Path:
    """A speaking toy whose logits are far from even."""
    make_speaking_toy(folder, model_type=family, **toy)
    tensors = read_tensors(folder)
    for name, value in tensors.items():
        if name.startswith("lm_head"):
            tensors[name] = value * 2
    config = read_config(folder)
    shutil.rmtree(folder)
    write_checkpoint(folder, config, tensors)
    give_tokenizer(folder)
    return folder


def make_pruned_toy(folder: Path) -> Path:
    """`toy` and `pruned` in a folder: half of the experts of the one are kept in the other."""
    give_tokenizer(make_toy(folder / "toy", "qwen2_moe", experts=6, dtype="bfloat16"))
    moeits.simplify(folder / "toy", output=folder / "pruned", experts_per_layer=3)
    return folder


def own_text(folder: Path, path: Path, documents: int = 300, seed: int = 0) -> Path:
    """A .jsonl of documents that fill a window each, after the token that begins it; sampled from the toy."""
    model = moeits.load(folder, dtype=torch.float32).eval()
    ids = torch.zeros(documents, 1, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(WINDOW - 1):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            logits[:, :2], logits[:, 2 + len(CHARACTERS) :] = -np.inf, -np.inf
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], 1)
    return write_jsonl(path, [{"text": "".join(CHARACTERS[i - 2] for i in row[1:])} for row in ids.tolist()])
