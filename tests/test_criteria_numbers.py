"""What docs/validity/README.md says of criteria is what the run folders' files beside it say."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import criteria_page  # noqa: E402
import methods_table  # noqa: E402


def test_the_page_of_criteria_is_made_from_the_files_beside_it() -> None:
    assert (ROOT / "docs" / "validity" / "README.md").read_text(encoding="utf-8") == criteria_page.page()


def test_every_run_is_on_it_and_small() -> None:
    files = [file for kind in criteria_page.KINDS for file in criteria_page.FOLDER.glob(f"{kind}-*.json")]
    assert {file.name.split("-")[0] for file in files} == criteria_page.KINDS.keys()
    assert all(file.stat().st_size < 40_000 for file in files)


def test_what_is_known_of_the_refit_shows_a_part_of_the_same_table() -> None:
    page = (ROOT / "docs" / "validity.md").read_text(encoding="utf-8")
    assert f"\n\n{criteria_page.overview(criteria_page.SOME)}\n" in page
    assert f"\n\n{criteria_page.healed()}\n" in page


def test_methods_side_by_side_are_of_the_same_files() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert page.partition("<!-- methods -->\n")[2].partition("\n<!-- end -->")[0] == methods_table.page()
