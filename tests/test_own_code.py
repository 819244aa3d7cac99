"""Families that transformers has no class for: their checkpoints bring code, which is carried along and never run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import moeits
from moeits.checkpoint import hub
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import MoeitsError, SettingError
from moeits.experts.families import ARCHITECTURES, FAMILIES
from tests.evaluation_toys import give_tokenizer
from tests.healing_toys import texts, write_rows
from tests.masked import TOLERANCE, logits, routers_masked
from tests.toys import fuse, make_toy, num_experts, read_config

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
KEPT = {1: (0, 2, 3, 5), 2: (1, 2, 4, 5)}
CODE = {
    "configuration_toy.py": """
from transformers import DeepseekV3Config

class ToyConfig(DeepseekV3Config):
    model_type = "kimi_k2"
""",
    "modeling_toy.py": """
from transformers import DeepseekV3ForCausalLM
from .configuration_toy import ToyConfig
from .parts_of_toy import NAME

class ToyForCausalLM(DeepseekV3ForCausalLM):
    config_class = ToyConfig
""",
    "parts_of_toy.py": "NAME = 'toy'\n",
    "convert_weights.py": "raise SystemExit('nobody should run this')\n",
}
AUTO_MAP = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM"}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """DeepSeek-V3's tensors under a type of its own, with code of its own, as Kimi-K2 has it."""
    folder = fuse(make_toy(tmp_path / "v3", "deepseek_v3", dtype="float32", n_group=1, topk_group=1), tmp_path / "toy")
    give_tokenizer(folder)
    config = read_config(folder) | {"model_type": "kimi_k2", "auto_map": AUTO_MAP, "architectures": ["ToyForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in CODE.items():
        (folder / name).write_text(text)
    return folder


def planned(toy: Path) -> PruningPlan:
    plan = moeits.plan(moeits.score(toy), experts_per_layer=4)
    return replace(plan, kept={layer: KEPT[1 + layer % 2] for layer in plan.kept}, order={})


def test_its_code_opens_what_was_pruned_with_the_logits_of_the_masked_original(toy: Path, tmp_path: Path) -> None:
    plan = planned(toy)
    moeits.prune(toy, plan=plan, output=tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert (config["auto_map"], config["n_routed_experts"]) == (AUTO_MAP, 4)
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    original = AutoModelForCausalLM.from_pretrained(toy, trust_remote_code=True)
    with routers_masked(original, plan.kept, num_experts(read_config(toy))):
        wanted = logits(original, TOKENS)
    assert (logits(pruned, TOKENS) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    assert (logits(original, TOKENS) - wanted).abs().max() > 100 * TOLERANCE * wanted.abs().max()


def test_the_code_that_opens_it_is_copied_with_what_it_imports_and_no_other(toy: Path, tmp_path: Path) -> None:
    moeits.prune(toy, plan=planned(toy), output=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == {*CODE} - {"convert_weights.py"}
    assert all((tmp_path / "out" / name).read_text() == CODE[name] for name in {*CODE} - {"convert_weights.py"})
    card = (tmp_path / "out/README.md").read_text()
    assert "the code that the source brings, which\nwas copied and never run" in card
    assert "The code is in `configuration_toy.py`, `modeling_toy.py`, `parts_of_toy.py`" in card
    assert "natively" not in card


def test_a_tau_is_evened_out_since_the_code_reads_one_count(toy: Path, tmp_path: Path) -> None:
    done = moeits.simplify(toy, output=tmp_path / "out", tau=0.5)
    assert len(set(done.counts.values())) == 1
    with pytest.raises(SettingError, match=r"--layout per-layer needs a class of transformers .* kimi_k2"):
        moeits.simplify(toy, output=tmp_path / "other", tau=0.5, layout="per-layer")


def heal(toy: Path, folder: Path) -> None:
    moeits.heal(toy, data=write_rows(folder / "rows.jsonl", texts(8)), output=folder / "healed", recipe="small")


def evaluate(toy: Path, folder: Path) -> None:
    (folder / "text.txt").write_text("to be or not " * 20)
    moeits.evaluate(toy, perplexity=folder / "text.txt", output=folder / "results.json")


VERBS: tuple[Callable[[Path, Path], object], ...] = (
    heal,
    evaluate,
    lambda toy, folder: moeits.calibrate(toy, output=folder / "signals"),
    lambda toy, folder: moeits.simplify(toy, output=folder / "out", experts_per_layer=4, refit=True),
    lambda toy, _: moeits.load(toy),
)


@pytest.mark.parametrize("verb", VERBS)
def test_what_would_run_it_says_that_no_code_of_a_checkpoint_is_run(toy: Path, tmp_path: Path, verb: Callable) -> None:
    with pytest.raises(MoeitsError, match="moeits runs no code of a checkpoint"):
        verb(toy, tmp_path)


def test_its_code_is_fetched_from_the_hub_too(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in CODE:
        (toy / name).unlink()

    def fetch(_model: str, _revision: str | None, patterns: list[str]) -> Path:
        asked.extend(patterns)
        for name in set(CODE) & set(patterns):
            (toy / name).write_text(CODE[name])
        return toy

    monkeypatch.setattr(hub, "_fetch", fetch)
    hub.download("moonshotai/toy")
    assert {name for name in asked if name.endswith(".py")} == {*CODE} - {"convert_weights.py"}


def described(toy: Path, folder: Path) -> Path:
    """The toy under a type that nobody knows, and a description that says of it what moeits knows of kimi_k2."""
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": "mine"}))
    (folder / "mine.toml").write_text('[mine]\nlike = "kimi_k2"\nmodels = "Mine"\n')
    return folder / "mine.toml"


def test_a_described_family_brings_its_code_along_as_one_of_the_table_does(toy: Path, tmp_path: Path) -> None:
    mine, own = described(toy, tmp_path), {*CODE} - {"convert_weights.py"}
    for again in (False, True):  # the second over the first: the code is part of a checkpoint
        moeits.simplify(toy, output=tmp_path / "out", experts_per_layer=4, architecture=mine, overwrite=again)
        assert {path.name for path in (tmp_path / "out").glob("*.py")} == own
    assert "The code is in `configuration_toy.py`, `modeling" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(SettingError, match=r"--layout per-layer needs a class of transformers .* mine: the code"):
        moeits.simplify(toy, output=tmp_path / "other", tau=0.5, layout="per-layer", architecture=mine)
    moeits.simplify(tmp_path / "out", output=tmp_path / "again", experts_per_layer=3)
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == own


def test_code_of_a_described_family_is_fetched_from_the_hub_too(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = described(toy, tmp_path)
    asked: list[str] = []
    for name in CODE:
        (toy / name).rename(tmp_path / name)

    def fetch(_model: str, _revision: str | None, patterns: list[str]) -> Path:
        asked.extend(patterns)
        for name in set(CODE) & set(patterns):
            (toy / name).write_text(CODE[name])
        return toy

    monkeypatch.setattr(hub, "_fetch", fetch)
    moeits.score("org/toy", architecture=mine)
    assert {name for name in asked if name.endswith(".py")} == {*CODE} - {"convert_weights.py"}


def test_every_family_has_a_class_in_transformers_or_says_that_its_code_is_on_the_hub() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    on_hub = {family.model_type for family in FAMILIES} - {family.model_type for family in ARCHITECTURES}
    assert on_hub == {"bailing_moe", "bailing_moe_v2", "internvl_chat", "kimi_k2", "longcat_flash", "step3p5"}
    assert {family.model_type for family in ARCHITECTURES} <= {*CONFIG_MAPPING}
