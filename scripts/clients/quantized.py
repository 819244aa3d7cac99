"""Clients that quantize a pruned checkpoint: torchao and llm-compressor."""

import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import ROOT, WRITTEN, Case, Reference, Row, compared
from opened import computed, stock

_EXPERTS = 8


def by_torchao(folder: Path, case: Case, reference: Reference) -> Row:
    """int8 weights of every Linear, of the pruned model and of the unpruned one whose router is masked.

    The reference here is the latter: what int8 itself changes is a fact beside it.
    """
    import torch

    sys.path.insert(0, str(ROOT))
    from tests.masked import continuation, logits, routers_masked

    whole, pruned = (_in_int8(each, case) for each in (folder.with_name(f"{case.family}-unpruned"), folder))
    tokens = torch.from_numpy(reference.tokens)
    kept = {} if case.layout == "unpruned" else _kept(folder)
    with routers_masked(whole, kept, _EXPERTS) if kept else nullcontext():
        expected = logits(whole, tokens).numpy()
        written = continuation(whole, tokens[:1], WRITTEN)[0, tokens.shape[1] :].numpy()
    row = computed(pruned, case, replace(reference, logits=expected, written=written))
    row.facts = {"int8_changes": compared(case, reference, expected).max_difference}
    return row


def _in_int8(folder: Path, case: Case) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = stock(folder, case)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def _kept(folder: Path) -> dict[int, list[int]]:
    """Which experts of which layers were kept."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {int(layer): ids for layer, ids in plan["kept"].items()}


def by_llm_compressor(folder: Path, case: Case, reference: Reference) -> Row:
    """W8A16, round to nearest, saved, and opened again by transformers.

    The reference here is the quantized model before it was saved: what W8A16 itself changes is a fact beside it.
    """
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    recipe = QuantizationModifier(targets="Linear", scheme="W8A16", ignore=["lm_head", "re:.*gate$", "re:.*router.*"])
    model = stock(folder, case)
    oneshot(model=model, recipe=recipe)
    with torch.no_grad():
        quantized = model(torch.from_numpy(reference.tokens)).logits.float().numpy()
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved, save_compressed=True)
        again = stock(Path(saved), case)
        row = computed(again, case, replace(reference, logits=quantized))
    row.facts = {"w8a16_changes": compared(case, reference, quantized).max_difference}
    row.same_text = None
    return row
