"""The first screen of a report answers "should I ship it?": what was lost and saved, and what neither can tell."""

import html
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import moeits
from moeits.command_line import app as cli
from moeits.errors import EvaluationError
from moeits.report_page.artefacts import read_run
from moeits.report_page.sections import sections_of
from tests.runs import evaluated, swept, write


@pytest.fixture
def controlled(toy: Path, tmp_path: Path) -> Path:
    return evaluated(swept(toy, tmp_path / "controlled"), seeds=3)


@pytest.fixture
def bare(toy: Path, tmp_path: Path) -> Path:
    """Evaluated, and nothing random beside it."""
    return evaluated(swept(toy, tmp_path / "bare"))


def page(*runs: Path) -> str:
    output = runs[0].parent / "report.html"
    moeits.report(list(runs), output=output)
    return output.read_text(encoding="utf-8")


def above_the_contents(text: str) -> str:
    """What a person sees first, without markup."""
    return words(text.split("<nav")[0].split("</h1>")[1])


def block_of(run: Path) -> dict[str, Any]:
    """The first screen's verdict, sentences, cards and doubts; no picture is drawn."""
    (found,) = (section for section in sections_of(read_run(run), "run-1") if section["slug"] == "ship")
    return found["blocks"][0]


def first_screen(run: Path) -> str:
    """All its words but those of the cards."""
    block = block_of(run)
    return " ".join([block["heading"], *block["sentences"], *block["warnings"]])


def words(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def cards(run: Path) -> dict[str, list[str]]:
    """Name -> value and small print of each card."""
    return {card["name"]: [card["value"], *filter(None, card["notes"])] for card in block_of(run)["cards"]}


def heading(run: Path) -> str:
    return block_of(run)["heading"]


def nearest_half(run: Path) -> Path:
    points = json.loads((run / "sweep.json").read_text())["points"]
    return run / min(points, key=lambda point: abs(point["summary"]["reduction"] - 0.5))["folder"]


def change(path: Path, **changes: Any) -> None:
    write(path, {**json.loads(path.read_text()), **changes})


def lose(path: Path, nats: float) -> None:
    """Make a model of a run worse by so many nats per token, on every document."""
    found = json.loads(path.read_text())
    found["perplexity"]["nats_per_token"] += nats
    found["samples"]["perplexity"]["nats"] = [each + 100 * nats for each in found["samples"]["perplexity"]["nats"]]
    write(path, found)


def without_tasks(run: Path) -> None:
    for path in run.rglob("*healed.json"):
        change(path, tasks={})


def test_it_says_what_was_lost_beside_unpruned_and_random_and_what_was_saved(controlled: Path) -> None:
    without_tasks(controlled)
    folder = nearest_half(controlled)
    lost = moeits.compare(controlled / "unpruned" / "unhealed.json", folder / "healed.json").perplexity[
        "nats_per_token"
    ]
    chance = moeits.compare(folder / "random-0" / "healed.json", folder / "healed.json").perplexity["nats_per_token"]
    screen, shown = first_screen(controlled), cards(controlled)
    seen = above_the_contents(page(controlled))
    assert seen.startswith("Should I ship it? It measurably lost quality; a random choice loses more.")
    assert all(each in seen for each in block_of(controlled)["sentences"] + block_of(controlled)["warnings"])
    assert all(each in seen for name, notes in shown.items() for each in (name, *notes))
    interval = f"{lost.low:.3f} to {lost.high:.3f}"
    assert f"Lost: {lost.difference:.3f} nats per token ({interval})" in screen, (
        "of the healed model, which is the last"
    )
    assert shown["Lost, nats per token"][:2] == [
        f"{lost.difference:+.3f}",
        f"95 %: {lost.low:+.3f} to {lost.high:+.3f}",
    ]
    assert f"this one is better by {abs(chance.difference):.3f}" in screen
    summary = json.loads((folder / "plan.json").read_text())["summary"]
    assert f"{summary['experts_kept']} of {summary['experts_before']} experts stay" in screen
    saved = shown["Saved, tensors"]
    assert saved[0] == f"{100 * (1 - summary['bytes_after'] / summary['bytes_before']):.0f} %"
    assert f"{summary['parameters_before']:,} to {summary['parameters_after']:,} parameters" in saved
    assert "peak memory 256.0 MiB to 256.0 MiB" in saved
    assert shown["A token costs"][:2] == ["the same", "2 experts run per token, as before"]
    assert heading(controlled) == "It measurably lost quality; a random choice loses more."
    assert "One random choice is one draw" in screen, "only one seed is healed"
    assert "Healed: if its training text is like the text that judges" in screen


def test_a_choice_worse_than_chance_is_said_first(controlled: Path) -> None:
    without_tasks(controlled)
    for path in controlled.glob("experts-*/*healed.json"):
        lose(path, 1)
    assert heading(controlled) == "A random choice of as many does better."
    assert "this one is worse by" in first_screen(controlled)


def test_one_measure_that_is_worse_than_chance_is_enough(controlled: Path) -> None:
    folder = nearest_half(controlled)
    healed = json.loads((folder / "healed.json").read_text())
    for task in healed["tasks"].values():
        for metric in ("acc", "acc_norm"):
            if metric in task:
                task[metric] = 0.1
    write(folder / "healed.json", healed)
    assert heading(controlled) == "A random choice of as many does better."


def test_without_controls_the_choice_cannot_be_told_from_chance(bare: Path) -> None:
    screen = first_screen(bare)
    assert "No random row: the choice cannot be told from chance." in screen
    assert "moeits sweep --control 3" in screen
    assert heading(bare) == "It measurably lost quality, and nothing shows what the choice adds to chance."
    assert cards(bare)["A random choice"] == ["\N{EN DASH}", "not in this run"]


def test_without_an_unpruned_row_nothing_is_called_lost(bare: Path) -> None:
    (bare / "unpruned" / "unhealed.json").unlink()
    screen = first_screen(bare)
    assert heading(bare) == "What was lost cannot be said."
    assert "No unpruned row" in screen
    assert "Lost:" not in screen
    assert cards(bare)["Lost, nats per token"][:2] == ["\N{EN DASH}", "not known"]


def test_a_run_that_was_not_evaluated_says_so_and_what_was_saved(toy: Path, tmp_path: Path) -> None:
    run = swept(toy, tmp_path / "run")
    assert heading(run) == "Nothing here says what was lost."
    assert "Not evaluated: sizes are all that is known" in first_screen(run)
    assert list(cards(run)) == ["Saved, tensors", "A token costs"]


def test_a_checkpoint_alone_has_a_first_screen(toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, output=tmp_path / "pruned", reduction=0.3)
    assert "This model, chosen by moeits" in first_screen(tmp_path / "pruned")
    shown = cards(tmp_path / "pruned")["A token costs"]
    assert shown == ["the same", "as many experts run per token"], "no floor below top_k was asked for"


def test_fewer_experts_than_run_per_token_are_no_same_cost(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evidence = moeits.score(toy)
    run.mkdir()
    evidence.save(run / "evidence.safetensors")
    (run / "few").mkdir()
    moeits.plan(evidence, experts_per_layer=1, min_experts=1).save(run / "few" / "plan.json")
    assert cards(run)["A token costs"] == ["less", "fewer than the 2 experts per token stay in 3 of 3 layers"]


def test_an_interval_that_holds_zero_is_no_proof_that_nothing_was_lost(bare: Path) -> None:
    without_tasks(bare)
    folder = nearest_half(bare)
    before = json.loads((bare / "unpruned" / "unhealed.json").read_text())
    # The same documents, half of them better and half worse.
    shutil.copyfile(bare / "unpruned" / "unhealed.json", folder / "healed.json")
    nats = [each + (-1) ** i * 5 for i, each in enumerate(before["samples"]["perplexity"]["nats"])]
    change(folder / "healed.json", samples={"perplexity": {**before["samples"]["perplexity"], "nats": nats}})
    screen = first_screen(bare)
    assert heading(bare).startswith("No loss that this text or these tasks can tell")
    assert "20 documents cannot tell that from nothing" in screen
    assert "The interval of the loss is wider than what it is about" in screen


def test_few_documents_make_a_rough_guess(bare: Path) -> None:
    without_tasks(bare)
    for path in bare.rglob("*healed.json"):
        found = json.loads(path.read_text())
        few = {name: column[:4] for name, column in found["samples"]["perplexity"].items()}
        change(path, samples={"perplexity": few}, perplexity={**found["perplexity"], "documents": 4})
    assert "There are only 4 documents, so the interval of the loss is a rough guess." in first_screen(bare)


def refit(*, accepted: bool, held_out_by: str = "source") -> dict[str, Any]:
    """A refit.json, as far as a page reads it."""
    return {
        "accepted": accepted,
        "loss": {
            **{"tokens": 4096, "unpruned": 4.0, "pruned": 5.2, "refitted": 4.4},
            "difference": {"mean": -0.84, "low": -0.91, "high": -0.76},
        },
        "data": {"held_out_by": held_out_by, "judged_by": ["shakespeare"]},
    }


def test_a_refit_is_shown_and_a_refused_one_is_a_warning(bare: Path) -> None:
    folder = nearest_half(bare)
    write(folder / "refit.json", refit(accepted=True))
    assert cards(bare)["Refit, nats per token"][0] == "\N{MINUS SIGN}0.840"
    assert "refitted, healed" in first_screen(bare)
    write(folder / "refit.json", refit(accepted=False))
    assert cards(bare)["Refit"][0] == "refused"
    assert "The refit was refused" in first_screen(bare)
    assert "refitted, healed" not in first_screen(bare)
    write(folder / "refit.json", refit(accepted=True, held_out_by="document"))
    assert "judged by other documents of the text that it was fitted on" in first_screen(bare)


def test_a_random_choice_that_was_not_refitted_is_no_rival_of_one_that_was(controlled: Path) -> None:
    folder = nearest_half(controlled)
    write(folder / "refit.json", refit(accepted=True))
    assert "No random row" in first_screen(controlled)
    write(folder / "random-0" / "refit.json", refit(accepted=True))
    assert "No random row" not in first_screen(controlled)


def forecast(run: Path, **changes: Any) -> dict[str, Any]:
    reduction = json.loads((nearest_half(run) / "plan.json").read_text())["summary"]["reduction"]
    size = {
        "reduction": reduction,
        "pruned": {"rise": 0.4, "low": 0.3, "high": 0.5},
        "refitted": {"rise": 0.1, "low": 0.05, "high": 0.15},
        "accepted": True,
    }
    known = {
        "format": 1,
        "kind": "forecast",
        "source": "toy",
        "fingerprint": json.loads((run / "sweep.json").read_text())["fingerprint"],
        "settings": {"criterion": "reconstruction"},
        "budget": 0.05,
        "safe": {"pruned": None, "refitted": 0.25},
        "sizes": [size],
        "data": {"held_out_by": "source", "judged_by": ["shakespeare"]},
    }
    return {**known, **changes}


def test_a_forecast_stands_beside_what_came(bare: Path) -> None:
    write(bare / "forecast.json", forecast(bare))
    shown = cards(bare)["Forecast, pruned"]
    assert shown[:2] == ["+0.400", "95 %: +0.300 to +0.500"]
    assert shown[2] == "choices by reconstruction", "who need not be who chose here"
    assert shown[3] == "within 0.05 nats may go: 25 % with a refit, nothing without one"
    write(nearest_half(bare) / "refit.json", refit(accepted=True))
    assert cards(bare)["Forecast, refitted"][0] == "+0.100"
    other = forecast(bare)
    other["sizes"][0]["reduction"] = 0.9
    write(bare / "forecast.json", other)
    assert cards(bare)["Forecast"][1] == "not of this size"


def test_a_forecast_of_another_checkpoint_is_refused(bare: Path) -> None:
    write(bare / "forecast.json", forecast(bare, fingerprint="other", source="another"))
    with pytest.raises(EvaluationError, match=r"forecast.json is of another checkpoint \(another\)"):
        page(bare)


def criteria(*rows: dict[str, Any]) -> dict[str, Any]:
    text = {"file": "text.jsonl", "sha256": "a" * 64, "documents": 20, "tokens": 2000, "window_tokens": 64}
    return {
        **{"format": 1, "kind": "criteria", "source": "toy", "model_type": "mixtral", "fingerprint": "0"},
        **{"settings": {}, "experts_before": 18, "experts_kept": 9, "text": {**text, "nats_per_token": 4.0}},
        "rows": list(rows),
    }


def criteria_row(criterion: str, rise: float, seed: int | None = None, **changes: Any) -> dict[str, Any]:
    cost = {"seconds": 1.0, "joules": None, "peak_bytes": None, "tokens": 0, "data": []}
    own = {"name": criterion, "criterion": criterion, "seed": seed, "state": "pruned", "nats_per_token": 4 + rise}
    return {**own, "rise": rise, "low": rise - 0.01, "high": rise + 0.01, "accepted": None, "cost": cost, **changes}


def test_a_comparison_of_criteria_names_the_best_beside_random(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seeds = [criteria_row("random", rise, seed) for seed, rise in enumerate((0.2, 0.3))]
    write(run / "criteria.json", criteria(criteria_row("reap", 0.12), criteria_row("moeits", 0.4), *seeds))
    screen = first_screen(run)
    assert "rows reap (pruned) lost least: 0.120 nats per token more than unpruned" in screen
    assert "Random choices of as many, pruned: 0.250 (+0.200 to +0.300); reap is better." in screen
    assert "9 of 18 experts stay" in screen
    assert "The text that names the best of several also flatters it a little" in screen
    assert heading(run) == "It measurably lost quality; a random choice loses more."
    write(run / "criteria.json", criteria(criteria_row("reap", 0.25), *seeds))
    assert heading(run) == "It measurably lost quality, and the best choice cannot be told from chance."
    write(run / "criteria.json", criteria(criteria_row("reap", 0.5, accepted=False), *seeds))
    assert heading(run) == "A random choice of as many does better."
    assert "The refit was refused for reap" in first_screen(run)
    assert "Chosen by reap (pruned): " in first_screen(run)
    write(run / "criteria.json", criteria(criteria_row("reap", -0.1), *seeds))
    assert heading(run) == "It came out better than the unpruned model, and better than a random choice."
    write(run / "criteria.json", criteria(criteria_row("reap", 0.12)))
    assert "No random row: no choice here can be told from chance" in first_screen(run)


def test_several_runs_have_a_line_each_on_the_first_screen(controlled: Path, bare: Path) -> None:
    text = page(controlled, bare)
    screen = above_the_contents(text)
    assert "controlled : It measurably lost quality; a random choice loses more." in screen
    assert "bare : It measurably lost quality, and nothing shows what the choice adds to chance." in screen
    assert text.count('class="ship"') == 2, "and each the whole of it in its own chapter"


def test_runs_that_cannot_be_compared_are_one_sentence(
    controlled: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in bare.rglob("*healed.json"):
        found = json.loads(path.read_text())
        text = {**found["perplexity"], "file": "other.jsonl", "sha256": "b" * 64}
        change(path, tasks={"hellaswag": found["tasks"]["boolq_local"]}, perplexity=text)
    output = tmp_path / "both.html"
    monkeypatch.setattr(sys, "argv", ["moeits", "report", str(controlled), str(bare), "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "controlled and bare cannot be compared, for they share no task and no text" in " ".join(said.split())
    assert not output.exists()
    change(
        bare / "unpruned" / "unhealed.json",
        tasks=json.loads((controlled / "unpruned" / "unhealed.json").read_text())["tasks"],
    )
    page(controlled, bare)
