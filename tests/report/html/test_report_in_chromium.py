"""The HTML report in headless Chromium, without a network.

Playwright drives Debian's browser: it waits by itself for what it looks for, and sees requests,
console messages, the pointer, the keyboard, widths and colour schemes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_report_page import GRADIENT_LINE, NASTY

BROWSERS = ("chromium-headless-shell", "chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE_MS = 120_000
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing = f"none of {', '.join(BROWSERS)} is installed: the pages are not looked at"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=FLAGS, chromium_sandbox=False, timeout=PATIENCE_MS
        )
        yield browser
        browser.close()


class Opened:
    """A page in the browser, and all that it complained of or asked the network for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.wrong.append(message.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: self._requested(request.url))
        page.context.set_offline(True)

    def _requested(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(url)

    def drawn(self, how: str) -> None:
        """Wait for the charts."""
        self.page.wait_for_selector(f"html[data-drawn='{how}']")


def eventually(page: Page, condition: str) -> None:
    """Wait until JavaScript says so. The page's policy forbids it to Playwright's own waiting."""
    stop = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < stop, f"it never came to be: {condition}"
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def opened(browser: Browser, page: str, tmp_path_factory: Any) -> Iterator[Opened]:
    """The report, opened once: each test leaves it as it was."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page)
    found = Opened(browser.new_page(viewport=DESK, color_scheme="light"))
    found.page.goto(file.as_uri())
    found.drawn("light linear")
    yield found
    found.page.close()
    assert not found.wrong


@pytest.fixture
def sheet(opened: Opened) -> Page:
    return opened.page


def test_it_loads_without_complaint_or_network(opened):
    assert opened.page.title() == "meta_loss: mixflow report"
    assert opened.wrong == []


def test_the_charts_are_there(sheet):
    areas = sheet.locator("#timeline .mark-area path")
    assert areas.count() == 2
    for place in range(2):
        assert areas.nth(place).bounding_box()["width"] > 300
    assert sheet.locator("#front-chart .mark-symbol.role-mark path").count() == 3
    bars = sheet.locator("#buffers .mark-rect path")
    assert bars.count() >= 2
    assert max(bars.nth(n).bounding_box()["width"] for n in range(bars.count())) > 300
    assert (
        sheet.locator("#timeline svg").get_attribute("role")
        or sheet.locator("#timeline [aria-label]").count()
    )


def test_hovering_names_the_value_its_shape_and_its_line(sheet):
    sheet.locator("#timeline").scroll_into_view_if_needed()
    box = sheet.locator("#timeline .mark-area path").first.bounding_box()
    tooltip = sheet.locator("#vg-tooltip-element.visible")
    seen = ""
    for share in (0.3, 0.45, 0.6, 0.75):
        sheet.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
        seen += tooltip.inner_text()
    for words in ("program", "alive", "value", "f32[", "source", "shown_program.py:", "code"):
        assert words in seen
    sheet.mouse.move(0, 0)
    expect(tooltip).to_have_count(0)


def test_the_line_through_the_program_moves_by_keyboard(sheet):
    readout = sheet.locator("#readout")
    start = readout.inner_text()
    assert "plain JAX" in start
    assert "mixflow" in start
    line = "#timeline .mark-rule.role-mark line"
    rule = f"document.querySelector('{line}').getBoundingClientRect().x"
    before = sheet.evaluate(rule)
    sheet.locator("#cursor").focus()
    for _ in range(5):
        sheet.keyboard.press("PageUp")
    expect(readout).not_to_have_text(start)
    eventually(sheet, f"{rule} > {before + 50}")
    sheet.keyboard.press("Home")
    assert readout.inner_text() == start


def test_the_scale_can_be_logarithmic(opened, sheet):
    linear = sheet.locator("#timeline").inner_text()
    sheet.get_by_label("logarithmic").check()
    opened.drawn("light log")
    assert sheet.locator("#timeline").inner_text() != linear
    assert sheet.locator("#timeline .mark-line path").count() == 2
    sheet.get_by_label("linear", exact=True).check()
    opened.drawn("light linear")


def test_filters_hide_what_does_not_match(sheet):
    rows = sheet.locator("#buffer-rows tr")
    total = rows.count()
    controls = sheet.locator("[data-filters=buffer-rows]")
    controls.get_by_label("Find").fill("tanh")
    shown = sheet.locator("#buffer-rows tr:visible")
    assert 0 < shown.count() < total
    assert all("tanh" in text for text in shown.all_inner_texts())
    assert controls.locator("output").inner_text() == f"{shown.count()} of {total}"
    controls.get_by_label("Program").select_option("mixflow")
    assert all(text.startswith("mixflow") for text in shown.all_inner_texts())
    controls.get_by_label("Find").fill("no such thing")
    assert shown.count() == 0
    controls.get_by_label("Find").fill("")
    controls.get_by_label("Program").select_option("")
    assert shown.count() == total


def test_remarks_are_filtered_by_pass_and_kind(report, sheet):
    controls, shown = sheet.locator("[data-filters=notes]"), sheet.locator("#notes > li:visible")
    assert shown.count() == len(report.rewrites) + len(report.declined)
    controls.get_by_label("Show").select_option("declined")
    assert shown.count() == len(report.declined) > 0
    controls.get_by_label("Show").select_option("")
    controls.get_by_label("Pass").select_option("forward-over-reverse")
    expected = [one for one in (*report.rewrites, *report.declined) if "forward" in one.by]
    assert shown.count() == len(expected)
    assert f"{GRADIENT_LINE}" in sheet.locator("#notes li:visible .marked").first.inner_text()
    controls.get_by_label("Pass").select_option("")


def test_the_keyboard_skips_to_the_report_and_unfolds(opened, sheet):
    sheet.reload()  # the focus is at the top again
    opened.drawn("light linear")
    sheet.keyboard.press("Tab")
    skip = sheet.locator(".skip")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    sheet.keyboard.press("Enter")
    expect(sheet.locator("main")).to_be_focused()
    summary = sheet.locator("#memory summary")
    summary.focus()
    sheet.keyboard.press("Enter")
    expect(sheet.locator("#memory details td").first).to_be_visible()
    summary.press("Enter")


def test_the_charts_follow_the_colour_scheme(opened, sheet):
    def look():
        return sheet.evaluate(
            """() => [
                getComputedStyle(document.body).backgroundColor,
                document.querySelector("#timeline .mark-area path").getAttribute("fill"),
                document.querySelector("#timeline .role-axis-label text").getAttribute("fill"),
            ]"""
        )

    light = look()
    sheet.emulate_media(color_scheme="dark")
    opened.drawn("dark linear")
    dark = look()
    sheet.emulate_media(color_scheme="light")
    opened.drawn("light linear")
    assert look() == light
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_a_phone_does_not_scroll_sideways(sheet):
    sheet.set_viewport_size(PHONE)
    eventually(sheet, "document.querySelector('#timeline svg').clientWidth < 390")
    assert sheet.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert sheet.locator(".figures td[data-name=temporaries]").last.is_visible()
    sheet.set_viewport_size(DESK)


def test_text_of_a_program_does_not_run(browser, report, tmp_path):
    file = tmp_path / "nasty.html"
    file.write_text(replace(report, entry=NASTY, plan=NASTY, target=NASTY).to_html())
    found = Opened(browser.new_page(color_scheme="light"))
    found.page.goto(file.as_uri())
    found.drawn("light linear")
    assert found.page.locator("h1").inner_text() == NASTY
    assert found.page.locator("img").count() == 0
    found.page.close()
    assert not found.wrong
