"""The report in a real headless browser, opened from disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outcomes as made
import pytest

from trueup.lab.report import write_comparison, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("TRUEUP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
try:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

    reason = "" if CHROMIUM else "no Chromium found: install one or set TRUEUP_CHROMIUM to its path"
except ImportError:
    reason = "playwright is not installed: pip install 'trueup[test]'"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(reason), reason=reason)]

QUIET = [  # Chromium itself stays off the network
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
]
DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)"
MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_report(root, [*made.outcomes(), made.nasty()], made.PAPERS, made.LEDGER)
    source = made.study()
    parts = {k: source[k] for k in ("arms", "metrics", "conditions", "cells")}
    write_comparison(
        root / "comparison.html", source["claims"][0] | parts | {"words": "better", "title": "Mine"}
    )
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Visit:
    """One opened page, what it asked for and what it complained of."""

    def __init__(self, browser: Browser, address: Path, **context: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        context = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | context
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.page.on("request", self._asked)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address.as_uri())
        self.page.wait_for_function(DRAWN)

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def shown(self) -> list[str]:
        """Slugs of the ledger's visible rows, in order."""
        slugs: list[str] = self.page.eval_on_selector_all(
            "#papers tbody tr[data-slug]", "rows => rows.map(row => row.dataset.slug)"
        )
        return slugs

    def sort(self, column: str, direction: str) -> list[str]:
        """Click a column's head and return the rows once sorted (the table sorts in a timer)."""
        head = self.page.locator("#papers th", has_text=column).first
        before = self.shown()
        head.click()
        sorted_now = f"(head) => head.getAttribute('aria-sort') === {direction!r}"
        self.page.wait_for_function(sorted_now, arg=head.element_handle())
        self.page.wait_for_function(
            "(before) => [...document.querySelectorAll('#papers tbody tr')]"
            ".map((row) => row.dataset.slug).join() !== before",
            arg=",".join(before),
        )
        return self.shown()


PAGES = ["index.html", "adamp.html", "stable-spam.html", "layer-norm.html", "nasty.html", "comparison.html"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_offline_without_complaint_and_within_its_size(
    browser: Browser, folder: Path, name: str
) -> None:
    with Visit(browser, folder / name) as visit:
        assert visit.complaints == []
        files = [url for url in visit.requests if not url.startswith(("data:", "blob:"))]
        assert all(url.startswith("file://") for url in files), files
        sizes = [
            Path(re.sub(r"[?#].*", "", url).removeprefix("file://")).stat().st_size for url in set(files)
        ]
        assert sum(sizes) <= MOST_BYTES


def test_every_figure_is_drawn_with_its_data(browser: Browser, folder: Path) -> None:
    with Visit(browser, folder / "adamp.html") as visit:
        plots = visit.page.locator(".plot")
        assert plots.count() >= 10
        for i in range(plots.count()):
            assert plots.nth(i).locator("svg.main-svg").count() > 0
            assert plots.nth(i).locator(".point, .js-line").count() > 0
        first = plots.first.locator(".point")
        assert first.count() == 22  # ten seeds and a mean, for the claim and for its control
        assert "against the control scaled Adam: reproduced" in (plots.first.text_content() or "")


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, folder: Path) -> None:
    for name in ("nasty.html", "index.html"):
        with Visit(browser, folder / name) as visit:
            visit.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
            assert "<script>alert('x')</script>" in visit.page.inner_text("main")
            assert visit.page.locator("main b, main text", has_text=re.compile("^bold$")).count() == 0


def test_search_finds_titles_problems_and_claims(browser: Browser, folder: Path) -> None:
    with Visit(browser, folder / "index.html") as visit:
        assert len(visit.shown()) == 50
        search = visit.page.get_by_label("Search the ledger").first
        for words, found in [
            ("4-bit training diverges", ["stable-spam"]),
            ("log-distance", ["ghost-batch-norm"]),
            ("Jimmy Lei Ba", ["layer-norm"]),
        ]:
            search.fill(words)
            assert visit.shown() == found
        search.fill("no such paper")
        assert visit.shown() == []
        assert "Nothing matches" in visit.page.inner_text("#papers")
        search.fill("")
        assert len(visit.shown()) == 50


def test_sorting_by_title_and_by_verdict(browser: Browser, folder: Path) -> None:
    titles = {paper["slug"]: paper["title"] for paper in made.PAPERS}
    with Visit(browser, folder / "index.html") as visit:
        assert visit.shown() == [paper["slug"] for paper in made.PAPERS]
        by_title = visit.sort("paper", "ascending")
        # DataTables sorts without regard to case
        assert [titles[s].lower() for s in by_title] == sorted(t.lower() for t in titles.values())
        best = visit.sort("verdict", "ascending")
        assert set(best[:2]) == {"adamp", "partial-correlation"}
        assert best[2:6] == ["ghost-batch-norm", "power-norm", "mtard", "stable-spam"]
        assert set(visit.sort("verdict", "descending")[-2:]) == {"adamp", "partial-correlation"}


def test_filters_work_alone_and_together(browser: Browser, folder: Path) -> None:
    with Visit(browser, folder / "index.html") as visit:
        page = visit.page
        page.get_by_role("button", name="contradicted at desk scale").click()
        assert visit.shown() == ["mtard"]
        page.get_by_role("button", name="reproduced").first.click()
        assert set(visit.shown()) == {"adamp", "partial-correlation"}  # and not "partly reproduced"
        page.locator("select[data-filter=area]").select_option("optim")
        assert visit.shown() == ["adamp"]
        page.get_by_role("button", name=re.compile("^all")).click()
        assert set(visit.shown()) == {"adamp", "stable-spam"}
        page.locator("select[data-filter=area]").select_option("text")
        assert len(visit.shown()) == 7  # and not those of the area "context"
        page.locator("select[data-filter=area]").select_option("")
        page.locator("select[data-filter=state]").select_option("planned")
        assert len(visit.shown()) == 42
        assert "42 shown of 50" in page.inner_text("main")


def test_light_and_dark_follow_the_system_and_the_button_is_remembered(
    browser: Browser, folder: Path
) -> None:
    def look(page: Page) -> tuple[str, str]:
        background: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink: str = page.evaluate("document.querySelector('.plot .xtitle, .plot .g-xtitle text').style.fill")
        return background, ink

    with Visit(browser, folder / "adamp.html") as visit:
        light = look(visit.page)
    with Visit(browser, folder / "adamp.html", color_scheme="dark") as visit:
        page = visit.page
        dark = look(page)
        assert light[0] != dark[0]
        assert light[1] != dark[1]  # the figures' ink as well
        page.get_by_role("button", name="Switch between light and dark").click()
        page.wait_for_function(f"document.querySelector('.plot .xtitle').style.fill === {light[1]!r}")
        assert look(page) == light
        page.wait_for_timeout(500)  # the browser stores the choice a moment after it was made
        page.reload()
        page.wait_for_function(DRAWN)
        assert look(page) == light


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_never_scrolls_sideways(browser: Browser, folder: Path, name: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with Visit(browser, folder / name, **phone) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        width, inner = visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert (width, inner) == (390, 390)
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "stable-spam.html"])
def test_text_has_contrast(browser: Browser, folder: Path, name: str, scheme: str) -> None:
    """Every visible text reaches WCAG's 4.5 to 1 against the page."""
    with Visit(browser, folder / name, color_scheme=scheme) as visit:
        low = visit.page.evaluate(CONTRAST)
        assert low == []


CONTRAST = """() => {
  const parts = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (v) => v <= .03928 * 255 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = (c) => {
    const [r, g, b] = parts(c).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const found = new Set();
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    if (element.closest("svg") || !element.offsetParent) continue;
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const color = getComputedStyle(element).color, ink = light(color);
    const ratio = (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05);
    if (ratio < 4.5) found.add(`${element.className} ${color} ${ratio.toFixed(2)}`);
  }
  return [...found];
}"""


def test_the_keyboard_reaches_content_and_controls(browser: Browser, folder: Path) -> None:
    with Visit(browser, folder / "index.html") as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(4):
            page.keyboard.press("Tab")
        assert (
            page.evaluate("document.activeElement.getAttribute('aria-label')")
            == "Switch between light and dark"
        )
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, a, select, input')].filter((e) => !("
            "e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))"
            ".map((e) => e.outerHTML)"
        )
        assert unnamed == []


def test_print_shows_light_figures_and_open_details(browser: Browser, folder: Path) -> None:
    with Visit(browser, folder / "stable-spam.html", color_scheme="dark") as visit:
        page = visit.page
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
        assert page.evaluate("document.documentElement.dataset.theme") is None
