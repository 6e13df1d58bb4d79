"""The report's page as a person meets it: from a file, in headless Chromium, on a desk and on a phone, in the light and in the dark."""

from __future__ import annotations

import os
import shutil

import pytest

from agent.report.page import make_report
from tests.agent.finished_runs import ten_runs

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SEEN = """() => {
  const wide = [...document.querySelectorAll('figure svg text')].map(t => {
    const svg = t.closest('svg'), scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(t).fontSize) * scale;
  });
  const outside = [...document.querySelectorAll('figure svg text')].filter(t => {
    const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
    return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
  });
  return {width: document.documentElement.scrollWidth, text: Math.min(...wide), outside: outside.length,
          figures: document.querySelectorAll('figure svg').length,
          narrowest: Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)),
          paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
          dots: getComputedStyle(document.querySelector('circle')).fill};
}"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(
            f"no Chromium here ({', '.join(BROWSERS)}); on Debian or Ubuntu: apt-get install chromium-headless-shell"
        )
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
    with playwright.sync_playwright() as api:
        opened = api.chromium.launch(executable_path=found, args=sandbox)
        yield opened
        opened.close()


def test_the_page_opens_from_a_file_without_a_request_or_a_complaint(tmp_path, browser):
    file = tmp_path / "report.html"
    file.write_text(make_report(ten_runs(tmp_path)))
    looks = {}
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("load")
        seen = looks[width] = page.evaluate(SEEN)
        page.close()
        assert said == [] and [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        assert seen["width"] == width  # nothing makes it scroll sideways
        assert seen["figures"] == 11 and seen["text"] >= 10.5 and seen["outside"] == 0 and seen["narrowest"] > 130
    assert looks[1280]["paper"] == "rgb(255, 255, 255)" != looks[390]["paper"]
    assert all(looks[1280][what] != looks[390][what] for what in ("ink", "dots"))
