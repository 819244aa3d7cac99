"""One specification for every codec: whoever adds one to CODECS gets all of it applied."""

import tracemalloc
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moeits.experts.codecs import CODECS, Codec, Part, codec_of
from tests.quantizers import QUANTIZERS, codec_parts, headers

ROWS, COLUMNS = 304, 512
CONFIG = {"dtype": "bfloat16", "quantization_config": {"weight_block_size": [128, 128]}}

_RNG = np.random.default_rng(0)
_BYTES = _RNG.integers(0, 64, (ROWS, COLUMNS), np.uint8)
# The parts of one weight, as quantizers write them. A codec holds at least one of these.
KEPT: Mapping[str, Mapping[str, np.ndarray]] = {
    "bf16": {"weight": _RNG.standard_normal((ROWS, COLUMNS)).astype(ml_dtypes.bfloat16)},
    "float32": {"weight": _RNG.standard_normal((ROWS, COLUMNS)).astype(np.float32)},
    "fp8 blocks": {"weight": _BYTES.view(ml_dtypes.float8_e4m3fn), "scale_inv": np.ones((3, 4), np.float32)},
    "fp8 rows": {"weight": _BYTES.view(ml_dtypes.float8_e4m3fn), "scale": np.ones((ROWS, 1), ml_dtypes.bfloat16)},
    "fp8 rows, flat": {"weight": _BYTES.view(ml_dtypes.float8_e4m3fn), "scale": np.ones(ROWS, np.float32)},
    "fp8 whole": {"weight": _BYTES.view(ml_dtypes.float8_e5m2), "scale": np.ones((), np.float32)},
    "mxfp4 blocks": {
        "blocks": _BYTES.reshape(ROWS, -1, 16),
        "scales": np.full((ROWS, COLUMNS // 16), 120, np.uint8),
    },
    "mxfp4 rows": {"weight": _BYTES.view(np.int8), "scale": np.full((ROWS, COLUMNS // 16), 120, np.uint8)},
    "int8 rows": {"weight": _BYTES.view(np.int8), "scale": np.ones((ROWS, 1), np.float32)},
    **{name: codec_parts(form.write(_RNG, ROWS, COLUMNS)) for name, form in QUANTIZERS.items()},
}
BESIDE = {"bias": Part(dtype="BF16", shape=(ROWS,), nbytes=2 * ROWS)}


def config_of(name: str) -> dict[str, Any]:
    form = QUANTIZERS.get(name)
    return {"dtype": form.dtype, "quantization_config": form.config} if form else CONFIG


@pytest.fixture(params=CODECS, ids=lambda codec: codec.name)
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


def held(codec: Codec) -> dict[str, Mapping[str, np.ndarray]]:
    """What the codec decodes, being the first that holds it."""
    return {name: parts for name, parts in KEPT.items() if codec_of(headers(parts)) is codec}


def test_names_are_unique() -> None:
    assert len({codec.name for codec in CODECS}) == len(CODECS)


def test_it_is_the_first_to_hold_some_weight_whatever_lies_beside_it(codec: Codec) -> None:
    assert held(codec)
    for parts in held(codec).values():
        assert codec_of({**headers(parts), **BESIDE}) is codec
        assert {part for part in parts if not part.startswith("input_")} <= set(codec.reads)
    assert not codec.holds({})
    assert not codec.holds({"qweight": Part(dtype="I32", shape=(ROWS, 8), nbytes=32 * ROWS), **BESIDE})


def test_what_it_decodes_is_what_it_said_by_headers_alone(codec: Codec) -> None:
    for name, parts in held(codec).items():
        config = config_of(name)
        size, decoded = codec.size(headers(parts), config), codec.decode(parts, config)
        assert size.shape in (decoded.shape, (decoded.size, 1))
        assert (len(decoded), decoded.itemsize) == (ROWS, size.itemsize)
        assert decoded.dtype.name in {"bfloat16", "float32", "float16"}
        assert np.isfinite(decoded.astype(np.float32)).all()
        assert decoded.tobytes() == codec.decode(parts, config).tobytes()


def test_decoding_holds_what_it_says(codec: Codec) -> None:
    for name, parts in held(codec).items():
        config = config_of(name)
        codec.decode(parts, config)
        tracemalloc.start()
        codec.decode(parts, config)
        peak = tracemalloc.get_traced_memory()[1] + sum(part.nbytes for part in parts.values())
        tracemalloc.stop()
        said = codec.size(headers(parts), config).held_bytes
        assert 0.7 * said < peak <= 1.02 * said + 20_000, name
