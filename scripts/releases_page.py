"""docs/releases.md, made from the releases of the tests: `python -m scripts.releases_page > docs/releases.md`.

From the repository's root, since `tests` is not installed.
"""

from tests.hub_layouts import RELEASES, Release

HEAD = """\
# Releases as they lie on the hub

People hold quantized releases, and of many models no other is published. They are pruned as they are, by one command:

    moeits simplify moonshotai/Kimi-K2-Thinking --reduction 0.5 --output OUT

Experts are scored by the numbers that their codes stand for, one at a time and in the memory that `--memory` gives. They
are moved as bytes: each kept expert keeps its codes, scales, zero points and tables, under its new number. What quantizers
wrote about experts (`ignore`, `modules_to_not_convert`, GPTQ's `dynamic`, `hf_quant_config.json`, ...) names them by their
new numbers, wherever it lies. Nothing is quantized again, so opening the result needs what opening the source needs.

One plan serves all releases of a model: plan on one of them, and

    moeits prune ANOTHER --plan plan.json --any-fingerprint --output OUT

keeps the same experts in bf16, FP8, GPTQ or any other. That the two are one model is for you to know; family, layers and
numbers of experts are checked, and the card says for which release the plan was made.

## Formats

| format | its tensors | numbers held against |
| --- | --- | --- |
| FP8 by blocks, rows or one scale | `weight`, `weight_scale_inv` or `weight_scale` | transformers |
| MXFP4 | `_blocks`, `_scales`; `weight`, `scale`; `weight_packed`, `weight_scale` | transformers, the standard |
| NVFP4 by ModelOpt | `weight`, `weight_scale`, `weight_scale_2` | ModelOpt's formula, transcribed |
| NVFP4 by compressed-tensors | `weight_packed`, `weight_scale`, `weight_global_scale` | compressed-tensors |
| integers by compressed-tensors (pack-quantized, 2, 4 or 8 bits) | `weight_packed`, `weight_scale`, `weight_zero_point` | compressed-tensors |
| GPTQ of 2, 4 or 8 bits, both formats | `qweight`, `qzeros`, `scales`, `g_idx` | GPTQModel's kernel, transcribed |
| AWQ (GEMM) | `qweight`, `qzeros`, `scales` | AutoAWQ's function, transcribed |
| bitsandbytes NF4, FP4, nested or not | `weight`, `absmax`, `quant_map`, `nested_absmax`, `quant_state` | bitsandbytes' function, transcribed |

All are equal bit for bit (`tests/test_codecs.py`); what is transcribed was once compared with the library itself, but for
ModelOpt's, which could not be imported here. Experts quantized in another way (GPTQ of 3 bits, AWQ's GEMV, int8 by
bitsandbytes) are pruned by the plan of another release. What was packed *across* experts is refused: a router in GPTQ's words,
scales over several of its rows, fused experts in one pile of codes. bitsandbytes packs the router too, unless it is told not
to (`llm_int8_skip_modules=["gate"]`): such releases are refused as well.

Calibrating, refitting, healing and editing need weights that are numbers: do that with a copy in bf16, pruned by the same
plan, and quantize the result.

## Opened again, on a CPU

What a tiny pruned release computes, opened by a loader that is not ours, beside the release itself whose routers cannot choose
the removed experts. No GPU was used. *In the tests* says which tests do it every time; the others were run once, by hand.

| format | loader | the same as the masked release | |
| --- | --- | --- | --- |
| FP8 by blocks | transformers 5.23, which dequantizes it | yes: the order of sums only | in `tests/test_codecs.py` |
| MXFP4 in blocks (gpt-oss) | transformers 5.23, which dequantizes it | yes: the order of sums only | in `tests/test_codecs.py` |
| compressed-tensors, 4 and 8 bits without zero points | transformers 5.23 with compressed-tensors 0.20 | yes: the order of sums only | in `tests/test_quantized_releases.py` |
| compressed-tensors, with zero points | the same | not opened, unpruned neither | in `tests/test_quantized_releases.py` |
| NVFP4 by compressed-tensors | the same | yes; but the loader leaves out the scale of each whole weight, unpruned too, so both are another model | in `tests/test_quantized_releases.py` |
| bitsandbytes NF4, experts too | transformers 4.57.6 with bitsandbytes 0.50.2 | yes: to 1.6e-06 of logits up to 8.4 | by hand |
| bitsandbytes NF4, nested, experts too | the same | to 2.9e-03 of logits up to 8.4: all weights are equal bit for bit, and products are rounded to bf16 | by hand |
| bitsandbytes NF4, experts in bf16, as transformers 5 quantizes | transformers 5.23 with bitsandbytes 0.50.2 | yes: to 1.9e-06 of logits up to 8.8, in float32 | by hand |
| bitsandbytes NF4, experts too | the same | not opened, unpruned neither: it fuses experts, and does not unpack fused ones | by hand |
| GPTQ, AWQ | transformers 5.23 with GPTQModel 7.7 | experts of neither are read, for the same reason: random numbers take their place | by hand |
| GPTQ, AWQ | transformers 4, vLLM, SGLang | not run | |
| NVFP4 by ModelOpt; FP8 by rows, MXFP4 in other names | transformers has no loader, or it needs a GPU | not run | |

Of what was not run, and of all formats, bytes are compared: each kept expert's tensors are those of the source.

## Which releases

Each is written down by hand in `tests/hub_layouts.py` (names, shapes, config keys, made tiny), scored and pruned, and every
tensor compared to the byte (`tests/test_hub_layouts.py`). The real files were not seen: the machine this was built on has no
hub. {works} of {count} are scored and pruned.

| release | model_type | experts | |
| --- | --- | --- | --- |
"""  # noqa: E501


def row(release: Release) -> str:
    """One line of the second table."""
    lie = "fused" if release.fused else "one by one"
    kept = f"{lie}, {release.form}" if release.form else lie
    said = "scored and pruned" if release.expected == "scored" else f"refused: {release.sentence.replace(chr(92), '')}"
    return f"| {release.name} | `{release.model_type}` | {kept} | {said} |\n"


def page() -> str:
    """The page as it should be on disk."""
    works = sum(release.expected == "scored" for release in RELEASES)
    return HEAD.format(works=works, count=len(RELEASES)) + "".join(map(row, RELEASES))


if __name__ == "__main__":
    print(page(), end="")
