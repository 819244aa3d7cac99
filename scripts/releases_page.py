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
scales over several of its rows, fused experts in one pile of codes.

Calibrating, refitting, healing and editing need weights that are numbers: do that with a copy in bf16, pruned by the same
plan, and quantize the result.

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
