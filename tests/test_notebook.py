"""Plans, evidence and results show themselves in a notebook, and names of strangers are text there."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import moeits
from moeits.evaluation.results import Results
from moeits.notebook import html_table


class Cells(HTMLParser):
    """The cells of a table, and the tags that were met."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.caption, self.tags, self.inside = "", set(), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - as it is called
        self.tags.add(tag)
        self.inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


def test_a_plan_and_its_evidence_show_each_layer(toy: Path) -> None:
    evidence = moeits.score(toy)
    plan = moeits.plan(evidence, experts_per_layer=4)
    shown = Cells(plan._repr_html_())
    assert shown.rows == [["layer", "experts", "kept"], *([str(layer), "6", "4"] for layer in range(3))]
    assert shown.caption == f"toy: 12 experts stay, chosen by moeits; P(down) {plan.summary['reduction']:.2%}"
    scored = Cells(evidence._repr_html_())
    mean = evidence.redundancy[1].sum() / 30
    assert scored.rows[2][:3] == ["1", "6", f"{mean:.4f}"]
    assert scored.rows[2][4] == f"{evidence.redundancy[1].max():.4f}"


def test_results_show_tasks_and_the_loss() -> None:
    loss = {"file": "a.jsonl", "sha256": "0", "window_tokens": 8, "documents": 1, "tokens": 9, "bytes": 9}
    results = Results(
        model={"source": "toy", "fingerprint": "0", "parameters": 1, "bytes": 2},
        settings={},
        versions={},
        tasks={"piqa": {"num_fewshot": 0, "acc": 0.5, "acc_norm": None}},
        perplexity={"nats_per_token": 2.5, "bits_per_byte": 1.0, **loss},
    )
    assert Cells(results._repr_html_()).rows[1:] == [["piqa", "0.5000", "", ""], ["a.jsonl", "", "", "2.5000"]]


def test_a_name_is_text_and_nothing_else(toy: Path) -> None:
    plan = replace(moeits.plan(moeits.score(toy), experts_per_layer=4), source="<script>alert(1)</script>\x1b[2J")
    shown = Cells(plan._repr_html_())
    assert "script" not in shown.tags
    assert "<script>alert(1)</script>\\x1b[2J" in shown.caption
    assert Cells(html_table("", ["<b>"], [["&lt;"]])).rows == [["<b>"], ["&lt;"]]
