"""The app under load: photos by parallel clients, seconds for each, and the server's memory.

python benchmarks/space.py [--photos 50] [--clients 8] [--cores 2]

Starts the app itself, on so many cores (Linux), with its detector embedded and the Hub unreachable.
Every client is a visitor of its own: it uploads a photo, waits for everything, leaves.
"""

import argparse
import concurrent.futures
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

ROOT = Path(__file__).parent.parent
ASTRONAUT = ROOT / "cest" / "assets" / "astronaut.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder), options.cores)
        try:
            measure(process.pid, url, Path(folder), options)
        finally:
            process.terminate()
            process.wait()


def start(folder: Path, cores: int) -> tuple[subprocess.Popen, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pinned = ["taskset", "-c", f"0-{cores - 1}"] if sys.platform == "linux" else []
    environment = {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": str(cores)}
    environment |= {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "CEST_DETECTOR": "embedded"}
    process = subprocess.Popen(
        [*pinned, sys.executable, ROOT / "app.py"],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return process, url
        except OSError:
            time.sleep(0.2)
    sys.exit("space.py: app.py did not start; run it to see why.")


def measure(pid: int, url: str, folder: Path, options: argparse.Namespace) -> None:
    photo = folder / "photo.jpg"
    Image.open(ASTRONAUT).resize((2048, 2048)).save(photo)
    seconds, failures = [], []

    def visit(number: int) -> None:
        begin = time.perf_counter()
        try:
            client = Client(url, verbose=False, download_files=folder / "downloads")
            model = ("CEST", "IEST")[number % 2]
            client.predict(handle_file(photo), model, api_name="/reconstruct")
            client.close()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
        seconds.append(time.perf_counter() - begin)

    print("| what | figure |\n|---|---|")
    print(f"| memory at the start, MB | {memory(pid):.0f} |")
    visit(0)
    print(f"| one visitor, first photo, s | {seconds.pop():.2f} |")
    for number in range(8):
        visit(number)
    print(f"| one visitor, later photos, s | {np.median(seconds):.2f} |")
    print(f"| memory after 9 photos, one at a time, MB | {memory(pid):.0f} |")
    for attempt in ("first", "second"):
        seconds.clear()
        with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
            work = [pool.submit(visit, number) for number in range(options.photos)]
            peak = 0.0
            while not all(one.done() for one in work):
                peak = max(peak, memory(pid))
                time.sleep(0.2)
        print(
            f"| {attempt} {options.photos} photos by {options.clients} clients: median, slowest, s "
            f"| {np.median(seconds):.1f}, {max(seconds):.1f} |"
        )
        print(f"| memory: peak, after, MB | {peak:.0f}, {memory(pid):.0f} |")
    # Sessions end with the heartbeat of their client, some seconds after it has gone.
    deadline = time.monotonic() + 60
    while (left := len(list(folder.rglob("session-*")))) and time.monotonic() < deadline:
        time.sleep(1)
    print(f"| memory a little later, MB | {memory(pid):.0f} |")
    print(f"| sessions left on the disk | {left} |")
    print(f"| failures | {len(failures)} |")
    for failure in sorted(set(failures)):
        print(failure, file=sys.stderr)


def memory(pid: int) -> float:
    """Resident set of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
