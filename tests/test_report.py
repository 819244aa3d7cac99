"""A report says what stands in the files of its runs, unpruned row first, and nothing else."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import moeits
from moeits.choosing.planner import Planner
from moeits.choosing.settings import Choice
from moeits.errors import EvaluationError, MoeitsError, SettingError
from moeits.report_page.cost_sections import payback_tokens
from moeits.report_page.evidence_sections import colour_range, noise_sentence
from moeits.report_page.figures import of_run, pareto, styles_of
from moeits.report_page.published import published_rows
from moeits.report_page.result_sections import _curves
from tests.runs import evaluated, footprint, large_run, results, swept, write
from tests.toys import make_toy


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Path:
    return evaluated(swept(toy, tmp_path / "run"))


def page(*runs: Path, **arguments: object) -> str:
    output = runs[0].parent / "report.html"
    moeits.report(list(runs), output=output, **arguments)  # type: ignore[arg-type]
    text = output.read_text(encoding="utf-8")
    assert not re.search(r"\d %", text), "no line ends before a percent sign"
    return text.replace("\N{NO-BREAK SPACE}", " ")


def tables(*runs: Path, **arguments: object) -> str:
    output = runs[0].parent / "report.md"
    moeits.report(list(runs), output=output, format="md", **arguments)  # type: ignore[arg-type]
    return output.read_text(encoding="utf-8")


class Html(HTMLParser):
    """Tags that are opened and closed in order, ids, and every address that the page names."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if found.get("id") else []
        self.addresses += [found[key] or "" for key in ("href", "src", "xlink:href") if key in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open[-1:] = [] if tag not in self.VOID else self.open[-1:]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tables_that_go_to_no_file_are_returned(run: Path) -> None:
    made = moeits.report(run, format="md")
    assert (made.text, made.nbytes) == (tables(run), None)
    with pytest.raises(SettingError, match=r"Say where the report goes: --output report\.html"):
        moeits.report(run)


def test_the_page_stands_alone(run: Path) -> None:
    text = page(run, published=True)
    found = Html(text)
    assert len(found.ids) == len(set(found.ids)), "ids are unique"
    for address in found.addresses:
        assert address.startswith(("#", "data:")), address
        if address.startswith("#"):
            assert address[1:] in found.ids or address == "#content"
    assert not re.search(r"url\((?!#|data:)", text)
    assert "@import" not in text


def test_the_same_run_gives_the_same_bytes_and_names_no_path(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    text = page(run)
    assert text == page(moved)
    assert str(tmp_path) not in text


def test_the_unpruned_row_always_comes_first(run: Path) -> None:
    text = tables(run)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    heads = [n for n, line in enumerate(rows) if line.startswith("| model") and "parameters" in line]
    assert len(heads) == 3, "acc, acc_norm and the text"
    assert all(rows[number + 2].startswith("| unpruned |") for number in heads)


def test_a_table_holds_the_numbers_of_the_files_with_intervals(run: Path) -> None:
    points = json.loads((run / "sweep.json").read_text())["points"]
    summary = points[0]["summary"]
    accuracy = 0.6 - 0.3 * summary["reduction"]
    row = next(line for line in tables(run).splitlines() if f"| MoEITS {summary['experts_kept']} |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # The mean of two independent tasks: sqrt(2 * 0.025^2) / 2, times 1.96.
    assert cells[1:] == [
        f"{100 * accuracy:.1f} ± 4.9",
        f"{100 * (accuracy + 0.1):.1f} ± 4.9",
        f"{100 * (accuracy + 0.05):.1f} ± 3.5",
        f"{100 * summary['reduction']:.2f}",
        f"{summary['parameters_after']:,}",
    ]


def test_prompts_that_were_cut_and_chance_are_said(run: Path) -> None:
    text = page(run)
    cut = "7 of 1,600 prompts, those of 3 items, were longer than the context (up to 900 tokens, room for 512)"
    assert cut in text
    assert "a guess scores 25.00 %" in text


def test_a_run_that_was_not_evaluated_shows_sizes_and_no_accuracy(toy: Path, tmp_path: Path) -> None:
    text = page(swept(toy, tmp_path / "run"))
    assert "Who stays" in text
    assert "Accuracy" not in text


def test_a_run_half_finished_shows_what_is_there(run: Path) -> None:
    folders = sorted(path for path in run.iterdir() if path.name.startswith("experts-"))
    for name in ("unhealed.json", "healed.json", "healing.json", "footprint.json"):
        (folders[0] / name).unlink()
    (run / "unpruned" / "unhealed.json").unlink()
    text = page(run)
    assert "The unpruned model was not evaluated in this run" in text
    assert f"MoEITS {folders[0].name.removeprefix('experts-')}, healed" not in text
    assert f"MoEITS {folders[1].name.removeprefix('experts-')}, healed" in text


def test_a_folder_with_a_plan_alone_is_a_run(toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, output=tmp_path / "pruned", reduction=0.3)
    assert "Experts kept per layer" in page(tmp_path / "pruned")
    assert "| this model | " in tables(tmp_path / "pruned")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda run: shutil.rmtree(run), "There is no run .*moeits sweep"),
        (lambda run: [path.unlink() for path in run.rglob("*") if path.is_file()], "nothing to report"),
        (
            lambda run: (run / "ledger.json").write_text("{"),
            r"ledger.json is not a ledger .*.*Remove it",
        ),
        (
            lambda run: (run / "sweep.json").write_text("{}"),
            r"sweep.json is not a sweep .*it does not say so",
        ),
        (
            lambda run: (run / "ledger.json").write_bytes(b'{"entries":"\xe9"}'),
            "ledger.json is not a ledger",
        ),
        (
            lambda run: write(run / "ledger.json", {"entries": [{}]}),
            r"missing required field `stage` - at `\$.entries\[0\]`",
        ),
        (lambda run: edit(point_of(run) / "plan.json", fingerprint="other"), r"plan.json is of another checkpoint"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_sentence(run: Path, break_it: object, sentence: str) -> None:
    break_it(run)  # type: ignore[operator]
    with pytest.raises(MoeitsError, match=sentence):
        page(run)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (
            lambda run: write(point_of(run) / "healing.json", {}),
            r"healing.json .*missing .*`recipe_name`",
        ),
        (
            lambda run: write(point_of(run) / "footprint.json", {}),
            r"footprint.json .*missing .*`parameters`",
        ),
        (lambda run: write(point_of(run) / "plan.json", {}), r"plan.json is not a plan"),
        (
            lambda run: edit(point_of(run) / "unhealed.json", tasks={"a": 1}),
            r"expected `object`, got `int` - at `\$.tasks",
        ),
        (
            lambda run: edit(point_of(run) / "unhealed.json", tasks={"a": {"acc": "x"}}),
            r"missing .*`num_fewshot` \(within tasks.a\)",
        ),
        (lambda run: edit(point_of(run) / "plan.json", kept={"0": [1, 2]}), r"do not have the same layers: \[1, 2\]"),
        (lambda run: without_evidence(run), r"plan.json has no experts_before in its summary"),
    ],
)
def test_a_model_that_cannot_be_read_is_a_row_beside_the_others(run: Path, break_it: object, sentence: str) -> None:
    others = [path.name for path in run.glob("experts-*")][1:]
    name = point_of(run).name
    break_it(run)  # type: ignore[operator]
    text = tables(run)
    (why,) = table_of(text, "What could not be read").pop(name)
    assert re.search(sentence, html.unescape(why).replace("\\", "")), why
    assert str(run) not in why
    assert all(f"| MoEITS {other.removeprefix('experts-')} |" in text for other in others)
    assert f"| MoEITS {name.removeprefix('experts-')} |" not in text
    assert "Left out</h2>" in page(run)


def test_a_random_choice_that_cannot_be_read_leaves_its_model_in(controlled: Path) -> None:
    name = point_of(controlled).name
    write(controlled / name / "random-1" / "unhealed.json", [])
    text = tables(controlled)
    assert f"| {name}/random-1 |" in text
    assert f"| random {name.removeprefix('experts-')}, 2 seeds |" in text


def test_an_unpruned_model_that_cannot_be_read_is_said_to_be_missing(run: Path) -> None:
    (run / "unpruned" / "unhealed.json").write_text("[]")
    text = tables(run)
    assert "unhealed.json is not results" in table_of(text, "What could not be read")["unpruned"][0]
    assert "nothing here says what pruning cost" in text


def test_a_run_of_broken_models_alone_is_refused(run: Path) -> None:
    for path in [*run.glob("experts-*/plan.json"), run / "unpruned" / "unhealed.json"]:
        write(path, {})
    with pytest.raises(MoeitsError, match="is not a plan"):
        page(run)


def point_of(run: Path) -> Path:
    return next(run.glob("experts-*"))


def edit(path: Path, **changes: object) -> None:
    write(path, {**json.loads(path.read_text()), **changes})


def without_evidence(run: Path) -> None:
    (run / "evidence.safetensors").unlink()
    edit(point_of(run) / "plan.json", summary={})


def test_a_plan_edited_by_hand_is_shown_by_what_it_keeps(run: Path) -> None:
    plan = json.loads((point_of(run) / "plan.json").read_text())
    kept = {layer: experts[:-1] for layer, experts in plan["kept"].items()}
    edit(point_of(run) / "plan.json", kept=kept, summary={}, order={})
    assert f"| MoEITS {sum(map(len, kept.values()))} |" in tables(run)


def test_a_report_without_a_place_or_of_an_unknown_format_is_refused(run: Path) -> None:
    with pytest.raises(SettingError, match=r"--output report\.html, or --card"):
        moeits.report([run])
    with pytest.raises(SettingError, match="is not one of html, md"):
        moeits.report([run], output=run / "x", format="pdf")
    with pytest.raises(SettingError, match="at least one run"):
        moeits.report([], output=run / "x")


def test_several_runs_stand_side_by_side(run: Path, toy: Path, tmp_path: Path) -> None:
    other = swept(toy, tmp_path / "other")
    text = page(run, other)
    Html(text)
    assert "Side by side" in text
    assert text.count("<article") == 3
    assert "other" in text


def test_the_ledger_says_when_a_model_is_paid_back_or_that_it_never_is(run: Path) -> None:
    # Scoring 60 J and pruning 40 J, at 0.25 J saved a token.
    assert "the 100 J it took are paid back after an estimated 400 generated tokens" in tables(run)
    points = sorted(path for path in run.iterdir() if path.name.startswith("experts-"))
    write(points[0] / "footprint.json", footprint(0.6))
    write(points[1] / "footprint.json", footprint(None))
    text = tables(run)
    assert "never paid back, for a token takes 0.6 J and not fewer than 0.5 J" in text
    assert "not known when it is paid back" in text
    assert payback_tokens(1.0, 0.2, 0.2) is None


def test_a_payback_is_no_more_exact_than_its_energies_and_says_where_they_were_measured(run: Path) -> None:
    ledger = json.loads((run / "ledger.json").read_text())
    for entry in ledger["entries"]:
        entry.update(joules=12345.0, mode="cpu measured (intel_rapl), memory estimated")
    write(run / "ledger.json", ledger)
    for path in run.glob("*/footprint.json"):
        found = json.loads(path.read_text())
        found["energy"]["mode"] = "cpu measured (intel_rapl), memory estimated"
        write(path, found)
    # 24,690 J at 0.25 J a token would be 98,760 tokens.
    assert "the 24,690 J it took are paid back after about 99,000 generated tokens" in tables(run)


def test_a_card_gains_results_once_and_loses_the_sentence_that_there_are_none(run: Path, tmp_path: Path) -> None:
    pruned, toy = tmp_path / "pruned", tmp_path / "toy"
    moeits.simplify(toy, output=pruned, tau=1)
    assert "## Not measured" in (pruned / "README.md").read_text()
    moeits.report([run], card=pruned)
    once = (pruned / "README.md").read_text()
    assert "## Not measured" not in once
    assert "| unpruned | 60.0 ± 4.9 |" in once
    assert once.startswith("---\n")
    rows = {line.split("|")[1].strip() for line in once.splitlines() if line.startswith("| MoEITS")}
    kept = json.loads((pruned / "plan.json").read_text())["summary"]["experts_kept"]
    assert rows == {f"MoEITS {kept}", f"MoEITS {kept}, healed"}, "the other models of the run are not this one"
    moeits.report([run], card=pruned)
    assert (pruned / "README.md").read_text() == once


def test_a_card_without_results_or_without_a_card_is_refused(toy: Path, tmp_path: Path) -> None:
    bare = swept(toy, tmp_path / "bare")
    with pytest.raises(EvaluationError, match=r"no README.md"):
        moeits.report([bare], card=tmp_path)
    moeits.simplify(toy, output=tmp_path / "pruned", tau=1)
    with pytest.raises(MoeitsError, match="no results to add"):
        moeits.report([bare], card=tmp_path / "pruned")


def test_a_card_takes_no_results_of_another_model(run: Path, toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, output=tmp_path / "more", reduction=0.3)
    moeits.simplify(make_toy(tmp_path / "other", seed=5), output=tmp_path / "pruned", tau=1)
    for name in ("more", "pruned", "other"):
        (tmp_path / "other" / "README.md").write_text("# a card\n")
        before = (tmp_path / name / "README.md").read_text()
        with pytest.raises(EvaluationError, match=r"not of .*Sweep the tau it was pruned by"):
            moeits.report([run], card=tmp_path / name)
        assert (tmp_path / name / "README.md").read_text() == before
    (toy / "README.md").write_text("# a card\n")
    moeits.report([run], card=toy)
    assert "| unpruned |" in (toy / "README.md").read_text()


def test_published_rows_are_shown_on_request_with_their_caveats_and_sources(run: Path) -> None:
    assert "Published rows" not in tables(run)
    other = shutil.copytree(run, run.parent / "other")
    assert tables(run, other, published=True).count("Published rows") == 1
    text = tables(run, published=True)
    known = published_rows()
    for caveat in known["caveats"]:
        assert caveat in text
    for table in known["tables"]:
        for row in table["rows"]:
            assert row["method"] in text
            assert row.get("really", "") in text
            assert set(row["source"].split(", ")) <= set(known["sources"])


def test_a_page_of_24_layers_of_60_experts_stays_under_5_megabytes(tmp_path: Path) -> None:
    run = evaluated(large_run(tmp_path / "large"))
    text = page(run)
    assert len(text.encode()) < 5 * 10**6
    assert text.count("<rect ") > 24 * 60


# ------------------------------------------------------------------------------------------------ claim and control


def section(text: str, title: str) -> str:
    """One section of the tables in Markdown."""
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def table_of(text: str, caption: str) -> dict[str, list[str]]:
    """The first table under a caption that begins so: name of the row -> its cells."""
    found = next(part for part in text.split("\n\n") if part.startswith(caption))
    lines = text.split(found, 1)[1].strip().split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def controlled(toy: Path, tmp_path: Path) -> Path:
    return evaluated(swept(toy, tmp_path / "controlled"), seeds=3)


def test_random_choices_of_as_many_experts_stand_under_each_model(controlled: Path) -> None:
    rows = table_of(tables(controlled), "acc, %, with 95 % intervals:")
    kept = json.loads((controlled / "sweep.json").read_text())["points"][0]["summary"]["experts_kept"]
    names = [name for name in rows if name.split(",")[0].endswith(f" {kept}")]
    seeds = [f"random {kept}, 3 seeds", f"random {kept}, seed 0, healed"]
    assert names == [f"MoEITS {kept}", f"MoEITS {kept}, healed", *seeds]
    # Made up: two points below MoEITS, two more for each further seed.
    ours = float(rows[f"MoEITS {kept}"][0].split()[0])
    assert rows[seeds[0]][0] == f"{ours - 4:.1f} ({ours - 6:.1f} to {ours - 2:.1f})"
    every = table_of(tables(controlled), "acc, %, with 95 % intervals: all")
    assert [name for name in every if name.startswith(f"random {kept},")] == [
        f"random {kept}, seed 0",
        f"random {kept}, seed 0, healed",
        f"random {kept}, seed 1",
        f"random {kept}, seed 2",
    ]


def test_every_row_has_the_paired_difference_that_compare_gives(controlled: Path) -> None:
    rows = table_of(tables(controlled), "acc minus that of the unpruned model")
    for point in controlled.glob("experts-*"):
        for file, name in (("unhealed", ""), ("healed", ", healed")):
            found = moeits.compare(controlled / "unpruned" / "unhealed.json", point / f"{file}.json")
            cells = rows[f"MoEITS {point.name.removeprefix('experts-')}{name}"]
            for task, cell in zip(("arc_easy_local", "boolq_local"), cells, strict=False):
                numbers = found.tasks[task]["acc"]
                expected = [100 * each for each in (numbers.difference, numbers.low, numbers.high)]
                assert [float(n) for n in re.findall(r"[-+][0-9.]+", cell.replace("\u2212", "-"))] == pytest.approx(
                    expected, abs=0.051
                )


def test_moeits_is_paired_with_each_random_choice_and_with_their_mean(controlled: Path) -> None:
    text = tables(controlled)
    points = [point.name.removeprefix("experts-") for point in controlled.glob("experts-*")]
    mean = table_of(text, "acc minus that of random choices of the same size")
    assert {name for name in mean if "healed" not in name} == {
        f"MoEITS {kept} minus random, 3 seeds" for kept in points
    }
    for kept in points:
        found = moeits.compare(
            controlled / f"experts-{kept}" / "random-1" / "unhealed.json",
            controlled / f"experts-{kept}" / "unhealed.json",
        ).tasks["boolq_local"]["acc"]
        assert mean[f"MoEITS {kept} minus random, 3 seeds"][1].startswith("+4.0 [")
        every = table_of(text, "acc minus that of random choices of the same size, percentage points, 95 % intervals: ")
        assert every[f"MoEITS {kept} minus random, seed 1"][1] == (
            f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        )


def test_results_without_samples_are_shown_without_differences(controlled: Path) -> None:
    for path in controlled.rglob("*healed.json"):
        edit(path, samples={})
    assert "minus that of" not in tables(controlled)


def test_random_experts_are_never_the_headline(toy: Path, tmp_path: Path) -> None:
    run, evidence = tmp_path / "hand", moeits.score(toy)
    plans = {name: moeits.plan(evidence, experts_per_layer=3, criterion=name) for name in ("moeits", "random")}
    write(run / "unpruned" / "unhealed.json", results(0.6, parameters=1, nbytes=1))
    for folder, name, accuracy in (("b", "moeits", 0.5), ("a", "random", 0.55)):
        size = {"parameters": plans[name].summary["parameters_after"], "nbytes": plans[name].summary["bytes_after"]}
        write(run / folder / "unhealed.json", results(accuracy, **size))
        plans[name].save(run / folder / "plan.json")
    evidence.save(run / "evidence.safetensors")
    summary = page(run).split("Who stays</h2>")[0]
    assert summary.index("MoEITS 9") < summary.index("random 9, seed 0"), "the control stands under what it controls"
    assert "+4" not in summary
    # The mean of the two tasks: 55 of MoEITS, 60 of the random choice, whose experts the dial never keeps.
    dial = page(run).split('"measured":')[1].split("]}")[0]
    assert '"text":"55.0"' in dial
    assert "60.0" not in dial
    (run / "b" / "unhealed.json").unlink()
    assert "MoEITS" not in re.sub(r"<[^>]*>", "", page(run).split("Who stays</h2>")[0].split("Summary</h2>")[1])


def summary_of(text: str) -> str:
    return re.sub(r"<[^>]*>", "", text.split("Who stays</h2>")[0].split("Summary</h2>")[1]).replace("&#39;", "'")


def test_how_many_layers_stand_above_the_noise_floor_is_said_once(run: Path) -> None:
    above = moeits.Evidence.load(run / "evidence.safetensors").above_noise()
    layers = len(above["redundancy"]) - len(above["layers_on_noise_floor"])
    sentence = f"{layers} of 3 layers have a pair of experts 10 % or more above the noise floor"
    assert page(run).count(sentence) == 1
    summary = summary_of(page(run))
    assert sentence not in summary, "results say more"
    assert "arc_easy_local, 15-shot, 400 of 2376 items" in summary
    assert "Intervals are about items" in summary
    for file in run.rglob("*healed.json"):
        file.unlink()
    assert sentence in summary_of(page(run))


@pytest.mark.parametrize(
    ("above", "says"), [(0, "No layer has a pair"), (2, "2 of 3 layers have a pair"), (3, "do tell its experts apart")]
)
def test_a_noise_floor_is_spoken_of_in_words(above: int, says: str) -> None:
    noise = {"redundancy": dict.fromkeys("012"), "layers_on_noise_floor": [2, 1, 0][: 3 - above]}
    assert says in noise_sentence(noise)


def test_noise_does_not_look_like_structure_in_a_map() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.036, 0.045, 1000)
    low, high = colour_range(noise, floor=0.04)
    assert (noise.max() - noise.min()) / (high - low) < 0.25, "a quarter of the colours"
    outlier = np.append(noise, 0.9)
    assert colour_range(outlier, floor=0.04) == (low, high)
    assert colour_range(noise * 10, floor=0.04)[1] == pytest.approx(0.45, rel=0.01)


def test_the_verdict_is_the_first_thing_that_is_said(controlled: Path) -> None:
    summary = summary_of(page(controlled))
    points = {
        point["folder"]: point["summary"] for point in json.loads((controlled / "sweep.json").read_text())["points"]
    }
    folder = min(points, key=lambda name: abs(points[name]["reduction"] - 0.5))
    kept, loss = points[folder]["experts_kept"], {}
    for name in ("unhealed", "healed", "random-0/unhealed", "random-1/unhealed", "random-2/unhealed"):
        results = json.loads((controlled / folder / f"{name}.json").read_text())
        loss[name] = results["perplexity"]["nats_per_token"]
    before = json.loads((controlled / "unpruned" / "unhealed.json").read_text())["perplexity"]["nats_per_token"]
    chance = sum(loss[f"random-{seed}/unhealed"] for seed in range(3)) / 3
    first = next(line for line in summary.splitlines() if line.strip())
    assert f"{kept:,} of {points[folder]['experts_before']} experts stay" in first
    pruned, healed = (f"{loss[name]:.3f} ({loss[name] - before:+.3f})" for name in ("unhealed", "healed"))
    assert f"{before:.3f} unpruned, {pruned} pruned by MoEITS, {healed} once healed" in summary
    assert f"A random choice of the same size: {chance:.3f} ({chance - before:+.3f}), mean of 3 seeds" in summary
    paired = f"{loss['unhealed'] - chance:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert f"MoEITS is better than chance: {paired} [" in summary
    assert "MoEITS is better than all 3 random choices" in summary, "of two tasks' mean there is no paired interval"


def test_a_choice_worse_than_chance_is_called_so(controlled: Path) -> None:
    for path in controlled.glob("experts-*/unhealed.json"):
        found = json.loads(path.read_text())
        found["perplexity"]["nats_per_token"] += 1
        found["samples"]["perplexity"]["nats"] = [nats + 100 for nats in found["samples"]["perplexity"]["nats"]]
        write(path, {**found, "tasks": {}})
    summary = summary_of(page(controlled))
    assert "MoEITS is worse than chance: +" in summary
    for path in controlled.rglob("random-*/unhealed.json"):
        path.unlink()
    assert "does not show what the method adds to chance" in summary_of(page(controlled))


def test_sections_are_called_by_what_was_measured(controlled: Path) -> None:
    assert "Accuracy and loss against tau</h2>" in page(controlled)
    for path in controlled.rglob("*healed.json"):
        edit(path, tasks={})
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page(controlled))
    assert {"Loss", "Loss against tau", "Loss against size"} <= set(headings)
    assert not any("Accuracy" in heading for heading in headings)
    assert "\N{PLUS-MINUS SIGN}" not in summary_of(page(controlled))
    assert "Intervals are about" not in summary_of(page(controlled)), "there are none"


def test_a_ledger_without_joules_has_no_column_for_them(controlled: Path) -> None:
    assert "Green ledger" in page(controlled)
    ledger = json.loads((controlled / "ledger.json").read_text())
    for entry in ledger["entries"]:
        entry.update(joules=None, mode=None)
    write(controlled / "ledger.json", ledger)
    assert "Green ledger" not in page(controlled)
    assert table_of(tables(controlled), "What it cost to make")["scoring"] == ["1", "3.0"]
    assert "paid back" not in page(controlled)


def test_the_control_is_in_the_ledger_and_charged_to_no_model(controlled: Path) -> None:
    text = tables(controlled)
    rows = table_of(text, "What it cost to make")
    assert rows["control: evaluation"] == ["1", "9.0", "900"]
    assert list(rows).index("together") < list(rows).index("control: evaluation")
    assert "the 100 J it took are paid back" in text
    assert "charged to no model" in text


def test_figure_2_has_the_control_the_unpruned_band_and_chance(controlled: Path, run: Path) -> None:
    text = page(controlled).split("loss against tau</h2>")[1].split("Accuracy and loss</h2>")[0]
    drawn = set(re.findall(r"<text[^>]*>([^<]*)</text>", text))
    lines = {"MoEITS", "MoEITS, healed", "random", "random, healed"}
    assert lines | {"unpruned", "chance", "acc, %", "loss, nats per token"} <= drawn
    assert "does not show what the method adds to chance" in page(run)


def test_no_two_series_look_alike_and_a_long_legend_takes_nothing_from_the_plot() -> None:
    criteria = ["unpruned", "MoEITS", "random", "reap", "ean", "reconstruction", "aimer"]
    names = [*criteria, *(f"{name}, healed" for name in criteria)]
    styles = styles_of(names)
    assert len(set(styles.values())) == len(names)
    assert len({of_run(style, 0) for style in styles.values()}) == len(names), "without the colour, too"
    assert styles_of(reversed(names)) == styles, "one look on the whole page"

    def height(number: int) -> float:
        spots = {name: (styles[name], [(2.0**20 * (1 + i), 4.0, 3.9, 4.1)]) for i, name in enumerate(names[:number])}
        svg = pareto(spots, "loss", "Down", "x")
        (plot,) = re.findall(r'<clipPath.*?<rect[^>]* height="([\d.]+)"', svg, flags=re.DOTALL)
        return float(plot)

    assert height(14) > 0.9 * height(2)


def test_a_sweep_of_perplexity_alone_has_its_curve_and_its_plot_against_size(controlled: Path) -> None:
    for path in controlled.rglob("*healed.json"):
        edit(path, tasks={})
    text = page(controlled)
    assert "Loss against tau" in text
    assert "Loss on held-out text, nats per token, against bytes. Down and to the left is better" in text


def test_rows_of_another_question_are_marked_and_in_no_plot(run: Path) -> None:
    path = point_of(run) / "unhealed.json"
    found = json.loads(path.read_text())
    for row in found["tasks"].values():
        row.update(num_fewshot=0, n_samples={"original": 2376, "effective": 20})
    found["perplexity"].update(file="other.txt", sha256="b" * 64)
    write(path, found)
    text = tables(run)
    kept = point_of(run).name.removeprefix("experts-")
    row = table_of(text, "acc, %, with 95 % intervals")[f"MoEITS {kept}"]
    assert row[0].endswith(" *")
    assert row[2] == "\N{EN DASH}", "no mean over different questions"
    assert "arc_easy_local: 0-shot, 20 of 2376 items. Another question than that of the other rows" in text
    assert "other.txt, windows of 64 tokens, SHA-256 bbbbbbbbbbbb. Another question" in text
    assert "The results are of different shots" in text, "why there is no paired difference"
    assert text.count(f"MoEITS {kept}, healed") > 0


def test_runs_side_by_side_share_only_what_all_were_asked_and_have_names_of_their_own(run: Path) -> None:
    other = shutil.copytree(run, run.parent / "elsewhere" / "run")
    for path in other.rglob("*healed.json"):
        tasks = json.loads(path.read_text())["tasks"]
        edit(path, tasks={"hellaswag": tasks["boolq_local"], "arc_easy_local": tasks["arc_easy_local"]})
    text = page(run, other).split("All runs</h3>")[1].split("</article>")[0]
    assert "acc, %, arc_easy_local" in text
    assert "not all runs were asked the same: boolq_local, hellaswag" in text
    for name in ("run (1)", "run (2)"):
        assert f'<th scope="row">{name}</th><td class="word">unpruned</td><td>60.0</td>' in text
        assert f"{name}: MoEITS, healed" in text


def test_any_name_of_a_folder_is_shown_as_it_is(run: Path) -> None:
    odd = run.parent / "odd" / "_a$b^$ & <b>x"
    shutil.copytree(run, odd)
    (odd / "sweep.json").unlink()  # then points go by the names of their folders
    point_of(odd).rename(odd / f"point {odd.name}")
    text = page(run, odd)
    Html(text)
    assert "<b>x" not in text
    shown = re.sub("[\N{WORD JOINER}]", "", html.unescape(text))
    assert f"point {odd.name}" in shown.split("Experts kept per layer</h3>")[-1]
    assert f"{odd.name}: MoEITS, healed" in shown


def test_speeds_stand_beside_the_machine_they_were_measured_on(run: Path) -> None:
    rows = table_of(tables(run), "What each model costs")
    assert rows["dtype"][0] == "float32"
    assert rows["kernel of the experts"][0] == "grouped_mm"
    assert {"device", "threads"} <= set(rows)


def test_a_long_table_shows_a_few_points_and_folds_the_rest(tmp_path: Path) -> None:
    run = evaluated(large_run(tmp_path / "large"))
    text = page(run).split("Accuracy and loss</h2>")[1].split("Accuracy and loss against size</h2>")[0]
    shown, folded = text.split("<details>", 1)
    assert shown.count("<tr") == 2 + 2 * 5, "the head, the unpruned model, and five points"
    assert folded.split("</details>")[0].count("<tr") == 2 + 2 * 19
    assert tables(run).count("| MoEITS 1424 |") == 6, "in Markdown all of them, once in each table"


def test_a_run_of_another_criterion_has_its_row_in_the_summary_and_its_order_on_the_dial(tmp_path: Path) -> None:
    evidence, run = moeits.score(make_toy(tmp_path / "toy")), tmp_path / "run"
    plan = moeits.plan(evidence, experts_per_layer=3, criterion="chance-corrected")
    size = {"parameters": plan.summary["parameters_after"], "nbytes": plan.summary["bytes_after"]}
    write(run / "unpruned" / "unhealed.json", results(0.6, parameters=1, nbytes=1))
    write(run / "a" / "unhealed.json", results(0.5, **size))
    plan.save(run / "a" / "plan.json")
    evidence.save(run / "evidence.safetensors")
    html = page(run)
    summary = html.split("Who stays</h2>")[0].split("Summary</h2>")[1]
    assert f"chance-corrected {plan.summary['experts_kept']}" in summary
    for order in Planner(evidence, Choice(criterion="chance-corrected")).orders.values():
        assert f'"removed":{list(order.removed)},'.replace(" ", "") in html


def colours_in(text: str, section: str) -> dict[str, str]:
    """What a plot's legend calls a colour that is not the page's own."""
    svg = text.split(f"{section}</h2>")[1].split("</svg>")[0]
    legend = svg.split('legend_1">')[-1]
    entries = re.findall(r"stroke: (#[0-9a-f]{6}).*?<text[^>]*>([^<]*)</text>", legend, flags=re.DOTALL)
    return {label: colour for colour, label in entries}


def test_a_point_has_one_colour_in_all_plots(run: Path) -> None:
    text = page(run)
    kept, healed = colours_in(text, "Experts kept per layer"), colours_in(text, "Healing")
    shared = kept.keys() & healed.keys()
    assert len(shared) > 1
    assert {label: kept[label] for label in shared} == {label: healed[label] for label in shared}
    assert len({kept[label] for label in shared}) == len(shared)


def test_models_that_keep_the_same_counts_share_a_line(run: Path) -> None:
    point = point_of(run)
    shutil.copytree(point, run / "by-hand")
    shutil.copytree(point, run / "a, b, c")
    svg = page(run).split("Experts kept per layer</h2>")[1].split("</svg>")[0]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    tau = next(p["tau"] for p in json.loads((run / "sweep.json").read_text())["points"] if p["folder"] == point.name)
    assert any({f"tau {tau:g}", "by-hand", "a", "b", "c"} == set(label.split(", ")) for label in labels), labels


def test_curves_of_a_healing_begin_at_the_loss_before_it_and_are_named(run: Path) -> None:
    curves = json.loads((point_of(run) / "healing.json").read_text())["curves"]
    later = {**curves, "held_out": curves["held_out"][1:]}
    assert _curves({"loss_before": 5.5, "curves": later}) == _curves({"loss_before": 5.5, "curves": curves})
    assert _curves({"loss_before": None, "curves": later})["held_out"][0] == (20, 4.8)
    svg = page(run).split("Healing</h2>")[1].split("</svg>")[0]
    assert {"training text", "held-out text"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_a_recipe_that_all_share_stands_once(run: Path) -> None:
    text = tables(run)
    assert "loss on held-out text, nats per token; recipe small, 40 steps" in text
    assert text.count("small, 40 steps") == 1
    edit(point_of(run) / "healing.json", recipe_name="paper")
    assert "| recipe |" in tables(run)
