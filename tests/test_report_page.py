"""The page in a real browser: the dial cuts the orders as `moeits plan` does, and nothing goes wrong on the way."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moeits
from tests.runs import evaluated, large_run, swept

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # selenium leaves its driver's pipes to the collector

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,1400",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium is not here: scripts/install-chromium.sh installs it on Debian, as root")
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield opened
        opened.quit()


def open_page(browser: Any, runs: list[Path], output: Path) -> None:
    moeits.report(runs, output=output, published=True)
    browser.get(output.as_uri())


def dial(browser: Any, tau: float) -> None:
    browser.execute_script(
        "const dial = document.querySelector('input[type=range]');"
        "dial.value = arguments[0]; dial.dispatchEvent(new Event('input'));",
        tau,
    )


def text(browser: Any, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_dial_keeps_the_experts_that_the_plan_keeps(browser: Any, toy: Path, tmp_path: Path) -> None:
    run = evaluated(swept(toy, tmp_path / "run"))
    open_page(browser, [run], tmp_path / "report.html")
    evidence, counts = moeits.Evidence.load(run / "evidence.safetensors"), set()
    low, high = (
        float(browser.execute_script(f"return document.querySelector('input[type=range]').{end}"))
        for end in ("min", "max")
    )
    for tau in (low, low + 0.5, 0.0, high):
        dial(browser, tau)
        tau = float(browser.execute_script("return document.querySelector('input[type=range]').value"))
        plan = moeits.plan(evidence, tau=tau)
        assert text(browser, "[data-out=kept]") == f"{plan.summary['experts_kept']:,}"
        assert text(browser, "[data-out=parameters]") == f"{plan.summary['parameters_after']:,}"
        assert text(browser, "[data-out=reduction]") == f"{100 * plan.summary['reduction']:.2f} %"
        staying = browser.execute_script(
            "return [...document.querySelectorAll('.experts .row')].map((row) =>"
            " [...row.querySelectorAll('rect')].flatMap((cell, i) => cell.classList.contains('goes') ? [] : [i]))"
        )
        assert [tuple(experts) for experts in staying] == list(plan.kept.values())
        counts.add(plan.summary["experts_kept"])
    assert len(counts) > 1, "the dial moved nothing"
    assert not errors(browser)


def test_the_dial_answers_to_the_keyboard_and_says_so(browser: Any, toy: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, [swept(toy, tmp_path / "run")], tmp_path / "report.html")
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(Keys.HOME)
    fewest = slider.get_attribute("aria-valuetext")
    slider.send_keys(Keys.END)
    assert fewest != slider.get_attribute("aria-valuetext")
    assert slider.get_attribute("aria-valuetext").endswith("18 of 18 experts stay")


def test_a_large_page_works_on_a_phone_and_is_kept_as_a_picture(browser: Any, tmp_path: Path) -> None:
    run = evaluated(large_run(tmp_path / "large"))
    open_page(browser, [run], tmp_path / "report.html")
    assert not errors(browser)
    ARTEFACTS.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(ARTEFACTS / "report.png"))
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    score, name, plots = browser.execute_script(ON_A_PHONE)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 390, "the page scrolls sideways on a phone"
    assert score <= 390, "the first score stands where nobody sees it"
    assert 0 <= name < 40, "the name of a row is scrolled away"
    assert plots <= 390, "a plot is cut off"


# Where the first score of the accuracy table ends, where its row's name stands when the table is scrolled to its end,
# and where the widest plot ends.
ON_A_PHONE = """
const table = document.querySelector("#run-1-accuracy .scroll"), row = table.querySelector("tbody tr");
const score = row.querySelector("td").getBoundingClientRect().right;
table.scrollLeft = table.scrollWidth;
const name = row.querySelector("th").getBoundingClientRect().left;
const plots = [...document.querySelectorAll(".plot svg")].map((plot) => plot.getBoundingClientRect().right);
return [score, name, Math.max(...plots)];
"""


def test_the_dial_shows_scores_of_the_experts_that_stay_and_of_no_others(
    browser: Any, toy: Path, tmp_path: Path
) -> None:
    run = evaluated(swept(toy, tmp_path / "run", tau="0,1"), seeds=1)
    open_page(browser, [run], tmp_path / "report.html")
    shown = {}
    for tau in (0.0, 0.5, 1.0):
        dial(browser, tau)
        shown[tau] = text(browser, "[data-out=measured]")
    assert shown[1.0] == "53.3, healed 59.2", "of MoEITS, not of the random choice of as many"
    assert shown[0.5] == "\N{EN DASH}"


def test_the_page_reads_in_light_and_in_dark(browser: Any, toy: Path, tmp_path: Path) -> None:
    open_page(browser, [swept(toy, tmp_path / "run")], tmp_path / "report.html")
    grounds = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        ground, ink = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
        )
        assert _contrast(ground, ink) > 7, scheme
        grounds.add(ground)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(grounds) == 2


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of two `rgb(r, g, b)` colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_has_one_right_edge_and_words_that_can_be_read(
    browser: Any, toy: Path, tmp_path: Path, width: int
) -> None:
    open_page(browser, [evaluated(swept(toy, tmp_path / "run"), seeds=2)], tmp_path / "report.html")
    mobile = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", mobile)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        smallest = browser.execute_script(
            "return Math.min(...[...document.querySelectorAll('.plot svg text')].map(each => "
            "parseFloat(getComputedStyle(each).fontSize) * Math.hypot(each.getScreenCTM().a, each.getScreenCTM().b)))"
        )
        assert smallest >= 10, "pixels"
        tiles = browser.execute_script(
            "return [...document.querySelectorAll('.readout div')].map(each => each.getBoundingClientRect().top)"
        )
        rows = [tiles.count(top) for top in sorted(set(tiles))]
        assert len(set(rows)) == 1, "no tile stands alone"
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth + 1)"
            ".map(each => each.getAttribute('aria-label'))"
        )
        assert not any(caption.startswith("What each healing did") for caption in cut if width == 1280)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


FIRST_SCREEN = """
const bottom = (each) => each.getBoundingClientRect().bottom;
const shown = [...document.querySelectorAll(".ship .verdict, .ship p, .cards > div, .warnings li")];
const sizes = shown.map((each) => parseFloat(getComputedStyle(each).fontSize));
const told = [...document.querySelectorAll(".cards dd, .warnings li")];
const wide = told.filter((each) => each.scrollWidth > each.clientWidth + 1);
return [shown.length, Math.max(...shown.map(bottom)), Math.min(...sizes), wide.length];
"""


def test_the_first_screen_holds_the_verdict_its_numbers_and_its_doubts(browser: Any, toy: Path, tmp_path: Path) -> None:
    open_page(browser, [evaluated(swept(toy, tmp_path / "run"), seeds=1)], tmp_path / "report.html")
    for width, height in ((1280, 800), (390, 844)):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        shown, bottom, smallest, cut = browser.execute_script(FIRST_SCREEN)
        assert shown > 8
        assert smallest >= 13, "pixels"
        assert not cut, "a number is cut off"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        if width > 500:
            assert bottom <= height, "a doubt stands below the first screen"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_screen_can_be_read_in_the_dark(browser: Any, toy: Path, tmp_path: Path) -> None:
    open_page(browser, [evaluated(swept(toy, tmp_path / "run"))], tmp_path / "report.html")
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        paper, raised, *inks = browser.execute_script(
            "const colour = (name, what) => getComputedStyle(document.querySelector(name))[what];"
            "return [colour('body', 'backgroundColor'), colour('.warnings', 'backgroundColor'),"
            "...['.verdict', '.cards dd', '.cards dd.note', '.cards dt'].map(each => colour(each, 'color')),"
            "colour('.warnings li', 'color')]"
        )
        assert all(_contrast(paper, ink) >= 4.5 for ink in inks), scheme
        assert _contrast(raised, inks[-1]) >= 7, scheme
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_is_cut_off_on_paper(browser: Any, toy: Path, tmp_path: Path) -> None:
    open_page(browser, [evaluated(swept(toy, tmp_path / "run"), seeds=2)], tmp_path / "report.html")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    # A4 less the browser's own margins.
    paper = {"width": 718, "height": 1040, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 718
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
