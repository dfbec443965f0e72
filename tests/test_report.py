"""The report in a browser: it stands alone, shows its plots, and fits a desk and a phone."""

from dataclasses import replace

import pytest

from helios.draws import simulate, write_draws
from helios.fitting import PRESETS
from helios.pipeline import run
from helios.report import report_html

SMALL = replace(PRESETS["quick"], hidden=16, heads=4, epochs=3, sequence_length=10, learning_rate=0.01)


@pytest.fixture(scope="module", params=["uniform", "planted"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    weights = {7: 50} if request.param == "planted" else {}
    write_draws(simulate(n=400, seed=1, powerball_weights=weights), folder / "<i>draws&.csv")
    result = run(folder / "<i>draws&.csv", SMALL, folder)
    assert result.next_draw.is_uniform == (request.param == "uniform")
    (folder / "report.html").write_text(report_html(result), encoding="utf-8")
    return folder / "report.html"


def test_names_from_outside_are_escaped(page):
    assert "&lt;i&gt;draws&amp;.csv" in page.read_text(encoding="utf-8")
    assert "<i>" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser(page, chromium, width):
    from playwright.sync_api import sync_playwright
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium, args=flags) as browser:
        tab, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        boxes = [figure.bounding_box() for figure in tab.locator("figure svg").all()]
        text, full_width = tab.inner_text("body"), tab.evaluate("document.documentElement.scrollWidth")
    assert (said, asked) == ([], [page.as_uri()])
    assert len(boxes) == 5 and all(box["width"] > 250 and box["height"] > 80 for box in boxes)
    assert full_width <= width
    assert "Verdict." in text and "SIMULATED DRAWS" in text and "1 in 292,201,338" in text
