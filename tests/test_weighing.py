"""Several sources of tokens: each has sums of its own, and a user can weigh them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.progress import silent
from moeits.weighing import SUMS, weights_of
from tests.evaluation_toys import give_tokenizer, write_jsonl
from tests.toys import make_toy

SMALL: dict[str, Any] = {"tokens": 1024, "held_out": 256, "window": 32}
WHOLE = {"router-score": "gates", "ean-sum": "norms"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weighing")
    make_toy(folder / "toy", "qwen2_moe", dtype="float32", experts=8)
    give_tokenizer(folder / "toy")
    rng = np.random.default_rng(0)
    for name, letters in (("chat", "abcdefg"), ("code", "tuvwxyz")):
        rows = [{"text": "".join(rng.choice(list(letters), 100))} for _ in range(60)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def data(place: Path, chat: str = "", code: str = "") -> str:
    return f"{place}/chat.jsonl{chat},{place}/code.jsonl{code}"


@pytest.fixture(scope="module")
def both(place: Path) -> Evidence:
    """Calibrated on both, which count alike."""
    output = place / "signals.safetensors"
    moeits.calibrate(place / "toy", output=output, device="cpu", data=data(place, ":1", ":1"), **SMALL)
    return Evidence.load(output)


def test_a_weight_is_a_part_of_the_tokens_in_the_fit_and_in_what_is_held_out(place: Path) -> None:
    texts = Tokens(data=data(place, ":3", ":1"), **SMALL)
    windows = windows_of(Checkpoint.open(place / "toy"), texts, silent)
    names, by = windows.watched_by
    assert names == ["chat.jsonl", "code.jsonl"]
    assert np.bincount(by.ravel()).tolist() == [768, 256]
    assert windows.facts["weights"] == {"chat.jsonl": 3.0, "code.jsonl": 1.0}
    letters = [set(np.unique(windows.watched[by == i])) - {0} for i in (0, 1)]
    assert not letters[0] & letters[1], "every token is of the source that it is said to be of"
    assert len(windows.held_out) == 8


def test_sums_of_the_sources_are_what_each_alone_shows_and_add_up_to_the_whole(place: Path, both: Evidence) -> None:
    assert both.settings["watched"] == ["chat.jsonl", "code.jsonl"]
    assert both.settings["watched_tokens"] == [512, 512]
    alone = [
        moeits.calibrate(place / "toy", device="cpu", data=f"{place}/{name}.jsonl:1", **{**SMALL, "tokens": 512})
        for name in ("chat", "code")
    ]
    for layer in both.layers:
        for whole, own in WHOLE.items():
            sums = [both.signals[f"sources.{i}.{own}"][layer] for i in (0, 1)]
            np.testing.assert_array_equal(both.signals[whole][layer], sums[0] + sums[1])
            assert (sums[0] != sums[1]).any(), "the sources differ"
            for each, evidence in zip(sums, alone, strict=True):
                np.testing.assert_allclose(each, evidence.signals[whole][layer], rtol=1e-5)
        counts = [both.signals[f"sources.{i}.count"][layer] for i in (0, 1)]
        np.testing.assert_array_equal(both.signals["frequency"][layer], sum(counts) / np.sum(counts))


def test_sources_that_texts_tell_have_sums_of_their_own_though_windows_mix_them(place: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = {"one": "abc", "two": "def", "three": "ghi", "four": "jkl"}
    many = {"one": 90, "two": 80, "three": 40, "four": 30}
    rows = [
        {"text": "".join(rng.choice(list(parts[name]), 37)), "source": name}
        for name in parts
        for _ in range(many[name])
    ]
    told = write_jsonl(tmp_path / "told.jsonl", rows)
    windows = windows_of(Checkpoint.open(place / "toy"), Tokens(data=str(told), **SMALL), silent)
    names, by = windows.watched_by
    assert set(names) == {"one", "two", "four"}
    assert any(len(set(row)) > 1 for row in by), "a window of two sources"
    found = [set(np.unique(windows.watched[by == i])) - {0} for i in range(len(names))]
    assert all(len(letters) == 3 for letters in found)
    assert len(set.union(*found)) == 9


def test_weighing_anew_is_a_weighted_sum_and_can_change_who_stays(both: Evidence) -> None:
    same = moeits.plan(both, criterion="reap", experts_per_layer=4)
    assert (
        moeits.plan(both, criterion="reap", experts_per_layer=4, weights="chat.jsonl:2,code.jsonl:2").kept == same.kept
    )
    chat = moeits.plan(both, criterion="reap", experts_per_layer=4, weights="chat.jsonl:1e6")
    code = moeits.plan(both, criterion="reap", experts_per_layer=4, weights="code.jsonl:1e6")
    assert chat.kept != code.kept
    assert chat.settings["weights"] == {"chat.jsonl": 1e6, "code.jsonl": 1.0}
    weighed = moeits.plan(both, criterion="reap", experts_per_layer=4, weights="chat.jsonl:3")
    for layer, kept in weighed.kept.items():
        own = {name: [both.signals[f"sources.{i}.{name}"][layer] for i in (0, 1)] for name in SUMS}
        # Half of the tokens are of each, and three quarters should be of the first: 1.5 and 0.5.
        gated, count = (1.5 * own[name][0] + 0.5 * own[name][1] for name in ("gated", "count"))
        assert set(kept) == set(np.argsort(gated / np.maximum(count, 1e-9), kind="stable")[-4:].tolist())


@pytest.mark.parametrize(
    "item", ["C:\\texts\\a.jsonl", "C:\\a.jsonl:2.5", "odd:name.jsonl:3", "odd:name.jsonl", "a b.jsonl"]
)
def test_a_path_with_a_colon_is_a_path(item: str) -> None:
    texts = Tokens(data=f"{item}, bundled")
    assert texts.sources() == (item.removesuffix(":2.5").removesuffix(":3"), "bundled")
    assert texts.weights == {"5": (2.5, 1.0), "3": (3.0, 1.0)}.get(item[-1], ())


def test_a_file_whose_name_ends_like_a_weight_is_a_file(tmp_path: Path) -> None:
    odd = write_jsonl(tmp_path / "run:3", [{"text": "a"}])
    assert Tokens(data=str(odd)).sources() == (str(odd),)
    assert Tokens(data=f"{odd}:2").weights == (2.0,)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e999"])
def test_a_weight_that_cannot_be_is_one_sentence(weight: str, both: Evidence) -> None:
    with pytest.raises(SettingError, match=r"--data bundled:\S+ is out of range: a weight is above 0"):
        Tokens(data=f"bundled:{weight}")
    with pytest.raises(SettingError, match=r"--weights chat.jsonl:\S+ is out of range: a weight is above 0"):
        moeits.plan(both, criterion="reap", experts_per_layer=4, weights=f"chat.jsonl:{weight}")


def test_the_first_windows_are_of_all_sources_by_their_weights(place: Path, tmp_path: Path) -> None:
    """Backward elimination tries who can go on the first ones."""
    folder = Checkpoint.open(place / "toy")
    names, by = windows_of(folder, Tokens(data=data(place, ":3", ":1"), **SMALL), silent).watched_by
    assert names == ["chat.jsonl", "code.jsonl"]
    assert np.bincount(by[:8].ravel()).tolist() == [6 * 32, 2 * 32]
    rows = [{"text": "abcdefg" * 20 + str(i), "source": name} for name in ("a", "b", "c") for i in range(60)]
    told = write_jsonl(tmp_path / "told.jsonl", rows)
    names, by = windows_of(folder, Tokens(data=f"self,{told}", **SMALL), silent).watched_by
    first = {names[i] for i in np.unique(by[:8])}
    assert "self" in first
    assert first - {"self"}


def test_weights_that_would_change_nothing_are_refused(place: Path, both: Evidence) -> None:
    scored = moeits.score(place / "toy")
    with pytest.raises(SettingError, match="which this criterion does not look at: choose by reap"):
        moeits.plan([scored, both], criterion="moeits", experts_per_layer=4, weights="chat.jsonl:1000")


def test_two_files_of_one_name_are_not_weighed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(place / "code.jsonl", tmp_path / "other" / "chat.jsonl")
    texts = Tokens(data=f"{place}/chat.jsonl:3,{tmp_path}/other/chat.jsonl:1", **SMALL)
    with pytest.raises(CalibrationError, match="weighs two files of one name"):
        windows_of(Checkpoint.open(place / "toy"), texts, silent)


def test_what_cannot_be_weighed_is_said(place: Path, both: Evidence) -> None:
    def refused(error: type[Exception], match: str, evidence: Evidence = both, **asked: Any) -> None:
        with pytest.raises(error, match=match):
            moeits.plan(evidence, **{"criterion": "reap", "experts_per_layer": 4, "weights": "chat.jsonl:2", **asked})

    refused(
        SettingError, "--weights chats was not watched: the evidence is of chat.jsonl, code.jsonl", weights="chats:2"
    )
    refused(SettingError, "is not a list of sources and weights", weights="chat.jsonl")
    refused(SettingError, "is not a list of sources and weights", weights="chat.jsonl:2,code.jsonl")
    refused(SettingError, "is not a list of sources and weights", weights="")
    refused(SettingError, "reconstruction tries out who can go", criterion="reconstruction")
    refused(EvidenceError, "has no sums of each source", evidence=moeits.score(place / "toy"))
    with pytest.raises(SettingError, match="has another weight before"):
        Tokens(data="bundled:2,bundled:3")


def test_a_source_with_commas_can_be_weighed() -> None:
    assert weights_of("novels, old:2,a:b:0.5") == {"novels, old": 2.0, "a:b": 0.5}
