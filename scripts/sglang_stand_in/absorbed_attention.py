"""Has SGLang attend to DeepSeek's keys and values as it caches them, on a CPU without its kernels.

Its plain torch attention reads keys and values from the cache, which of DeepSeek-V2 and V3 holds their latents. SGLang
would have it take the other form for the first tokens of a text, which it then computes of the wrong widths, and for
later ones the absorbed form, which is right. This asks for the latter always, by SGLang's own table of such choices.
"""

from typing import Any


def register() -> None:
    """What SGLang calls when a process of it starts (its entry point group `sglang.srt.plugins`)."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry, AttnForwardMethod

    def absorbed(_attention: Any, _batch: Any) -> Any:
        return AttnForwardMethod.MLA

    AttentionBackendRegistry.register("torch_native", absorbed)
