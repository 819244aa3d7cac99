"""docs/clients.md says what the files of scripts/clients say; and the clients that are installed here open a pair."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "clients")]

import cases  # noqa: E402
import clients_page  # noqa: E402
import models  # noqa: E402
import opened  # noqa: E402
import trained  # noqa: E402

RESULTS = clients_page.read()


def test_the_page_is_made_from_the_files_beside_it() -> None:
    assert (ROOT / "docs" / "clients.md").read_text(encoding="utf-8") == clients_page.page()


def test_every_file_is_of_all_checkpoints_and_names_its_versions() -> None:
    assert {path.stem for path in clients_page.FOLDER.glob("*.json")} == RESULTS.keys()
    for client, result in RESULTS.items():
        wanted = [(case.family, case.layout) for case in cases.cases(client)]
        assert [(row["family"], row["layout"]) for row in result["rows"]] == wanted
        assert len(result["versions"]) > 1


def test_a_client_that_computes_something_else_has_what_to_use_instead() -> None:
    for client, result in RESULTS.items():
        assert not [
            row for row in result["rows"] if not clients_page.is_same(row) and not clients_page.instead(client, row)
        ]


def test_the_comparison_would_notice_the_unpruned_model() -> None:
    compared = [row for result in RESULTS.values() for row in result["rows"] if "max_difference" in row]
    pruned = [row for row in compared if row["layout"] != "unpruned"]
    assert pruned
    assert all(row["unpruned_difference"] > 1 for row in pruned)
    assert not clients_page.is_same({"layout": "uniform", "max_difference": 0.1})
    assert not clients_page.is_same({"layout": "uniform", "max_difference": 0.0, "same_text": False})
    assert not clients_page.is_same({"layout": "uniform", "error": "ValueError: no"})
    assert not clients_page.is_same({"layout": "uniform"})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    assert [case.layout for case in models.made("olmoe", folder)] == list(cases.LAYOUTS)
    return folder


# Of peft, on transformers' way to version 6.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
@pytest.mark.parametrize("opens", [opened.by_transformers, opened.by_pipeline, trained.by_peft])
def test_a_client_that_is_here_computes_what_the_masked_model_computes(
    pruned: Path, layout: str, opens: object
) -> None:
    case = cases.Case("olmoe", layout)
    row = opens(case.folder(pruned), case, cases.Reference.read(case, pruned))  # type: ignore[operator]
    assert clients_page.is_same(cases.asdict(row) | {"error": row.error} if row.error else _said(row))


def _said(row: cases.Row) -> dict[str, object]:
    return {key: value for key, value in cases.asdict(row).items() if value is not None}
