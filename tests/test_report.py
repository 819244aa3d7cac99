"""A report says what stands in the files of its runs, unpruned row first, and nothing else."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import moeits
from moeits.errors import EvaluationError, MoeitsError, SettingError
from moeits.report_page.cost_sections import payback_tokens
from moeits.report_page.published import published_rows
from tests.runs import evaluated, footprint, large_run, swept, write


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Path:
    return evaluated(swept(toy, tmp_path / "run"))


def page(*runs: Path, **arguments: object) -> str:
    output = runs[0].parent / "report.html"
    moeits.report(list(runs), output=output, **arguments)  # type: ignore[arg-type]
    return output.read_text(encoding="utf-8")


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
    assert page(run) == page(moved)
    assert str(tmp_path) not in page(run)


def test_the_unpruned_row_always_comes_first(run: Path) -> None:
    text = tables(run)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    heads = [number for number, line in enumerate(rows) if line.startswith("| model")]
    assert len(heads) == 3, "acc, acc_norm and the text"
    assert all(rows[number + 2].startswith("| unpruned |") for number in heads)


def test_a_table_holds_the_numbers_of_the_files_with_intervals(run: Path) -> None:
    points = json.loads((run / "sweep.json").read_text())["points"]
    summary = points[0]["summary"]
    accuracy = 0.6 - 0.3 * summary["reduction"]
    row = next(line for line in tables(run).splitlines() if f"{summary['experts_kept']} experts |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == [
        f"{100 * summary['reduction']:.2f}",
        f"{summary['parameters_after']:,}",
        f"{100 * accuracy:.1f} ± 4.9",
    ]
    # The mean of two independent tasks: sqrt(2 * 0.025^2) / 2, times 1.96.
    assert cells[-1] == f"{100 * (accuracy + 0.05):.1f} ± 3.5"


def test_prompts_that_were_cut_and_chance_are_said(run: Path) -> None:
    text = page(run)
    assert "3 prompts were longer than the context (900 tokens, room for 512)" in text
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
    assert f"{folders[0].name.removeprefix('experts-')} experts, healed" not in text
    assert f"{folders[1].name.removeprefix('experts-')} experts, healed" in text


def test_a_folder_with_a_plan_alone_is_a_run(toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, output=tmp_path / "pruned", reduction=0.3)
    assert "Experts kept per layer" in page(tmp_path / "pruned")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda run: shutil.rmtree(run), "There is no run .*moeits sweep"),
        (lambda run: [path.unlink() for path in run.rglob("*") if path.is_file()], "nothing to report"),
        (lambda run: (run / "ledger.json").write_text("{"), r"ledger.json is broken .*Remove it"),
        (lambda run: (run / "unpruned" / "unhealed.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_sentence(run: Path, break_it: object, sentence: str) -> None:
    break_it(run)  # type: ignore[operator]
    with pytest.raises(EvaluationError, match=sentence):
        page(run)


def test_a_report_without_a_place_or_of_an_unknown_format_is_refused(run: Path) -> None:
    with pytest.raises(SettingError, match=r"--output report\.html, or --card"):
        moeits.report([run])
    with pytest.raises(SettingError, match="it is html or md"):
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
    assert "the 100 J it took are paid back after 400 generated tokens" in tables(run)
    points = sorted(path for path in run.iterdir() if path.name.startswith("experts-"))
    write(points[0] / "footprint.json", footprint(0.6))
    write(points[1] / "footprint.json", footprint(None))
    text = tables(run)
    assert "never paid back, for a token takes 0.6 J and not fewer than 0.5 J" in text
    assert "not known when it is paid back" in text
    assert payback_tokens(1.0, 0.2, 0.2) is None


def test_a_card_gains_results_once_and_loses_the_sentence_that_there_are_none(run: Path, tmp_path: Path) -> None:
    pruned, toy = tmp_path / "pruned", tmp_path / "toy"
    moeits.simplify(toy, output=pruned, reduction=0.3)
    assert "Not measured here" in (pruned / "README.md").read_text()
    moeits.report([run], card=pruned)
    once = (pruned / "README.md").read_text()
    assert "Not measured here" not in once
    assert "| unpruned | 0 |" in once
    assert once.startswith("---\n")
    moeits.report([run], card=pruned)
    assert (pruned / "README.md").read_text() == once


def test_a_card_without_results_or_without_a_card_is_refused(toy: Path, tmp_path: Path) -> None:
    bare = swept(toy, tmp_path / "bare")
    with pytest.raises(EvaluationError, match=r"no README.md"):
        moeits.report([bare], card=tmp_path)
    (tmp_path / "README.md").write_text("# a card\n")
    with pytest.raises(MoeitsError, match="no results to add"):
        moeits.report([bare], card=tmp_path)


def test_published_rows_are_shown_on_request_with_their_caveats_and_sources(run: Path) -> None:
    assert "Published rows" not in tables(run)
    text = tables(run, published=True)
    known = published_rows()
    for caveat in known["caveats"]:
        assert caveat in text
    for table in known["tables"]:
        for row in table["rows"]:
            assert row["method"] in text
            assert set(row["source"].split(", ")) <= set(known["sources"])


def test_a_page_of_24_layers_of_60_experts_stays_under_5_megabytes(tmp_path: Path) -> None:
    run = evaluated(large_run(tmp_path / "large"))
    text = page(run)
    assert len(text.encode()) < 5 * 10**6
    assert text.count("<rect ") > 24 * 60
