"""One tiny model in bf16, in FP8 with block scales and in MXFP4, with the same numbers in all three.

Its experts' entries are E2M1 numbers times a power of two for every 32 of a row: MXFP4 can keep them, bf16 and FP8 too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.toys import read_config, read_tensors, write_checkpoint

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP8_BLOCK = (16, 32)
FORMS = ("bf16", "fp8", "mxfp4")


def pack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest MXFP4 numbers of (..., R, C): bytes (..., R, C / 32, 16) and exponents (..., R, C / 32)."""
    groups = values.astype(np.float64).reshape(*values.shape[:-1], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1) / 4))
    scaled = groups / np.exp2(exponents)[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(-1) + 8 * (scaled < 0)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8), (exponents + 127).astype(np.uint8)


def unpack(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """What they mean, by NumPy alone: (..., R, C) float64."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.where(codes < 8, 1.0, -1.0) * E2M1[codes % 8] * np.exp2(exponents.astype(np.float64) - 127)[..., None]
    return values.reshape(*values.shape[:-2], -1)


def fp8(values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., R, C) as FP8 and the scale of each block, a power of two; the numbers must be exact in it."""
    height, width = FP8_BLOCK
    *outer, rows, columns = values.shape
    blocks = values.reshape(*outer, rows // height, height, columns // width, width)
    scales = np.exp2(np.floor(np.log2(np.abs(blocks).max((-3, -1)))) - 6)
    small = torch.from_numpy(blocks / scales[..., :, None, :, None])
    weight = small.to(torch.float8_e4m3fn)
    assert torch.equal(weight.to(torch.float64), small), "the numbers of the toy should be exact in FP8"
    return weight.reshape(values.shape), torch.from_numpy(scales).float()


def packed_copies(toy: Path, folder: Path) -> dict[str, Path]:
    """The three copies of a toy. Its experts have rows of 32 entries."""
    config, plain = read_config(toy), read_tensors(toy)
    tensors: dict[str, dict[str, Any]] = {form: {} for form in FORMS}
    for name, value in plain.items():
        if ".experts." in name and not name.endswith("bias"):
            for form, parts in _weight(name, value).items():
                tensors[form] |= parts
        else:
            for form in FORMS:
                tensors[form][name] = _torch(value)
    quantization = {
        "fp8": {"quant_method": "fp8", "weight_block_size": list(FP8_BLOCK)},
        "mxfp4": {"quant_method": "mxfp4"},
    }
    return {
        form: write_packed(
            folder / form,
            config | ({"quantization_config": quantization[form]} if form in quantization else {}),
            tensors[form],
        )
        for form in FORMS
    }


def _weight(name: str, value: np.ndarray) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of one weight in each form: as it stands, MXFP4 by outputs also where bf16 is (inputs, outputs)."""
    fused = value.ndim == 3
    blocks, exponents = pack(value.swapaxes(-1, -2) if fused else value)
    exact = unpack(blocks, exponents)
    exact = exact.swapaxes(-1, -2) if fused else exact
    weight, scales = fp8(np.ascontiguousarray(exact))
    parts = (
        {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        if fused
        else {name: blocks.reshape(len(blocks), -1).view(np.int8), name.removesuffix("weight") + "scale": exponents}
    )
    return {
        "bf16": {name: torch.from_numpy(np.ascontiguousarray(exact)).bfloat16()},
        "fp8": {name: weight, f"{name}_scale_inv": scales},
        "mxfp4": {part: torch.from_numpy(array.copy()) for part, array in parts.items()},
    }


def _torch(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value.astype(np.float32)).bfloat16()


def write_packed(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """A checkpoint of torch tensors: NumPy's safetensors knows no FP8."""
    from safetensors.torch import save_file

    write_checkpoint(folder, config, {"none": np.zeros(1, np.float32)})
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def raw_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in one file, FP8 too."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
