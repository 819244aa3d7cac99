"""Perplexity with a sliding window: nats per token and bits per byte, against programs written by someone else."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeits import evaluate
from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.perplexity import perplexity_of, read_text, windows
from moeits.progress import silent
from moeits.runtime import load
from tests.evaluation_toys import make_speaking_toy, write_jsonl

SHORT, LONG = "What is it?", "To be, or not to be, that is the question: " * 7
UMLAUT = "a \u00e4 a"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_toy(tmp_path_factory.mktemp("perplexity") / "toy")


@pytest.fixture(scope="module")
def speaking(toy: Path):
    from transformers import AutoTokenizer

    return load(toy).eval(), AutoTokenizer.from_pretrained(toy)


def measured(speaking, path: Path, window: int = 64) -> tuple[dict, dict]:
    found = perplexity_of(*speaking, read_text(path), window=window, progress=silent)
    return found["row"], found["samples"]


@given(st.integers(1, 400), st.integers(2, 70))
def test_every_token_is_scored_once_with_at_least_half_a_window_before_it(tokens: int, window: int):
    made = list(windows(0, tokens, window=window))
    assert [i for w in made for i in range(w.scored, w.end)] == list(range(1, tokens))
    assert all(w.end - w.begin <= window + 1 for w in made)
    assert all(later.scored - later.begin >= (window + 1) // 2 for _, later in pairwise(made))


@given(st.integers(2, 400), st.integers(2, 70))
def test_the_windows_are_those_of_the_harness(tokens: int, window: int):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    theirs = get_rolling_token_windows(
        list(range(1, tokens)), prefix_token=0, max_seq_len=window, context_len=window - window // 2 + 1
    )
    seen = [(context + targets)[-(window + 1) :] for context, targets in map(make_disjoint_window, theirs)]
    assert seen == [list(range(w.begin, w.end)) for w in windows(0, tokens, window=window)]


def test_the_loss_of_a_short_text_is_that_of_the_stock_model(speaking, tmp_path):
    import torch

    model, tokenizer = speaking
    row, _ = measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": SHORT}]))
    ids = torch.tensor([[0, *tokenizer.encode(SHORT, add_special_tokens=False)]])
    with torch.no_grad():
        stock = float(model(input_ids=ids, labels=ids).loss)
    assert row["tokens"] == len(SHORT)
    assert row["nats_per_token"] == pytest.approx(stock, rel=1e-5)  # float32 logits, another order of summing


def test_the_loss_of_a_long_text_is_that_of_the_harness(speaking, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model, tokenizer = speaking
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=16)
    ids = tokenizer.encode(LONG, add_special_tokens=False)
    theirs = get_rolling_token_windows(ids, prefix_token=0, max_seq_len=16, context_len=9)
    requests = [(None, *make_disjoint_window(window)) for window in theirs]
    stock = -sum(value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True))
    row, units = measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": LONG}]), window=16)
    assert row["tokens"] == len(LONG)
    assert sum(units["nats"]) == pytest.approx(stock, rel=1e-5)
    wide, _ = measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": LONG}]), window=64)
    assert wide["nats_per_token"] != pytest.approx(row["nats_per_token"], rel=1e-5), "the window makes no difference"


def test_bits_per_byte_count_the_bytes_of_the_text(speaking, tmp_path):
    row, _ = measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": UMLAUT}]))
    assert (row["tokens"], row["bytes"]) == (5, 6)
    assert row["bits_per_byte"] == pytest.approx(row["nats_per_token"] * 5 / math.log(2) / 6)


def test_documents_do_not_see_each_other(speaking, tmp_path):
    apart = [measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": t}]))[0] for t in (SHORT, LONG)]
    row, units = measured(speaking, write_jsonl(tmp_path / "t.jsonl", [{"text": SHORT}, {"text": LONG}]))
    nats = [each["nats_per_token"] * each["tokens"] for each in apart]
    assert row["unit"] == "document"
    assert units["tokens"] == [len(SHORT), len(LONG)]
    assert units["nats"] == pytest.approx(nats, rel=1e-5)


def test_a_text_file_is_one_document_with_its_windows_as_units(speaking, tmp_path):
    (tmp_path / "t.txt").write_text(LONG)
    row, units = measured(speaking, tmp_path / "t.txt")
    assert (row["documents"], row["unit"]) == (1, "window")
    assert len(units["nats"]) == 1 + math.ceil((len(LONG) - 64) / 32)


def test_a_model_is_asked_for_its_perplexity_alone(toy, tmp_path):
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": SHORT}, {"text": LONG}])
    found = evaluate(toy, perplexity=text, output=tmp_path / "r.json")
    assert not found.tasks
    assert (found.perplexity["file"], found.perplexity["window_tokens"]) == ("t.jsonl", 64)


def test_a_limit_is_one_of_documents_too(toy, tmp_path):
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": SHORT}, {"text": LONG}])
    alone = write_jsonl(tmp_path / "alone.jsonl", [{"text": SHORT}])
    limited = evaluate(toy, perplexity=text, limit=1).perplexity
    assert limited["documents"] == 1
    assert limited["nats_per_token"] == evaluate(toy, perplexity=alone).perplexity["nats_per_token"]


def test_a_limit_takes_documents_from_all_of_a_file_that_is_sorted_by_source(tmp_path):
    rows = [{"text": f"{source} {i}", "source": source} for source in ("plays", "news", "code") for i in range(4)]
    text = write_jsonl(tmp_path / "t.jsonl", rows)
    assert read_text(text, 3).sources == ("plays", "news", "code")
    assert [read_text(text, n).documents for n in (12, 99)] == [tuple(row["text"] for row in rows)] * 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.jsonl", '{"words": "a"}\n', "a line without a field 'text'"),
        ("t.jsonl", "{\n", "cannot be read as text: line 1 is not JSON"),
        ("t.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2: the field 'text' holds null, not a text"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', "a line without a field 'text', .*: line 2"),
        ("t.txt", " \n", "holds no text"),
        ("t.txt", None, "There is no text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=sentence):
        read_text(tmp_path / name)


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_a_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(EvaluationError, match=rf"{name}, line 2 is not UTF-8 \(.* 0xe9\)\. Convert the file\."):
        read_text(tmp_path / name)


def test_a_window_of_one_token_is_refused(toy, tmp_path):
    with pytest.raises(SettingError, match="--window 1 is out of range"):
        evaluate(toy, perplexity=tmp_path / "t.txt", window=1)
