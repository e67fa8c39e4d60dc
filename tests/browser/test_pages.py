"""Pages in headless Chromium: layout at two widths and themes, the keyboard, axe-core, one click.

Needs Debian's chromium and chromium-driver, and npm with its registry for axe-core.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import MAY_LACK
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from quantable.base.places import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = ("ad_quickstart", "ad_cifar10", "index")
VIEWS = {f"{width}-{theme}": (width, theme) for width in (1400, 390) for theme in ("light", "dark")}
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--no-first-run", "--disable-dev-shm-usage"),
)
OVERLAPS = Path(__file__).with_name("overlaps.js").read_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages over a store with the repository's own records."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(ROOT / "reproduce" / "evidence" / "records", folder / "records")
    words = ["reproduce/report.py", "format=html", f"store={folder}"]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Source of axe-core in the version of package.json."""
    if shutil.which("npm") is None and MAY_LACK:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    shutil.copy(Path(__file__).with_name("package.json"), folder)
    words = ["npm", "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        assert MAY_LACK, done.stderr
        pytest.skip(f"axe-core could not be installed: {done.stderr.strip()[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        assert MAY_LACK, "chromium and chromium-driver must be here"
        pytest.skip("chromium and chromium-driver are not installed")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(240)  # axe-core on a busy machine
    yield opened
    opened.quit()


def show(browser: Chrome, path: Path, width: int = 1400, theme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    browser.get(path.as_uri())


def click(browser: Chrome, element: Any) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_in_order(browser: Chrome, store: Path, axe: str, page: str, view: str) -> None:
    show(browser, store / "reports" / f"{page}.html", *VIEWS[view])
    for details in browser.find_elements(By.CSS_SELECTOR, "details")[:3]:
        browser.execute_script("arguments[0].open = true", details)
    assert browser.get_log("browser") == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0
    assert browser.execute_script(OVERLAPS) == []
    browser.execute_script(axe)
    run = "axe.run({resultTypes: ['violations']}).then(found => arguments[0](found.violations))"
    faults = browser.execute_async_script(run)
    heavy = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert not heavy, json.dumps(heavy, indent=1)[:4000]


def shown(browser: Chrome) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, ".list tbody tr")
    return [row.find_element(By.CSS_SELECTOR, "a").text for row in rows if row.is_displayed()]


def test_filters_leave_the_tables_that_fit(browser: Chrome, store: Path) -> None:
    show(browser, store / "reports" / "index.html")
    everything = shown(browser)
    Select(browser.find_element(By.ID, "method")).select_by_visible_text("AD with pruning")
    assert shown(browser) == ["ad_pruned"]
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    WebDriverWait(browser, 10).until(lambda page: shown(page) == everything)
    search = browser.find_element(By.ID, "search")
    search.send_keys("density bundled")
    assert shown(browser) == ["ad_quickstart"]
    assert f"1 of {len(everything)} tables" in browser.find_element(By.ID, "count").text
    search.send_keys(" nothing-like-this")
    assert shown(browser) == []
    assert browser.find_element(By.ID, "nothing").is_displayed()


def test_a_cells_command_is_copied_and_runs(browser: Chrome, store: Path) -> None:
    show(browser, store / "reports" / "index.html")
    click(browser, browser.find_element(By.LINK_TEXT, "ad_quickstart"))
    click(browser, browser.find_element(By.LINK_TEXT, "4 bit"))
    cell = browser.find_element(By.ID, "ad_quickstart--bits4")
    WebDriverWait(browser, 10).until(lambda _: cell.get_property("open"))
    assert "16/16" not in cell.text
    assert cell.find_element(By.CSS_SELECTOR, ".more table").is_displayed()
    button = cell.find_element(By.CSS_SELECTOR, ".copy")
    click(browser, button)
    WebDriverWait(browser, 10).until(lambda _: button.text == "Copied")

    browser.execute_script("document.body.prepend(document.createElement('textarea'))")
    field = browser.find_element(By.CSS_SELECTOR, "body > textarea")
    click(browser, field)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    python, *words = shlex.split(field.get_property("value"))
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words, f"store={store}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "85.35" in done.stdout  # the record is there, so nothing is trained


def test_points_are_reached_by_keyboard_and_tell_their_numbers(
    browser: Chrome, store: Path
) -> None:
    show(browser, store / "reports" / "ad_quickstart.html")
    first = browser.find_element(By.CSS_SELECTOR, ".points .tip[tabindex='0']")
    browser.execute_script("arguments[0].focus()", first)
    tooltip = browser.find_element(By.ID, "tooltip")
    before = tooltip.text
    assert "top-1" in before
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert tooltip.is_displayed()
    assert tooltip.text != before


def test_an_address_with_a_cell_opens_it(browser: Chrome, store: Path) -> None:
    show(browser, store / "reports" / "ad_quickstart.html")
    browser.get((store / "reports" / "ad_quickstart.html").as_uri() + "#ad_quickstart--ad")
    browser.refresh()
    assert browser.find_element(By.ID, "ad_quickstart--ad").get_property("open")


PAPERS = {"A4": (210, 297), "Letter": (215.9, 279.4)}  # mm


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("page", ["ad_pruned", "ad_cifar10", "edge_lite0", "index"])
def test_a_page_prints_whole(browser: Chrome, store: Path, page: str, paper: str) -> None:
    """On paper there is no scroll bar: nothing reaches beyond the margins."""
    short, long = PAPERS[paper]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        for side, margin, tables in (
            (short, 14, ":not(.broad) > .box"),
            (long, 12, ".broad > .box"),
        ):
            show(browser, store / "reports" / f"{page}.html", int((side - 2 * margin) / 25.4 * 96))
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            beyond = browser.execute_script(
                "return [...document.querySelectorAll(arguments[0] + ' *')].filter(one => "
                "one.getBoundingClientRect().right > innerWidth + 1).map(o => o.className)",
                tables,
            )
            assert beyond == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
