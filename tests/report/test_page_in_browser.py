"""The index page and a run's report as a reader meets them, in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from thrifty.core.run import Run
from thrifty.report.index import write_index
from thrifty.report.run import write_report

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
ALL = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium and ChromeDriver are not both installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium) -> Iterator[object]:
    """The browser at desktop width; whatever page it showed must not have logged an error."""
    _resize(chromium, 1280)
    yield chromium
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.fixture
def site(tmp_path: Path, catalogue) -> str:
    return write_index(tmp_path / "site", catalogue=catalogue).as_uri()


def _resize(browser, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def _shown(browser) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('.card')].filter(c => c.checkVisibility()).map(c => c.id)"
    )


def _search(browser, text: str) -> None:
    box = browser.find_element("id", "search")
    box.clear()
    box.send_keys(text)


def _tick(browser, name: str, value: str) -> None:
    browser.find_element("css selector", f'input[name="{name}"][value="{value}"]').click()


def _overflow(browser) -> int:
    return browser.execute_script("return document.documentElement.scrollWidth - innerWidth")


def test_search_narrows_the_list_and_says_so(browser, site: str) -> None:
    browser.get(site)
    assert _shown(browser) == ALL
    _search(browser, "GAMMA")
    assert _shown(browser) == ["gamma"]
    assert browser.find_element("id", "shown").text == "1 of 6 papers"
    headings = browser.find_elements("css selector", ".room > h2")
    assert [heading.text.split("\n")[0].split()[0] for heading in headings if heading.is_displayed()] == ["shrink"]


def test_search_ignores_accents_and_takes_every_word(browser, site: str) -> None:
    browser.get(site)
    _search(browser, "poincare")
    assert _shown(browser) == ALL
    _search(browser, "poincaré delta")
    assert _shown(browser) == ["delta"]
    _search(browser, "nothing like it")
    assert _shown(browser) == []
    assert browser.find_element("id", "nothing").is_displayed()


def test_rooms_and_statuses_filter_together(browser, site: str) -> None:
    browser.get(site)
    _tick(browser, "room", "forget")
    assert _shown(browser) == ["alpha", "beta"]
    _tick(browser, "room", "tune")
    assert _shown(browser) == ["alpha", "beta", "epsilon", "zeta"]
    _tick(browser, "status", "planned")
    _tick(browser, "status", "holds")
    assert _shown(browser) == ["alpha", "zeta"]
    browser.find_element("id", "clear").click()
    assert _shown(browser) == ALL


def test_what_one_has_includes_what_it_implies(browser, site: str) -> None:
    browser.get(site)
    _tick(browser, "have", "text")
    assert _shown(browser) == ["zeta"]
    _tick(browser, "have", "language-model")
    assert _shown(browser) == ["gamma", "delta", "epsilon", "zeta"]
    _tick(browser, "have", "language-model")
    _tick(browser, "have", "model")
    assert _shown(browser) == ["gamma", "epsilon", "zeta"]


def test_a_card_opens_and_shows_its_claim_and_plot(browser, site: str) -> None:
    browser.get(site)
    card = browser.find_element("id", "alpha")
    assert not card.find_element("css selector", ".equation").is_displayed()
    card.find_element("css selector", "summary").click()
    assert card.find_element("css selector", ".equation").is_displayed()
    assert "thrifty reproduce alpha" in card.text
    plot = card.find_element("css selector", ".plot")
    browser.execute_async_script("const [p, done] = arguments; p.loading = 'eager'; p.decode().then(done)", plot)
    assert browser.execute_script("return arguments[0].naturalWidth", plot) > 300


def test_a_link_opens_its_card_even_behind_a_filter(browser, site: str) -> None:
    browser.get(f"{site}#zeta")
    assert browser.find_element("id", "zeta").get_property("open")
    _search(browser, "alpha")
    browser.execute_script("location.hash = 'beta'")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    assert browser.find_element("id", "beta").get_property("open")
    assert "beta" in _shown(browser)


def test_a_link_to_nothing_is_harmless(browser, site: str) -> None:
    browser.get(f"{site}#%E0%A4%A")
    assert _shown(browser) == ALL


def test_slash_goes_to_the_search(browser, site: str) -> None:
    browser.get(site)
    browser.find_element("css selector", "body").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    assert browser.find_element("id", "search").get_property("value") == ""


def test_a_phone_scrolls_in_one_direction_only(browser, site: str) -> None:
    _resize(browser, 390)
    browser.get(site)
    assert not browser.find_element("css selector", "fieldset").is_displayed()
    assert _overflow(browser) <= 0
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.find_element("css selector", "fieldset").is_displayed()
    assert _overflow(browser) <= 0


@pytest.mark.parametrize("width", [390, 1280])
def test_a_runs_report_fits_the_screen(browser, tmp_path: Path, width: int) -> None:
    with Run(tmp_path / "run", device="cpu", config={"command": "run", "paper": "ssd", "a" * 80: "b" * 200}) as run:
        for step in range(30):
            run.log(step, loss=1.0 / (step + 1))
        run.finish({"table": [{f"column {number}": "value " * 3 for number in range(9)}]})
    _resize(browser, width)
    browser.get(write_report(run.directory).as_uri())
    assert _overflow(browser) <= 0
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 1
    assert widths[0] > 300
