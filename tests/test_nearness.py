"""How near a model is to its parent on a text, and whether it still ends its answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moeits
from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.generations import NEW_TOKENS, PROMPTS, loops
from tests.evaluation_toys import CHARACTERS, give_tokenizer, make_speaking_toy, write_jsonl
from tests.toys import read_config, read_tensors, write_checkpoint

ON_CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
TEXTS = ["to be or not to be", "that is the question", "a rose by any other name"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("near")
    make_speaking_toy(folder / "toy", model_type="qwen2_moe")
    moeits.simplify(folder / "toy", output=folder / "pruned", experts_per_layer=3)
    write_jsonl(folder / "text.jsonl", [{"text": text} for text in TEXTS])
    return folder


def logits(folder: Path, text: str) -> torch.Tensor:
    """Of every token of a text, from the one before its first on."""
    ids = torch.tensor([[0, *(2 + CHARACTERS.index(character) for character in text)]])
    with torch.no_grad():
        return moeits.load(folder, dtype=torch.float32).eval()(input_ids=ids[:, :-1], use_cache=False).logits[0]


def test_kl_and_equal_first_choices_are_torchs_on_the_stock_models(place: Path) -> None:
    found = moeits.evaluate(place / "pruned", perplexity=place / "text.jsonl", parent=place / "toy", **ON_CPU)
    kl, same, tokens = 0.0, 0, 0
    for text in TEXTS:
        theirs, mine = (logits(place / name, text).log_softmax(-1) for name in ("toy", "pruned"))
        kl += float(torch.nn.functional.kl_div(mine, theirs, reduction="sum", log_target=True))
        same += int((theirs.argmax(-1) == mine.argmax(-1)).sum())
        tokens += len(mine)
    row = found.perplexity
    assert row is not None
    assert row["kl_to_parent"] == pytest.approx(kl / tokens, abs=1e-6)
    assert row["same_first_choice"] == pytest.approx(same / tokens)
    assert 0 < row["same_first_choice"] < 1
    assert row["parent"] == "toy"
    assert len(found.samples["perplexity"]["kl"]) == len(TEXTS)


def test_a_model_is_its_own_parent_and_the_loss_does_not_depend_on_one(place: Path) -> None:
    alone = moeits.evaluate(place / "toy", perplexity=place / "text.jsonl", **ON_CPU).perplexity
    beside = moeits.evaluate(place / "toy", perplexity=place / "text.jsonl", parent=place / "toy", **ON_CPU).perplexity
    assert alone is not None
    assert beside is not None
    assert beside["nats_per_token"] == pytest.approx(alone["nats_per_token"], abs=1e-6)
    assert beside["kl_to_parent"] == pytest.approx(0, abs=1e-9)
    assert beside["same_first_choice"] == 1
    assert "kl_to_parent" not in alone


def test_results_with_a_parent_are_read_back_and_compared(place: Path, tmp_path: Path) -> None:
    for name in ("toy", "pruned"):
        asked = {"perplexity": place / "text.jsonl", "parent": place / "toy", "output": tmp_path / f"{name}.json"}
        made = moeits.evaluate(place / name, **asked, **ON_CPU)
        assert moeits.Results.load(tmp_path / f"{name}.json").facts() == json.loads(json.dumps(made.facts()))
    assert moeits.compare(tmp_path / "toy.json", tmp_path / "pruned.json").perplexity


def test_a_parent_of_other_tokens_and_one_without_a_text_are_refused(place: Path, tmp_path: Path) -> None:
    make_speaking_toy(tmp_path / "other", model_type="qwen2_moe")
    path = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(EvaluationError, match="--parent other has other tokens than pruned"):
        moeits.evaluate(place / "pruned", perplexity=place / "text.jsonl", parent=tmp_path / "other", **ON_CPU)
    with pytest.raises(SettingError, match="--parent compares two models on a text"):
        moeits.evaluate(place / "pruned", tasks="arc_easy", parent=place / "toy")


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("tokens", "looped"),
    [
        ([1, 2, 3] * 3, True),
        ([9, 8, 7, *[1, 2, 3] * 3], True),
        ([1, 2, 3] * 2, False),
        ([5] * 8, True),
        ([1, 5, 5, 5], False),
        (list(range(64)) * 3, True),
        (list(range(65)) * 3, False),
        ([], False),
    ],
)
def test_a_loop_is_one_passage_over_and_over_at_the_end(tokens: list[int], looped: bool) -> None:
    assert loops(tokens) == looped


def chat_toy(folder: Path, says: int) -> Path:
    """A chat model that says the same token whatever it is asked."""
    make_speaking_toy(folder.with_name("plain"), model_type="qwen2_moe", tie_word_embeddings=False)
    plain = folder.with_name("plain")
    tensors = read_tensors(plain)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 0 + 1
    # The last norm has a fixed length, so a row along the sum of squares wins over rows of zeros whatever comes in.
    for name in tensors:
        if name == "lm_head.weight":
            tensors[name] = tensors[name] * 0
        if ".embed_tokens." in name:
            tensors[name] = tensors[name] * 0 + 1
        if "layers." in name and ("o_proj" in name or "down_proj" in name):
            tensors[name] = tensors[name] * 0
    tensors["lm_head.weight"][says] = 1
    write_checkpoint(folder, {**read_config(plain), "max_position_embeddings": 1024}, tensors)
    give_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return folder


@pytest.mark.parametrize(("says", "ended", "looped"), [(0, 1.0, 0.0), (5, 0.0, 1.0)], ids=["the end", "a letter"])
def test_answers_that_end_and_answers_that_loop_are_counted(
    tmp_path: Path, says: int, ended: float, looped: float
) -> None:
    folder = chat_toy(tmp_path / "chat", says)
    found = moeits.evaluate(folder, generate=2, output=tmp_path / "results.json", **ON_CPU)
    assert found.generations == {"prompts": 2, "new_tokens": NEW_TOKENS, "ended": ended, "looped": looped}
    assert not found.tasks, "the paper's tasks are not asked as well"
    assert set(found.samples["generations"]["tokens"]) == {1 if ended else NEW_TOKENS}
    assert moeits.Results.load(tmp_path / "results.json").generations == found.generations


def test_a_model_that_does_not_chat_is_refused(place: Path) -> None:
    with pytest.raises(EvaluationError, match="no chat template"):
        moeits.evaluate(place / "toy", generate=1, **ON_CPU)
    with pytest.raises(SettingError, match="--generate 0 is out of range"):
        moeits.evaluate(place / "toy", generate=0)
    with pytest.raises(SettingError, match="there are 24 prompts"):
        moeits.evaluate(place / "toy", generate=25)
    assert len(set(PROMPTS)) == len(PROMPTS) == 24
