"""moeits push, against a stand-in for the hub: what is sent, and what is refused before anything is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

import moeits
from moeits.errors import CheckpointError, OutputError, SettingError
from tests.toys import make_toy

LICENSED = "---\nlicense: apache-2.0\n---\n# Toy\n"


class Hub:
    """Has the repositories that were made, and their files; says no with `refuses`."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.refuses: Exception | None = None

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
        if self.refuses:
            raise self.refuses
        if name in self.repositories and not exist_ok:
            raise status(409)
        self.repositories.setdefault(name, private)
        return SimpleNamespace(repo_id=name)

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> Any:
        assert name in self.repositories
        assert commit_message
        for each in operations:
            with each.as_file() as file:
                self.files[each.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"hub:{name}/commit/0")


def status(code: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = SimpleNamespace(status_code=code)
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_of_a_test")
    return stand_in


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    toy = make_toy(tmp_path / "toy")
    (toy / "README.md").write_text(LICENSED)
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def thin(tmp_path: Path) -> Path:
    toy = make_toy(tmp_path / "toy")
    (toy / "README.md").write_text(LICENSED)
    asked = {"edit": "low-rank", "rank_power": 0.0, "mean_rank": "4"}
    plan = moeits.plan(moeits.score(toy), experts_per_layer=4, **asked)
    moeits.prune(toy, plan=plan, output=tmp_path / "thin", factors=True)
    return tmp_path / "thin"


def test_experts_stored_as_factors_go_there_too(thin: Path, hub: Hub) -> None:
    moeits.push(thin, "org/name")
    assert {path.name for path in thin.iterdir()} <= set(hub.files)
    assert b"trust_remote_code=True" in hub.files["README.md"]


def test_the_checkpoint_goes_there_as_it_is_private_with_plan_card_and_report(
    tmp_path: Path, pruned: Path, hub: Hub
) -> None:
    (tmp_path / "page.html").write_text("<p>")
    made = moeits.push(pruned, "org/name", report=tmp_path / "page.html")
    assert hub.repositories == {"org/name": True}
    own = {path.name: path.read_bytes() for path in pruned.iterdir()}
    assert hub.files.keys() == {*own, "report.html"} == set(made.files)
    assert {name for name in own if hub.files[name] != own[name]} == {"README.md"}
    card = hub.files["README.md"].decode()
    assert 'from_pretrained("org/name"' in card
    assert '"PATH"' not in card
    assert ModelCard(card).data.license == "apache-2.0"
    assert made.nbytes == sum(map(len, hub.files.values()))
    assert made.url == "hub:org/name/commit/0"


def test_what_is_there_is_added_to_on_request_only_and_public_is_said(pruned: Path, hub: Hub) -> None:
    moeits.push(pruned, "org/name", public=True)
    assert hub.repositories == {"org/name": False}
    with pytest.raises(OutputError, match="is on the hub already"):
        moeits.push(pruned, "org/name")
    moeits.push(pruned, "org/name", overwrite=True)


@pytest.mark.parametrize(
    ("refuses", "sentence"),
    [
        (status(403), "does not let this token write to org/name"),
        (status(401), "does not let this token write to org/name"),
        (
            OfflineModeIsEnabled("Cannot reach it: offline mode is enabled."),
            "cannot be put on the hub: Cannot reach it",
        ),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(pruned: Path, hub: Hub, refuses: Exception, sentence: str) -> None:
    hub.refuses = refuses
    with pytest.raises(OutputError, match=sentence) as error:
        moeits.push(pruned, "org/name")
    assert "\n" not in str(error.value)
    assert not hub.files


def test_without_a_token_nothing_is_asked_of_the_hub(pruned: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingError, match="There is no token for the hub"):
        moeits.push(pruned, "org/name")
    assert not hub.repositories


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("# no front matter\n", "says no library_name and no license"),
        ("---\nlibrary_name: transformers\n---\n", "says no license"),
        ("---\na: [\n---\n", "is not one that the hub reads"),
        (None, "is not one that the hub reads"),
    ],
)
def test_a_card_that_the_hub_could_not_use_is_refused_before_anything_is_sent(
    pruned: Path, hub: Hub, card: str | None, sentence: str
) -> None:
    (pruned / "README.md").unlink() if card is None else (pruned / "README.md").write_text(card)
    with pytest.raises(CheckpointError, match=sentence):
        moeits.push(pruned, "org/name")
    assert not hub.repositories


def test_only_what_moeits_made_is_sent_and_only_under_a_name(tmp_path: Path, pruned: Path, hub: Hub) -> None:
    with pytest.raises(SettingError, match="is not a name that the hub can have"):
        moeits.push(pruned, "../name")
    with pytest.raises(SettingError, match="There is no report"):
        moeits.push(pruned, "org/name", report=tmp_path / "none.html")
    with pytest.raises(CheckpointError, match="is not a checkpoint that moeits made"):
        moeits.push(tmp_path / "toy", "org/name")
    (pruned / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds diary\.txt"):
        moeits.push(pruned, "org/name")
    with pytest.raises(CheckpointError, match="There is no folder"):
        moeits.push(tmp_path / "none", "org/name")
    assert not hub.repositories
