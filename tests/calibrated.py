"""Which families are calibrated and refitted, and what is said of the others: for the tests, and for their page.

A family that is in none of these is calibrated, chosen by reconstruction too, and refitted.
"""

from collections.abc import Mapping

_CANNOT_BE_ASKED = "cannot be asked again with experts gone"

NOT_BY_LAYERS: Mapping[str, str] = {
    **dict.fromkeys(("glm5_next", "glm_moe_dsa", "hy_v4", "mistral_large4", "zaya"), "hand on more than hidden states"),
    **dict.fromkeys(("deepseek_v4", "qwen4_exp", "qwen4_exp_text"), "more than one residual stream"),
}
"""Families whose layers are not run one by one, and what is said."""

NOT_CALIBRATED: Mapping[str, str] = {
    **NOT_BY_LAYERS,
    "kolibri1": "has its experts beside other parts of the layer",
    **dict.fromkeys(("llama4", "llama4_text"), "weights tokens before the experts"),
    **dict.fromkeys(("muse_spark", "step3p7"), "computes its experts in a way of its own"),
    **dict.fromkeys(("nemo_speechlm", "nemotron_h", "nemotron_h_omni"), "has no gate beside up"),
}
"""Those, and families whose experts or routers calibrate does not follow."""

NOT_BY_RECONSTRUCTION: Mapping[str, str] = {
    **dict.fromkeys(("afmoe", "gemma4", "gemma4_text", "inkling_mm_model", "inkling_text"), _CANNOT_BE_ASKED),
    "hunyuan_v1_moe": "does not choose by its logits",
    "openai_privacy_filter": _CANNOT_BE_ASKED,
}
"""Families that are calibrated by all other signals."""

NO_NEXT_TOKEN: Mapping[str, str] = {"openai_privacy_filter": "tells 33 classes of text and no next token"}

NOT_REFITTED: Mapping[str, str] = {**NOT_CALIBRATED, **NO_NEXT_TOKEN}
"""Families whose kept experts are not refitted."""
