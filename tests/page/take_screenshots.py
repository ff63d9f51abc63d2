"""Takes the pictures in docs/: the demo model's page under load, light, dark and on a phone.

    .venv/bin/python -m tests.page.take_screenshots [SECONDS]

Serves, loads for SECONDS (90) and writes docs/page-{light,dark,narrow}.png. Look at them before
they are committed, and take them on a machine that does nothing else. Needs pillow besides the test
dependencies (it is in none of them), which makes the files a third of their size.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from PIL import Image, ImageColor

from tests.e2e.server_process import ROOT, ServerProcess
from tests.page.page_browser import Open, Visit, browser, visits

DOCS = ROOT / "docs"
CLIENTS = 12
COLOURS = 256
ANSWERED_MS = 120_000
PROMPT = "import os\nimport sys\n\n\ndef main(argv):\n    parser = argparse.ArgumentParser()\n"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PICTURES = {"light": ("light", WIDE), "dark": ("dark", WIDE), "narrow": ("light", PHONE)}


def load(server: ServerProcess, stop: threading.Event, seed: int) -> None:
    """Clients that come in waves, each with a text and a length of its own."""
    dice = random.Random(seed)
    while not stop.is_set():
        with contextlib.suppress(httpx.TimeoutException):  # a slow machine is no reason to stop
            server.post(
                prompt=f"# {dice.random()}\n{PROMPT * dice.randint(1, 9)}",
                max_tokens=dice.randint(30, 200),
                temperature=0.8,
                seed=seed,
                ignore_eos=True,
            )
        stop.wait(dice.choice([0, 0, 4, 12]) * dice.random())


def take(open_page: Open, url: str, seconds: float) -> None:
    tabs = {
        name: open_page(url, color_scheme=scheme, viewport=viewport)
        for name, (scheme, viewport) in PICTURES.items()
    }
    time.sleep(seconds)
    for name, tab in tabs.items():
        tab.page.fill("#max-tokens", "96")
        tab.page.click("#run")
        tab.ended("done", ANSWERED_MS)
        tab.page.locator("#run").blur()
        tab.page.locator("#output").evaluate("one => one.scrollTop = 0")
        write(DOCS / f"page-{name}.png", tab)


def write(path: Path, tab: Visit) -> None:
    """With a palette of the most frequent colours, and those of the legend however rare."""
    picture = Image.open(io.BytesIO(tab.page.screenshot(full_page=True))).convert("RGB")
    css = (ROOT / "server" / "api" / "page" / "page.css").read_text()
    legend = {ImageColor.getrgb(found) for found in re.findall(r"--band-\S+: (#\w+)", css)}
    found = sorted(picture.getcolors(picture.width * picture.height) or (), reverse=True)
    frequent = [colour for _, colour in found if colour not in legend]
    colours = [*legend, *frequent][:COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in colours for channel in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


def main(seconds: float) -> None:
    DOCS.mkdir(exist_ok=True)
    checkpoint = ROOT / "weights" / "demo" / "checkpoint"
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        options = {"served-model-name": "quire-demo", "threads": "auto"}
        with ServerProcess(checkpoint, log, **options) as server:
            server.model = "quire-demo"
            clients = [
                threading.Thread(target=load, args=(server, stop, seed)) for seed in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            try:
                with browser() as chromium, visits(chromium) as open_page:
                    take(open_page, server.base_url + "/", seconds)
            finally:
                stop.set()
                for client in clients:
                    client.join()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 90)
