"""`serve` in a real browser, and under load."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from tests.browser import CHROMIUM, Browser
from tests.cli.test_serve import Server, photo, served  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_photos_are_classified_in_a_browser(served: Server, tmp_path: Path) -> None:  # noqa: F811
    files = [tmp_path / "a <b>.jpg", tmp_path / "not a photo.jpg", tmp_path / "c.png"]
    files[0].write_bytes(photo())
    files[1].write_text("<!doctype html>")
    files[2].write_bytes(photo((30, 50), "PNG"))
    with Browser(f"http://127.0.0.1:{served.port}/", width=390) as browser:
        browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.id") == "files"
        browser.choose_files("#files", files)
        browser.wait_for("document.querySelectorAll('#results .done').length == 3")
        names = browser.evaluate("[...document.querySelectorAll('.name')].map((each) => each.textContent)")
        assert names == [file.name for file in files]
        shown = browser.evaluate("[...document.querySelectorAll('h2')].map((each) => each.textContent)")
        predictions = [served.predict(files[i].read_bytes())[1]["predictions"][0] for i in (0, 2)]
        assert [shown[0], shown[2]] == [each["class"] for each in predictions]
        assert shown[1] == "not an image of a known format"
        assert len(browser.evaluate("[...document.querySelectorAll('td.track')].map((each) => each.innerText)")) == 10
        browser.evaluate("document.querySelector('.toggle').click()")
        browser.wait_for("document.querySelector('.map').naturalWidth > 0")
        assert browser.evaluate("document.querySelector('.toggle').getAttribute('aria-pressed')") == "true"
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        loaded = browser.evaluate("performance.getEntriesByType('resource').map((each) => each.name)")
        own = (f"http://127.0.0.1:{served.port}/", f"blob:http://127.0.0.1:{served.port}/")
        assert loaded and all(name.startswith(own) for name in loaded)
        browser.evaluate("document.getElementById('clear').click()")
        assert browser.evaluate("document.getElementById('results').children.length") == 0


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_no_request_is_lost_under_load_and_the_memory_is_flat(served: Server) -> None:  # noqa: F811
    bodies = [photo((900 + 10 * i, 700), quality=95) for i in range(20)]
    expected = [served.predict(body)[1] for body in bodies]
    threads = threading.active_count()
    memory = []
    with ThreadPoolExecutor(16) as pool:
        for _ in range(4):
            answers = list(pool.map(served.predict, bodies * 10))
            assert answers == [(200, each) for each in expected * 10]
            memory.append(resident_bytes())
    assert max(memory[1:]) - memory[0] < 30e6, json.dumps(memory)
    assert threading.active_count() <= threads + 1
