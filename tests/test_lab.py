"""The panels in a real JupyterLab: a slider is dragged with the mouse, and the picture moves."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

TOKEN = "only-for-this-test"
ROOT = Path(__file__).resolve().parents[1]


def notebook(*sources):
    """A notebook with these code cells."""
    cells = [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
             for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


@contextmanager
def lab(folder):
    """A JupyterLab in `folder`; gives its address."""
    own = {f"JUPYTER_{kind}_DIR": str(folder / f".{kind.lower()}") for kind in ("RUNTIME", "CONFIG", "DATA")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ServerApp.port_retries=50",
               f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ | own)
    try:
        for line in server.stderr:
            if found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", line):
                break
        else:
            pytest.fail("JupyterLab ended before it served a page")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.slow
def test_a_slider_dragged_in_jupyterlab_moves_the_evidence(tmp_path, chromium):
    from playwright.sync_api import expect, sync_playwright
    (tmp_path / "panel.ipynb").write_text(notebook("from helios.widgets import BiasPanel", "BiasPanel(n=600)"))
    with lab(tmp_path) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(f"{address}/lab/tree/panel.ipynb?token={TOKEN}&reset")
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(state="attached")
        for _ in range(2):
            page.keyboard.press("Shift+Enter")
        said = page.locator(".widget-html-content").filter(has_text="SIMULATED draws:")
        expect(said).to_contain_text("these draws are fair", timeout=90_000)
        picture = page.locator(".widget-html-content svg")
        fair = picture.inner_html()
        knob = page.locator(".widget-slider", has_text="strength").locator(".noUi-handle").first
        at, track = knob.bounding_box(), page.locator(".widget-slider", has_text="strength").locator(".noUi-target").bounding_box()
        y = at["y"] + at["height"] / 2
        page.mouse.move(at["x"] + at["width"] / 2, y)
        page.mouse.down()
        page.mouse.move(track["x"] + 0.8 * track["width"], y, steps=10)
        page.mouse.up()
        expect(said).to_contain_text("ball 7 at weight", timeout=30_000)
        if folder := os.environ.get("HELIOS_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/lab.png")
        words = said.inner_text()
        weight = float(re.search(r"ball 7 at weight ([\d.]+)\.", words)[1])
        assert 3.5 < weight < 4.9, "four fifths of the way from 1 to 5"
        assert "first reached 20" in words and picture.inner_html() != fair
        browser.close()
