"""docs/architectures.md, made from the table of families: `python -m scripts.families_page > docs/architectures.md`.

From the repository's root, since `tests`, which say what is calibrated and refitted, is not installed.
"""

from moeits.experts.families import ARCHITECTURES, FAMILIES, REFUSED, Architecture
from moeits.healing.targets import can_be_healed
from tests.calibrated import NOT_BY_RECONSTRUCTION, NOT_CALIBRATED, NOT_REFITTED

HEAD = """\
# Families

The {count} model_types of config.json that moeits knows, made from `experts/families.toml` by
`scripts/families_page.py`. Each is scored, pruned to equal and to unequal counts, opened in its own stock transformers
class and compared with the masked original, as a tiny random model that the stock class made: models by themselves in
`tests/test_contract_surgery.py`, those beside others (a vision tower, which is copied byte for byte) in
`tests/test_contract_wrappers.py`, by text and by one picture (`nemo_speechlm` by one sound), in what they compute and
in what they write. Those that can be healed are healed in `tests/test_contract_heal.py` and
`tests/test_contract_wrappers.py`, but for `qwen3_5_moe_text`, whose tokenizer class cannot hold the words of a toy. The
models themselves were not run here. [Extending moeits](extending.md) says how to add a family.

`simplify --refit` works where the column *refitted* says so, criteria of tokens (`reap`, `frequency`, ...) where
*calibrated* does: "in part" is all but `reconstruction`, `naee`, `moe-i2`, `moe-i2-genetic`, `mop`, and
`--edit low-rank` with ranks that differ, for which the router is asked again with experts gone. All of it is tried in
`tests/test_contract_calibrate.py` and `tests/test_contract_wrappers.py`; the others are refused in a sentence. A
quantized release is calibrated, refitted and healed as its copy in bf16 ([releases](releases.md)).

| model_type | models | experts on disk | router | shared experts | limited by groups | calibrated | refitted | healed |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


ON_HUB = """\

## Opened by code that each checkpoint brings

No class of transformers 5.23 opens these as they lie on the hub. They are scored and pruned to equal counts; the code
is copied and never run, so they are not calibrated, refitted, healed or evaluated here. LongCat-Flash as transformers
itself saves it is refused: it has weights of experts that compute nothing, which the release on the hub has not.

| model_type | models | experts on disk |
| --- | --- | --- |
"""


NOT_YET = """
## Not pruned

transformers 5.23 has {all} model_types with routed experts that read or write text, of which {known} are above. A test
counts them. The others are refused by name:

| model_type | why |
| --- | --- |
"""
CALLED_SO_ON_THE_HUB = {"ernie4_5_moe_vl"}
"""Other names of refused families, which transformers does not have."""

OF_TRANSFORMERS_TOO = {"longcat_flash"}
"""Families of the second table that transformers has, in a class that does not open the files on the hub."""


def row(family: Architecture) -> str:
    """One line of the table."""
    on_disk = "one by one or fused" if family.projections else f"fused, in {family.stacking}"
    model = f"{family.models}, in `{family.part}`" if family.part else family.models
    cells = (
        f"`{family.model_type}`",
        model,
        on_disk,
        "with a bias" if len(family.router) > 1 else "",
        "yes" if family.shared else "",
        "yes" if family.limit else "",
        _yes(family.model_type not in NOT_CALIBRATED, but="in part" * (family.model_type in NOT_BY_RECONSTRUCTION)),
        _yes(family.model_type not in NOT_REFITTED),
        _yes(can_be_healed(family)),
    )
    return f"| {' | '.join(cells)} |\n"


def _yes(said: bool, but: str = "") -> str:
    return (but or "yes") if said else "no"


def page() -> str:
    """The page as it should be on disk."""
    on_hub = "".join(short_row(family) for family in FAMILIES if family.class_on_hub)
    return HEAD.format(count=len(ARCHITECTURES)) + "".join(map(row, ARCHITECTURES)) + ON_HUB + on_hub + refused()


def refused() -> str:
    """The families of transformers that are not in the first table, and why."""
    reasons = {name: reason for name, reason in REFUSED.items() if name not in CALLED_SO_ON_THE_HUB}
    rows = "".join(f"| `{name}` | {reason} |\n" for name, reason in reasons.items())
    known = len(ARCHITECTURES) + len(OF_TRANSFORMERS_TOO)
    return NOT_YET.format(known=known, all=known + len(reasons)) + rows


def short_row(family: Architecture) -> str:
    """One line of the second table."""
    on_disk = "one by one or fused" if family.projections else f"fused, in {family.stacking}"
    return f"| `{family.model_type}` | {family.models} | {on_disk} |\n"


if __name__ == "__main__":
    print(page(), end="")
