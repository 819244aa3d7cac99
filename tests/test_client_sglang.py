"""What the client `sglang` makes of an engine's answers; the engine itself runs in an environment of its own."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts" / folder) for folder in ("clients", "sglang_stand_in")]

import cases  # noqa: E402
import sgl_kernel  # noqa: E402
import sglang_engine  # noqa: E402
import shared_expert_gate  # noqa: E402

CASE = cases.Case("mixtral", "uniform")


@pytest.fixture
def reference() -> cases.Reference:
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    tokens = np.zeros((2, 3), dtype=np.int64)
    return cases.Reference(tokens, logits, np.arange(4), logits + 1, np.arange(4), np.zeros(3))


def of_engine(logits: np.ndarray) -> dict[str, Any]:
    """As SGLang answers: nothing of the first token, and of each the most likely ones first."""
    rows = [
        [(float(each[token]), int(token), None) for token in np.argsort(-each)]
        for each in logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ]
    meta = {"input_top_logprobs": [None, *rows[:-1]], "output_top_logprobs": [rows[-1], None]}
    return {"output_ids": [0, 1, 2, 3], "meta_info": meta}


def answers(monkeypatch: pytest.MonkeyPatch, told: Any, log: str = "") -> None:
    def run(command: list[str], **_settings: Any) -> SimpleNamespace:
        if told is not None:
            Path(command[-1]).write_text(sglang_engine.json.dumps(told))
        return SimpleNamespace(stdout="", stderr=log)

    monkeypatch.setattr(sglang_engine.subprocess, "run", run)


def test_every_token_of_every_text_is_compared_as_log_probability(
    reference: cases.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, [of_engine(each) for each in reference.logits + 3])
    row = sglang_engine.by_sglang(Path("of"), CASE, reference)
    assert row.max_difference is not None
    assert row.max_difference < 1e-6
    assert row.same_text
    # A constant for all tokens changes no log-probability.
    assert row.unpruned_difference is not None
    assert row.unpruned_difference < 1e-6


@pytest.mark.parametrize("place", range(3))
def test_another_number_in_any_place_is_seen(
    reference: cases.Reference, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    changed = reference.logits.copy()
    changed[1, place, 4] += 2
    answers(monkeypatch, [of_engine(each) for each in changed])
    row = sglang_engine.by_sglang(Path("of"), CASE, reference)
    assert row.max_difference is not None
    assert row.max_difference > 0.1


def test_a_token_that_is_left_out_is_no_agreement(reference: cases.Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [of_engine(each) for each in reference.logits]
    told[0]["meta_info"]["input_top_logprobs"][1].pop()
    answers(monkeypatch, told)
    assert np.isnan(sglang_engine.by_sglang(Path("of"), CASE, reference).max_difference)


def test_an_engine_that_stops_says_its_own_last_error(
    reference: cases.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, None, "  File x\nKeyError: 'a'\n[12:00] failed\n  torch.Shape.MisError: no rank\nkilled\n")
    with pytest.raises(RuntimeError, match=r"^torch.Shape.MisError: no rank$"):
        sglang_engine.by_sglang(Path("of"), CASE, reference)


def test_a_kernel_that_is_called_says_that_it_is_not_there() -> None:
    with pytest.raises(NotImplementedError, match=r"sgl_kernel.silu_and_mul is not built here"):
        sgl_kernel.silu_and_mul(1, out=2)


def test_the_gate_in_plain_torch_is_that_of_a_shared_expert() -> None:
    hidden, weight, shared = torch.randn(3, 4), torch.randn(4), torch.randn(3, 4)
    routed = torch.ones(3, 4)
    shared_expert_gate.gated(hidden, weight, shared, routed)
    assert torch.allclose(routed, 1 + torch.sigmoid((hidden * weight).sum(-1, keepdim=True)) * shared)
