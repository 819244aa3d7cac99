"""What docs/forecast.md says of predicted and measured rises is what the files in docs/validity say."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import forecast_table  # noqa: E402

PAGE = (ROOT / "docs" / "forecast.md").read_text(encoding="utf-8")


def test_the_table_of_predicted_and_measured_rises_is_made_from_the_files() -> None:
    assert forecast_table.table() in PAGE


def test_how_often_a_measured_rise_lies_in_the_predicted_interval_is_counted_there() -> None:
    said = " ".join(PAGE.replace("**", "").split())
    assert forecast_table.verdict() in said
    assert forecast_table.answers() in said
    marked = sum(line.count(" * |") for line in forecast_table.table().splitlines())
    found = list(forecast_table.comparisons())
    assert len(found) == 6 * len(forecast_table.MODELS)
    outside = [each for each in found for judge, _ in enumerate(forecast_table.JUDGES) if not each.lies_in(judge)]
    assert marked == len(outside) > 0


def test_both_forecasts_of_a_model_are_of_one_fit_and_small() -> None:
    for model in forecast_table.MODELS:
        files = [forecast_table.FOLDER / f"forecast-{model}{judge}.json" for judge in forecast_table.JUDGES]
        assert all(file.stat().st_size < 60_000 for file in files)
        bundled, alike = (forecast_table.forecast_of(file) for file in files)
        assert [size["layers"] for size in bundled["sizes"]] == [size["layers"] for size in alike["sizes"]]
        assert (bundled["data"]["judge"], bundled["data"]["tokens"]) == ("bundled", alike["data"]["tokens"])
