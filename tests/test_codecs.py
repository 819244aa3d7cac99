"""Packed weights are scored by the numbers that they stand for, and moved as bytes."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.errors import NonFiniteWeight, UnscorableWeight
from moeits.experts.codecs import Part, codec_of
from moeits.experts.codecs.fp8 import Fp8
from moeits.experts.codecs.int4 import PackQuantized
from moeits.experts.codecs.mxfp4 import Mxfp4
from tests.masked import TOLERANCE, logits, routers_masked
from tests.packed import FORMS, pack, packed_copies, raw_tensors, unpack, write_packed
from tests.quantizers import QUANTIZERS, codec_parts, headers
from tests.toys import make_toy, num_experts, read_config

BF16 = {"dtype": "bfloat16"}
TOYS = {
    "qwen3_moe": {"moe_intermediate_size": 32},
    "deepseek_v3": {"moe_intermediate_size": 32},
    "gpt_oss": {"intermediate_size": 32},
}


@pytest.fixture(scope="module", params=TOYS)
def copies(request, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return packed_copies(make_toy(folder / "toy", request.param, **TOYS[request.param]), folder)


def same_bits(ours: np.ndarray, oracle: torch.Tensor) -> bool:
    assert ours.dtype.name == str(oracle.dtype).removeprefix("torch.")
    width = {2: (np.uint16, torch.int16), 4: (np.uint32, torch.int32)}[ours.itemsize]
    return np.array_equal(ours.view(width[0]), oracle.view(width[1]).numpy().view(width[0]))


# ---------------------------------------------------------------------------------------------- one weight


def fp8_bytes(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Every pattern that is a number."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = torch.arange(256, dtype=torch.uint8)[numbers.float().isfinite()]
    which = torch.randint(len(finite), (rows, columns), generator=torch.Generator().manual_seed(seed))
    return finite[which].view(dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (96, 1), (6, 4), (3, 8)])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32", "float16"])
def test_fp8_is_what_transformers_makes_of_it(dtype: torch.dtype, grid: tuple[int, int], wanted: str) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = fp8_bytes(96, 64, dtype)
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(1)) / 512
    oracle = Fp8Dequantize(None)._dequantize_one(weight, scales, getattr(torch, wanted))
    numpy_dtype = getattr(ml_dtypes, str(dtype).removeprefix("torch."))
    parts = {"weight": weight.view(torch.uint8).numpy().view(numpy_dtype), "scale_inv": scales.numpy()}
    assert same_bits(Fp8().decode(parts, {"dtype": wanted}), oracle)


@pytest.mark.parametrize(("rows", "columns", "block"), [(40, 50, [9, 16]), (300, 250, [128, 100])], ids=str)
def test_the_last_blocks_of_fp8_are_cut_off_at_the_edges(rows: int, columns: int, block: list[int]) -> None:
    """DeepSeek's blocks are of 128 by 128 wherever the weight ends: 5 scales for 40 rows of blocks of 9.

    The larger weight has more entries than 256 for each block, so it is decoded by a table.
    """
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    weight = fp8_bytes(rows, columns, torch.float8_e4m3fn)
    grid = [-(-size // of) for size, of in zip((rows, columns), block, strict=True)]
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(1)).exp2()
    oracle = _dequantize_fp8_weight(weight, scales, block, torch.float32)
    parts = {"weight": weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn), "scale_inv": scales.numpy()}
    config = {"dtype": "float32", "quantization_config": {"weight_block_size": block}}
    assert same_bits(Fp8().decode(parts, config), oracle)
    assert not same_bits(Fp8().decode({**parts, "scale_inv": scales.numpy()[::-1]}, config), oracle)


@pytest.mark.parametrize("config", [{"weight_block_size": [64, 2**70]}, {"weight_block_size": [[], 1]}, 1.5, None])
def test_a_block_larger_than_the_weight_takes_no_more_memory_and_nonsense_is_not_believed(config: object) -> None:
    weight = fp8_bytes(6, 5, torch.float8_e4m3fn)
    parts = {"weight": weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn), "scale": np.full((1, 1), 2.0)}
    assert same_bits(Fp8().decode(parts, {"quantization_config": config, "dtype": []}), (weight.float() * 2).bfloat16())


@pytest.mark.parametrize("scale", [np.float32(0.5), np.full(1, 0.5, np.float32), np.array([[126]], np.uint8)], ids=str)
def test_one_scale_for_a_whole_weight_comes_in_three_shapes(scale: np.ndarray) -> None:
    weight = fp8_bytes(6, 5, torch.float8_e4m3fn)
    parts = {"weight": weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn), "scale": np.asarray(scale)}
    assert same_bits(Fp8().decode(parts, BF16), (weight.float() / 2).bfloat16())


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 3))
def test_mxfp4_is_what_transformers_makes_of_it(seed: int, rows: int, groups: int) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (2, rows, groups, 16), np.uint8)
    scales = rng.integers(1, 255, (2, rows, groups), np.uint8)
    scales[:, ::7] = 0
    oracle = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    for expert in range(2):
        decoded = Mxfp4().decode({"blocks": blocks[expert], "scales": scales[expert]}, BF16)
        assert same_bits(np.ascontiguousarray(decoded.T), oracle[expert])
    one = {"weight": blocks[0].reshape(rows, -1).view(np.int8), "scale": scales[0].view(ml_dtypes.float8_e8m0fnu)}
    assert same_bits(Mxfp4().decode(one, BF16).T.copy(), oracle[0])


def test_mxfp4_is_what_its_standard_says() -> None:
    rng = np.random.default_rng(0)
    blocks, exponents = rng.integers(0, 256, (9, 2, 16), np.uint8), rng.integers(100, 150, (9, 2), np.uint8)
    decoded = Mxfp4().decode({"blocks": blocks, "scales": exponents}, {"dtype": "float32"})
    assert np.array_equal(decoded, unpack(blocks, exponents))
    again, same = pack(decoded)
    assert np.array_equal(unpack(again, same), decoded)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_quantized_weight_is_what_its_quantizer_makes_of_it(name: str, seed: int) -> None:
    form = QUANTIZERS[name]
    rng = np.random.default_rng(seed)
    parts = form.write(rng, *[(48, 128), (16, 64), (80, 192)][seed])
    config = {"dtype": form.dtype, "quantization_config": form.config}
    codec = codec_of(headers(codec_parts(parts)))
    assert codec is not None
    decoded = codec.decode(codec_parts(parts), config)
    oracle = form.meant(parts).to(getattr(torch, form.dtype))
    assert same_bits(decoded, oracle)
    assert codec.size(headers(codec_parts(parts)), config).entries == decoded.size
    scale = next(part for part in (".scales", ".weight_scale", ".weight.absmax") if part in parts)
    changed = {**parts, scale: parts[scale].flip(0)}
    assert not same_bits(codec.decode(codec_parts(changed), config), oracle)


# ---------------------------------------------------------------------------------------------- a whole model


def test_three_copies_of_one_model_have_as_many_parameters(copies: dict[str, Path]) -> None:
    inspected = {form: moeits.inspect(copies[form]) for form in FORMS}
    assert len({(each.parameters, each.routed_parameters) for each in inspected.values()}) == 1
    assert len({each.nbytes for each in inspected.values()}) == 3


def test_three_copies_of_one_model_have_one_plan(copies: dict[str, Path]) -> None:
    scored = {form: moeits.score(copies[form]) for form in FORMS}
    plans = {form: moeits.plan(scored[form], tau=0.5) for form in FORMS}
    for form in FORMS:
        assert all(np.array_equal(r, scored["bf16"].redundancy[i]) for i, r in scored[form].redundancy.items()), form
        assert (plans[form].kept, plans[form].order) == (plans["bf16"].kept, plans["bf16"].order)
    assert 0 < sum(plans["bf16"].counts.values()) < sum(plans["bf16"].experts_before().values())


@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_scales_move_with_their_expert_as_bytes(copies: dict[str, Path], form: str, tmp_path: Path) -> None:
    plan = moeits.plan(moeits.score(copies["bf16"]), experts_per_layer=3)
    moeits.prune(copies[form], plan=plan, output=tmp_path / "out", any_fingerprint=True)
    moeits.prune(
        copies[form], plan=moeits.plan(moeits.score(copies[form]), experts_per_layer=3), output=tmp_path / "own"
    )
    before, after, own = (raw_tensors(folder) for folder in (copies[form], tmp_path / "out", tmp_path / "own"))
    assert after.keys() == own.keys()
    moved = set()
    for layer, kept in plan.kept.items():
        inside = f"model.layers.{layer}.mlp.experts."
        for name in (name for name in before if name.startswith(inside)):
            expert, _, rest = name.removeprefix(inside).partition(".")
            if not rest:
                here, there = before[name][list(kept)], after[name]
            elif int(expert) in kept:
                here, there = before[name], after[f"{inside}{kept.index(int(expert))}.{rest}"]
            else:
                continue
            assert torch.equal(here.view(torch.uint8), there.view(torch.uint8)), name
            moved.add(name)
    assert any("scale" in name for name in moved)
    assert all(torch.equal(value.view(torch.uint8), own[name].view(torch.uint8)) for name, value in after.items())


@pytest.mark.parametrize("counts", [(3, 3), (4, 2)], ids=["equal", "unequal"])
@pytest.mark.parametrize("form", ["qwen3_moe fp8", "deepseek_v3 fp8", "gpt_oss mxfp4"])
def test_what_was_pruned_packed_opens_in_transformers_with_the_numbers_of_what_was_pruned_in_bf16(
    tmp_path: Path, form: str, counts: tuple[int, int]
) -> None:
    """Transformers dequantizes by itself where there is no GPU."""
    model_type, packed = form.split()
    copies = packed_copies(make_toy(tmp_path / "toy", model_type, **TOYS[model_type]), tmp_path)
    made = moeits.plan(moeits.score(copies["bf16"]), experts_per_layer=3)
    kept = {layer: tuple(range(1, 1 + counts[layer % 2])) for layer in made.kept}
    states = {}
    for copy in ("bf16", packed):
        output = tmp_path / f"{copy}-pruned"
        moeits.prune(copies[copy], plan=replace(made, kept=kept), output=output, any_fingerprint=True)
        assert ("per_layer_config" in read_config(output)) == (counts[0] != counts[1])
        states[copy] = moeits.load(output, dtype=torch.bfloat16).state_dict()
    assert states["bf16"].keys() == states[packed].keys()
    assert all(torch.equal(value, states[packed][name]) for name, value in states["bf16"].items())


@pytest.mark.parametrize("form", ["qwen3_moe fp8", "gpt_oss mxfp4"])
def test_a_packed_model_may_keep_one_expert_of_each_layer_and_has_as_many_parameters_as_in_bf16(
    tmp_path: Path, form: str
) -> None:
    model_type, packed = form.split()
    copies = packed_copies(make_toy(tmp_path / "toy", model_type, **TOYS[model_type]), tmp_path)
    left = {}
    for copy in ("bf16", packed):
        output = tmp_path / f"{copy}-pruned"
        plan = moeits.simplify(copies[copy], experts_per_layer=1, min_experts=1, output=output)
        left[copy] = moeits.inspect(output).parameters
        assert left[copy] == plan.summary["parameters_after"]
    assert left["bf16"] == left[packed]


@pytest.mark.parametrize("form", ["qwen3_moe fp8", "gpt_oss mxfp4"])
def test_logits_of_a_pruned_release_are_those_of_the_masked_release(tmp_path: Path, form: str) -> None:
    """Both opened by transformers from their codes; in float32 afterwards, so that only the order of sums differs."""
    model_type, packed = form.split()
    release = packed_copies(make_toy(tmp_path / "toy", model_type, **TOYS[model_type]), tmp_path)[packed]
    plan = moeits.plan(moeits.score(release), experts_per_layer=3)
    moeits.prune(release, plan=plan, output=tmp_path / "out")
    original, pruned = (moeits.load(folder, dtype=torch.bfloat16).float() for folder in (release, tmp_path / "out"))
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with routers_masked(original, plan.kept, num_experts(read_config(release))):
        wanted = logits(original, tokens)
    allowed = TOLERANCE * wanted.abs().max()
    assert (logits(pruned, tokens) - wanted).abs().max() <= allowed
    assert (logits(original, tokens) - wanted).abs().max() > 10 * allowed


# ---------------------------------------------------------------------------------------------- what does not fit


@pytest.fixture
def fp8_copy(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    copies = packed_copies(make_toy(tmp_path / "toy", "qwen3_moe", **TOYS["qwen3_moe"]), tmp_path)
    return copies["fp8"], raw_tensors(copies["fp8"])


def changed(folder: Path, tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> Path:
    """All tensors of one kind replaced."""
    replaced = {key: value.clone() if key.endswith(name) else old for key, old in tensors.items()}
    return write_packed(folder.with_name("changed"), read_config(folder), replaced)


def test_scales_of_another_size_are_refused_before_any_work(fp8_copy) -> None:
    folder = changed(*fp8_copy, "up_proj.weight_scale_inv", torch.ones(3, 5))
    with pytest.raises(
        UnscorableWeight, match=r"experts\.0\.up_proj\.weight.*: scales of shape \[3, 5\] do not fit .*32"
    ):
        moeits.score(folder)


def test_fp8_without_scales_is_not_scored(fp8_copy) -> None:
    folder, tensors = fp8_copy
    bare = {name: value for name, value in tensors.items() if not name.endswith("scale_inv")}
    with pytest.raises(UnscorableWeight, match=r"0\.gate_proj\.weight \(F8_E4M3\): experts quantized in this way"):
        moeits.score(write_packed(folder.with_name("bare"), read_config(folder), bare))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 3e38])
def test_a_scale_that_makes_numbers_infinite_is_named(fp8_copy, scale: float) -> None:
    folder = changed(*fp8_copy, "1.down_proj.weight_scale_inv", torch.full((2, 1), scale))
    with pytest.raises(NonFiniteWeight, match=r"layers\.0\.mlp\.experts\.1\.down_proj\.weight: .*NaN or infinity"):
        moeits.score(folder)


def test_integers_that_two_schemes_fit_are_refused_with_both_widths() -> None:
    """Rows of one group of 4 bits, or of one scale and 8 bits."""
    parts = {
        "packed": Part(dtype="I32", shape=(8, 4), nbytes=128),
        "scale": Part(dtype="BF16", shape=(8, 1), nbytes=16),
    }
    schemes = [{"num_bits": 4, "group_size": 32}, {"num_bits": 8, "strategy": "channel"}]
    groups = {f"group_{at}": {"weights": weights} for at, weights in enumerate(schemes)}
    with pytest.raises(UnscorableWeight, match=r"may have 4 or 8 bits, .*; score another release"):
        PackQuantized().size(parts, {"quantization_config": {"config_groups": groups}})


def test_projections_of_one_expert_may_be_of_two_schemes(tmp_path: Path) -> None:
    """Gate and up in 4 bits by groups, down in 8 bits by rows, as schemes by name (`targets`) make them."""
    toy = make_toy(tmp_path / "toy", "qwen3_moe", layers=1, hidden_size=64, moe_intermediate_size=64)
    four, eight = (QUANTIZERS[f"compressed-tensors {name}"] for name in ("int4", "int8 by rows, others int4"))
    rng, packed, plain = np.random.default_rng(0), raw_tensors(toy), raw_tensors(toy)
    for name in [name for name in packed if ".experts." in name]:
        form = eight if "down_proj" in name else four
        parts = form.write(rng, *packed.pop(name).shape)
        packed |= {name.removesuffix(".weight") + part: value for part, value in parts.items()}
        plain[name] = form.meant(parts).bfloat16()
    ours = write_packed(tmp_path / "packed", read_config(toy) | {"quantization_config": eight.config}, packed)
    theirs = write_packed(tmp_path / "plain", read_config(toy), plain)
    assert np.array_equal(moeits.score(ours).redundancy[0], moeits.score(theirs).redundancy[0])
    moeits.simplify(ours, experts_per_layer=3, output=tmp_path / "out")
    of_both = [moeits.inspect(folder).parameters for folder in (ours, theirs)]
    assert of_both[0] == of_both[1]


@pytest.mark.parametrize("of", ["scales", "blocks"])
def test_blocks_that_do_not_fit_their_scales_are_refused(tmp_path: Path, of: str) -> None:
    copies = packed_copies(make_toy(tmp_path / "toy", "gpt_oss", **TOYS["gpt_oss"]), tmp_path)
    shape = {"scales": (6, 64, 2), "blocks": (6, 64, 1, 15)}[of]
    value = torch.zeros(shape, dtype=torch.uint8)
    folder = changed(copies["mxfp4"], raw_tensors(copies["mxfp4"]), f"gate_up_proj_{of}", value)
    with pytest.raises(
        UnscorableWeight, match=r"gate_up_proj_blocks, .*gate_up_proj_scales: scales of shape .* do not fit"
    ):
        moeits.score(folder)
