"""Weights to measure on: of the size of Qwen1.5-MoE's and DeepSeek-V2-Lite's experts, made on the spot."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

ROWS, COLUMNS = 1408, 2048
KINDS = ("Gaussian", "Student-t(8)")


def matrix(kind: str, rng: np.random.Generator, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    """One bfloat16 weight with entries of scale 0.02."""
    values = rng.standard_normal(shape) if kind == "Gaussian" else rng.standard_t(8, shape)
    return (0.02 * values).astype(np.float32).astype(ml_dtypes.bfloat16)


def one_layer_checkpoint(folder: Path, *, experts: int, layers: int = 1, kind: str = "Gaussian") -> Path:
    """A qwen2_moe checkpoint of whole-size experts and hardly anything else."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for layer in range(layers):
        block = f"model.layers.{layer}.mlp"
        tensors = {f"{block}.gate.weight": matrix(kind, rng, (experts, COLUMNS))}
        for expert in range(experts):
            for projection, shape in (("gate", (ROWS, COLUMNS)), ("up", (ROWS, COLUMNS)), ("down", (COLUMNS, ROWS))):
                tensors[f"{block}.experts.{expert}.{projection}_proj.weight"] = matrix(kind, rng, shape)
        save_file(tensors, folder / f"model-{layer + 1:05}-of-{layers:05}.safetensors")
        names = dict.fromkeys(tensors, f"model-{layer + 1:05}-of-{layers:05}.safetensors")
        index = folder / "model.safetensors.index.json"
        before = json.loads(index.read_text())["weight_map"] if index.exists() else {}
        index.write_text(json.dumps({"metadata": {}, "weight_map": before | names}))
    config = {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_hidden_layers": layers,
        "num_experts": experts,
        "num_experts_per_tok": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
