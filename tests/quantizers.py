"""Weights as today's quantizers write them, filled with random codes, and what they mean by somebody else's reckoning.

compressed-tensors is asked itself. GPTQ, AWQ, ModelOpt and bitsandbytes are spelt out entry by entry, as their authors'
dequantization reads (GPTQModel 7.7 `dequantize_weight`, AutoAWQ 0.2.9 `dequantize_gemm`, ModelOpt 0.47
`NVFP4QTensor.dequantize`, bitsandbytes 0.50 `dequantize_4bit`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from moeits.checkpoint.reading import DTYPES
from moeits.experts.codecs import Part
from moeits.experts.stored import parts_of
from tests.packed import write_packed
from tests.toys import read_config, read_tensors

Parts = dict[str, torch.Tensor]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@dataclass(frozen=True)
class Quantizer:
    """One form of a weight, by what follows the name of its module."""

    write: Callable[[np.random.Generator, int, int], Parts]
    """A weight of (outputs, inputs)."""
    meant: Callable[[Parts], torch.Tensor]
    """(outputs, inputs) in float32, or in the dtype in which the library computes."""
    config: Mapping[str, Any]
    dtype: str = "bfloat16"
    beside: Mapping[str, Any] = field(default_factory=dict)
    """JSON files of the quantizer beside config.json."""


def codec_parts(parts: Parts) -> dict[str, np.ndarray]:
    """The parts by the names that codecs know, as NumPy has them."""
    names = parts_of("gate_proj.weight", {f"gate_proj{name}": name for name in parts})
    return {part: _as_array(parts[name]) for part, name in names.items()}


def _as_array(value: torch.Tensor) -> np.ndarray:
    if value.dtype == torch.float8_e4m3fn:
        return value.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def headers(parts: Mapping[str, np.ndarray]) -> dict[str, Part]:
    """What a checkpoint's header says of parts."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {name: Part(dtype=names[part.dtype], shape=part.shape, nbytes=part.nbytes) for name, part in parts.items()}


def _words(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-(2**31), 2**31, shape).astype(np.int32))


def _scales(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(0.001, 0.02, shape)).to(dtype)


def _of_word(words: np.ndarray, index: tuple[int, ...], place: int, bits: int) -> int:
    return int(words[index]) >> bits * place & 2**bits - 1


# ---------------------------------------------------------------------------------------------- compressed-tensors


def _int_scheme(**weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
    }


def _two_schemes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """A release whose experts are kept by the first of two schemes, and its attention, say, by the second."""
    (of_first,), (of_second,) = (scheme["config_groups"].values() for scheme in (first, second))
    groups = {
        "group_0": {**of_first, "targets": ["re:.*experts.*"]},
        "group_1": {**of_second, "targets": ["re:.*self_attn.*"]},
    }
    return {**first, "config_groups": groups}


def _pack_quantized(bits: int = 4, size: int | None = 32, *, symmetric: bool = True) -> Callable[..., Parts]:
    def write(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
        parts = {
            ".weight_packed": _words(rng, outputs, inputs * bits // 32),
            ".weight_scale": _scales(rng, outputs, inputs // size if size else 1, dtype=torch.bfloat16),
            ".weight_shape": torch.tensor([outputs, inputs]),
        }
        if not symmetric:
            parts[".weight_zero_point"] = _words(rng, -(-outputs * bits // 32), inputs // size if size else 1)
        return parts

    return write


def _by_compressed_tensors(scheme: Mapping[str, Any]) -> Callable[[Parts], torch.Tensor]:
    def meant(parts: Parts) -> torch.Tensor:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        compressor = BaseCompressor.get_value_from_registry(scheme["format"])
        group = QuantizationScheme(**scheme["config_groups"]["group_0"])
        return compressor.decompress({name[1:]: value for name, value in parts.items()}, group)["weight"]

    return meant


_NVFP4 = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16,
                "scale_dtype": "torch.float8_e4m3fn",
            },
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
}  # fmt: skip


def _nvfp4(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
    return {
        ".weight_packed": torch.from_numpy(rng.integers(0, 256, (outputs, inputs // 2), np.uint8)),
        ".weight_scale": torch.from_numpy(rng.uniform(1, 400, (outputs, inputs // 16))).to(torch.float8_e4m3fn),
        ".weight_global_scale": torch.from_numpy(rng.uniform(1000, 9000, 1)).float(),
        ".input_global_scale": torch.from_numpy(rng.uniform(1, 100, 1)).float(),
    }


# ---------------------------------------------------------------------------------------------- ModelOpt


def _modelopt(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
    return {
        ".weight": torch.from_numpy(rng.integers(0, 256, (outputs, inputs // 2), np.uint8)),
        ".weight_scale": torch.from_numpy(rng.uniform(1, 400, (outputs, inputs // 16))).to(torch.float8_e4m3fn),
        ".weight_scale_2": torch.tensor(float(rng.uniform(1e-4, 1e-3))),
        ".input_scale": torch.tensor(float(rng.uniform(0.001, 0.1))),
    }


def _meant_by_modelopt(parts: Parts) -> torch.Tensor:
    packed, scales = parts[".weight"].numpy(), parts[".weight_scale"].float().numpy()
    meant = np.empty((len(packed), 2 * packed.shape[1]), np.float32)
    for row, column in np.ndindex(*meant.shape):
        octet = int(packed[row, column // 2])
        code = octet >> 4 if column % 2 else octet & 15
        meant[row, column] = np.float32(E2M1[code]) * (
            scales[row, column // 16] * np.float32(parts[".weight_scale_2"].item())
        )
    return torch.from_numpy(meant)


# ---------------------------------------------------------------------------------------------- GPTQ, AWQ


def _gptq(bits: int = 4, size: int = 32, *, any_order: bool = False) -> Callable[..., Parts]:
    def write(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
        order = rng.permutation(inputs) if any_order else np.arange(inputs)
        return {
            ".qweight": _words(rng, inputs * bits // 32, outputs),
            ".qzeros": _words(rng, inputs // size, outputs * bits // 32),
            ".scales": _scales(rng, inputs // size, outputs),
            ".g_idx": torch.from_numpy((order // size).astype(np.int32)),
        }

    return write


def _meant_by_gptq(bits: int = 4, *, first_format: bool = True) -> Callable[[Parts], torch.Tensor]:
    def meant(parts: Parts) -> torch.Tensor:
        words, zeros = parts[".qweight"].numpy(), parts[".qzeros"].numpy().view(np.uint32).astype(np.uint64)
        if first_format:
            zeros = (zeros + int("1".zfill(bits) * (32 // bits), 2)) % 2**32
        scales, group_of, of_word = parts[".scales"].float().numpy(), parts[".g_idx"].tolist(), 32 // bits
        weight = np.empty((words.shape[1], len(words) * of_word), np.float32)
        for output, this in np.ndindex(*weight.shape):
            group = group_of[this]
            zero = _of_word(zeros, (group, output // of_word), output % of_word, bits)
            code = _of_word(words, (this // of_word, output), this % of_word, bits)
            weight[output, this] = (code - zero) * scales[group, output]
        return torch.from_numpy(weight)

    return meant


def _awq(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
    return {
        ".qweight": _words(rng, inputs, outputs // 8),
        ".qzeros": _words(rng, inputs // 32, outputs // 8),
        ".scales": _scales(rng, inputs // 32, outputs),
    }


def _meant_by_awq(parts: Parts) -> torch.Tensor:
    words, zeros, scales = (parts[f".{name}"].numpy() for name in ("qweight", "qzeros", "scales"))
    weight = np.empty((words.shape[1] * 8, len(words)), np.float32)
    for output, this in np.ndindex(*weight.shape):
        # Outputs 0, 2, 4, 6, 1, 3, 5, 7 lie one after the other in a word.
        place, group = [0, 2, 4, 6, 1, 3, 5, 7].index(output % 8), this // 32
        code, zero = (_of_word(of, (at, output // 8), place, 4) for of, at in ((words, this), (zeros, group)))
        weight[output, this] = np.float32(code - zero) * np.float32(scales[group, output])
    return torch.from_numpy(weight)


# ---------------------------------------------------------------------------------------------- bitsandbytes

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def _bitsandbytes(*, nested: bool, any_digits: bool = False) -> Callable[..., Parts]:
    def write(rng: np.random.Generator, outputs: int, inputs: int) -> Parts:
        blocks = outputs * inputs // 64
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [outputs, inputs]}
        parts = {
            ".weight": torch.from_numpy(rng.integers(0, 256, (outputs * inputs // 2, 1), np.uint8)),
            ".weight.quant_map": torch.tensor(NF4),
            ".weight.absmax": torch.from_numpy(rng.uniform(0.01, 0.1, blocks)).float(),
        }
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0432198}
            if any_digits:  # as real ones have it, so that the texts of two weights differ in length
                state["nested_offset"] = round(float(rng.uniform(0.01, 0.09)), int(rng.integers(4, 18)))
            parts[".weight.absmax"] = torch.from_numpy(rng.integers(0, 256, blocks, np.uint8))
            parts[".weight.nested_absmax"] = torch.from_numpy(rng.uniform(0.01, 0.04, -(-blocks // 256))).float()
            parts[".weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
        written = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        return parts | {".weight.quant_state.bitsandbytes__nf4": torch.from_numpy(written)}

    return write


def _meant_by_bitsandbytes(parts: Parts) -> torch.Tensor:
    state = json.loads(parts[".weight.quant_state.bitsandbytes__nf4"].numpy().tobytes())
    octets, absmax = parts[".weight"].flatten().tolist(), parts[".weight.absmax"].numpy()
    meant = np.empty(2 * len(octets), np.float32)
    for at in range(meant.size):
        block = at // state["blocksize"]
        scale = absmax[block]
        if ".weight.nested_absmax" in parts:
            of_scale = parts[".weight.nested_absmax"].numpy()[block // state["nested_blocksize"]]
            scale = parts[".weight.nested_quant_map"].numpy()[scale] * of_scale + np.float32(state["nested_offset"])
        code = octets[at // 2] & 15 if at % 2 else octets[at // 2] >> 4
        meant[at] = np.float32(NF4[code]) * scale
    return torch.from_numpy(meant.reshape(state["shape"]))


# ---------------------------------------------------------------------------------------------- all of them

_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_ASYMMETRIC, _EIGHT = _int_scheme(symmetric=False), _int_scheme(num_bits=8, group_size=64)
_ROWS = _int_scheme(num_bits=8, group_size=None, strategy="channel")
_MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}

QUANTIZERS: Mapping[str, Quantizer] = {
    "compressed-tensors int4": Quantizer(_pack_quantized(), _by_compressed_tensors(_int_scheme()), _int_scheme()),
    "compressed-tensors int4, asymmetric": Quantizer(
        _pack_quantized(symmetric=False), _by_compressed_tensors(_ASYMMETRIC), _ASYMMETRIC
    ),
    "compressed-tensors int8": Quantizer(_pack_quantized(8, 64), _by_compressed_tensors(_EIGHT), _EIGHT),
    "compressed-tensors int4, others int8": Quantizer(
        _pack_quantized(), _by_compressed_tensors(_int_scheme()), _two_schemes(_int_scheme(), _ROWS)
    ),
    "compressed-tensors int8 by rows, others int4": Quantizer(
        _pack_quantized(8, None), _by_compressed_tensors(_ROWS), _two_schemes(_ROWS, _int_scheme())
    ),
    "compressed-tensors nvfp4": Quantizer(_nvfp4, _by_compressed_tensors(_NVFP4), _NVFP4),
    "modelopt nvfp4": Quantizer(
        _modelopt,
        _meant_by_modelopt,
        _MODELOPT,
        beside={"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}},
    ),
    "gptq": Quantizer(
        _gptq(), _meant_by_gptq(), _GPTQ, "float16", beside={"quantize_config.json": {"bits": 4, "group_size": 32}}
    ),
    "gptq, act-order": Quantizer(
        _gptq(any_order=True), _meant_by_gptq(), _GPTQ | {"desc_act": True, "checkpoint_format": "gptq"}, "float16"
    ),
    "gptq, 8 bits": Quantizer(_gptq(8), _meant_by_gptq(8), _GPTQ | {"bits": 8}, "float16"),
    "gptq, 2 bits": Quantizer(_gptq(2), _meant_by_gptq(2), _GPTQ | {"bits": 2}, "float16"),
    "gptq, second format": Quantizer(
        _gptq(), _meant_by_gptq(first_format=False), _GPTQ | {"checkpoint_format": "gptq_v2"}, "float16"
    ),
    "awq": Quantizer(
        _awq,
        _meant_by_awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "modules_to_not_convert": ["gate"]},
        "float16",
    ),
    "bitsandbytes": Quantizer(_bitsandbytes(nested=False), _meant_by_bitsandbytes, _BNB),
    "bitsandbytes, nested": Quantizer(
        _bitsandbytes(nested=True), _meant_by_bitsandbytes, _BNB | {"bnb_4bit_use_double_quant": True}
    ),
    "bitsandbytes, nested, any digits": Quantizer(
        _bitsandbytes(nested=True, any_digits=True), _meant_by_bitsandbytes, _BNB | {"bnb_4bit_use_double_quant": True}
    ),
}


def quantized_copy(toy: Path, folder: Path, name: str, *, seed: int = 0) -> tuple[Path, Path]:
    """A toy with the experts' weights in one of the forms, and one with what they mean as plain numbers."""
    form, config = QUANTIZERS[name], read_config(toy)
    config["dtype"] = form.dtype
    dtype, rng = getattr(torch, form.dtype), np.random.default_rng(seed)
    packed, plain = {}, {}
    for tensor, value in read_tensors(toy).items():
        if ".experts." in tensor:
            parts = form.write(rng, *value.shape)
            packed |= {tensor.removesuffix(".weight") + part: numbers for part, numbers in parts.items()}
            plain[tensor] = form.meant(parts).to(dtype)
        else:
            packed[tensor] = plain[tensor] = torch.from_numpy(value.astype(np.float32)).to(dtype)
    copy = write_packed(folder / "packed", {**config, "quantization_config": form.config}, packed)
    for file, content in form.beside.items():
        (copy / file).write_text(json.dumps(content))
    return copy, write_packed(folder / "plain", config, plain)
