"""The app as a process of its own, and Debian's Chromium to look at it with."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from cest.configuration import FaceEstimatorConfig
from cest.modeling import FaceEstimator

ROOT = Path(__file__).parents[1]

# WebGL is drawn by the CPU (SwiftShader), and nothing is asked of the network.
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome; CHROMIUM in the environment comes first."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser with a profile of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=list(CHROMIUM_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class RunningApp:
    """url: of its page; folder: where it was started; temporary: its TMPDIR, in there; log: what it
    printed."""

    url: str
    folder: Path
    temporary: Path
    log: Path


def random_checkpoints(folder: Path) -> dict[str, str]:
    """CEST and IEST of random weights, as the environment names them: released ones are not
    needed to see that the app works."""
    named = {}
    for name in ("cest", "iest"):
        torch.manual_seed(0)
        config = FaceEstimatorConfig(conditioning=name, image_size=64, width=0.125)
        FaceEstimator(config).save_pretrained(folder / name)
        named[f"{name.upper()}_MODEL"] = str(folder / name)
    return named


@contextlib.contextmanager
def running_app(folder: Path, **environment: str) -> Iterator[RunningApp]:
    """``python app.py`` on a free port, its temporary files under `folder`; ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary, log = folder / "temporary", folder / "app.log"
    temporary.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "app.py"],
            cwd=folder,  # it must not matter where the app is started from
            env=os.environ
            | {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(temporary)}
            | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CEST_DETECTOR": "embedded"}
            | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    app = RunningApp(f"http://127.0.0.1:{port}", folder, temporary, log)
    try:
        _wait_until_served(app, process)
        yield app
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_served(app: RunningApp, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(app.url, timeout=5):
            return
        time.sleep(0.3)
    raise AssertionError(f"app.py did not start:\n{app.log.read_text()}")


def without_a_net(page: Page, app: RunningApp) -> None:
    """Everything must come from the app itself; what is asked of others is refused."""
    page.route(
        lambda url: not url.startswith((app.url, "data:", "blob:")), lambda route: route.abort()
    )


def pixels(element: Locator, path: Path) -> np.ndarray:
    """What a person sees of an element: (H, W, 3) uint8."""
    element.screenshot(path=path, animations="disabled")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
