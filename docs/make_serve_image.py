"""Writes docs/images/serve.jpg: the page of `serve` in Chromium, with the predictions for some photos.

    python docs/make_serve_image.py CHECKPOINT PHOTO …

The heat map of the second photo is shown.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.browser import Browser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=PROJECT / "docs/images/serve.jpg")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    command = [sys.executable, "-u", str(PROJECT / "cli.py"), "serve", "--ckpt_path", options.checkpoint, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        with Browser(f"{address[0]}/", options.width, 400, options.dark) as browser:
            browser.choose_files("#files", options.photos)
            browser.wait_for(f"document.querySelectorAll('.done').length == {len(options.photos)}")
            browser.evaluate("document.querySelectorAll('.toggle')[1].click()")
            browser.wait_for("[...document.querySelectorAll('.map')].some((each) => each.naturalWidth > 0)")
            browser.screenshot(options.output)
        server.terminate()
    print(f"Saved to {options.output}")


if __name__ == "__main__":
    main()
