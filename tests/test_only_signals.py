"""A criterion that needs no redundancy costs no comparing of pairs: the scoring measures its signals alone."""

from pathlib import Path

import pytest

import moeits
from moeits.choosing.needs import scoring_for, scoring_for_all
from moeits.errors import EvidenceError, SettingError
from moeits.signals.nmi import NMI
from moeits.signals.settings import Scoring


@pytest.fixture
def no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare_two(*_: object) -> float:
        raise AssertionError("a pair was compared")

    monkeypatch.setattr(NMI, "compare_two", compare_two)


@pytest.mark.usefixtures("no_pairs")
@pytest.mark.parametrize("criterion", ["aimer", "weight-norm", "router-norm", "router-cosine"])
def test_no_pair_is_compared_for_a_criterion_of_other_signals(criterion: str, toy: Path, tmp_path: Path) -> None:
    done = moeits.simplify(toy, output=tmp_path / "out", reduction=0.5, criterion=criterion)
    assert done.summary["experts_kept"] < done.summary["experts_before"]


@pytest.mark.usefixtures("no_pairs")
def test_evidence_of_signals_alone_plans_by_them_and_by_nothing_else(toy: Path, tmp_path: Path) -> None:
    evidence = moeits.score(toy, estimator="none", signals="aimer", output=tmp_path / "aimer.safetensors")
    assert (evidence.estimator, evidence.redundancy, evidence.floor) == ("none", {}, {})
    read = moeits.Evidence.load(tmp_path / "aimer.safetensors")
    assert moeits.plan(read, criterion="aimer", reduction=0.5).summary["experts_kept"] > 0
    with pytest.raises(EvidenceError, match="needs redundancy"):
        moeits.plan(read, reduction=0.5)


def test_the_choice_is_the_one_that_a_full_scoring_gives(toy: Path) -> None:
    alone, full = (moeits.score(toy, estimator=name, signals="aimer") for name in ("none", "nmi"))
    plans = [moeits.plan(each, criterion="aimer", reduction=0.5) for each in (alone, full)]
    assert plans[0].layers == plans[1].layers


def test_shards_of_signals_alone_are_gathered(toy: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for number, file in enumerate(files, 1):
        moeits.score(toy, estimator="none", signals="aimer", shard=f"{number}/2", output=file)
    moeits.gather(files, output=tmp_path / "all.safetensors")
    moeits.score(toy, estimator="none", signals="aimer", output=tmp_path / "one.safetensors")
    assert (tmp_path / "all.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_redundancy_is_measured_where_a_criterion_an_edit_or_the_user_wants_it() -> None:
    def estimator(*asked: object, scoring: Scoring = Scoring()) -> str:  # noqa: B008 - frozen
        found = scoring_for(*asked[:1], scoring, *asked[1:])  # type: ignore[arg-type]
        assert found is not None
        return found.estimator

    assert estimator("moeits") == "nmi"
    assert estimator("aimer") == "none"
    assert estimator("aimer", ("redundancy",)) == "nmi"
    assert estimator("aimer", scoring=Scoring(estimator="correlation")) == "correlation"
    together = scoring_for_all(["aimer", "router-norm"], Scoring())
    assert together is not None
    assert (together.estimator, together.signals) == ("none", "aimer,router-norm")
    beside_moeits = scoring_for_all(["aimer", "moeits"], Scoring())
    assert beside_moeits is not None
    assert beside_moeits.estimator == "nmi"


def test_a_setting_of_the_criterion_is_taken_and_one_of_nobody_is_refused(toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, output=tmp_path / "l1", reduction=0.5, criterion="router-norm", router_norm="l1")
    for criterion in ("moeits", "random", "aimer"):
        with pytest.raises(SettingError, match="leave --router-norm out"):
            moeits.simplify(toy, output=tmp_path / "no", reduction=0.5, criterion=criterion, router_norm="l1")
    with pytest.raises(SettingError, match="measures no redundancy: give --signals"):
        moeits.score(toy, estimator="none")
    assert not (tmp_path / "no").exists()
