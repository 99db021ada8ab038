"""What the server keeps for each visitor, in memory and in files, and for how long."""

import atexit
import contextlib
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cest.detection import DetectedFace
from cest.reconstruction import Reconstruction
from cest.space.answers import EXPECTED
from cest.space.studio import Result

SECONDS_KEPT = 3600
SESSIONS_KEPT = 100
"""More visitors than this at a time: who was away the longest has to upload the photo again."""


@dataclass(eq=False)
class Run:
    """One thing that a visitor asked for: it waits for its turn, goes on, and comes to an end.

    It is called off here, not by Gradio's `cancels`, which may reach the server when the visitor
    has asked again, and then ends that. wanted: until it is done, or called off, as when another
    takes its place.
    """

    wish: Any = field(repr=False)
    wanted: bool = True
    begun: bool = False
    called_off: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def end(self) -> bool:
        """Returns whether it was wanted until now; only one who asks is told so."""
        with self._lock:
            wanted, self.wanted = self.wanted, False
            return wanted


@dataclass
class Session:
    """One visitor's photo, what was found in it, and a folder for the files made of it.

    photo: the file that shows it; choice: a name for the choice of a face. meshes, downloads: files
    made of the result, once there are any.
    detail: whether faces are shown with the photo's fine detail.
    runs: the last of each kind that was asked for. writing: held while files are made of what is
    known of the photo, or that changes; the studio's turn is taken after it.
    """

    folder: Path
    pixels: np.ndarray | None = field(default=None, repr=False)
    photo: Path | None = None
    faces: list[DetectedFace] = field(default_factory=list)
    choice: str = ""
    result: Result | None = None
    detail: bool = True
    borrowed: Result | None = None
    meshes: dict[str, Path] = field(default_factory=dict)
    downloads: list[list[Path]] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    writing: threading.RLock = field(default_factory=threading.RLock, repr=False)
    used: float = field(default_factory=time.monotonic)
    visits: int = 0
    over: bool = False

    @property
    def shown(self) -> dict[str, Reconstruction]:
        """The result's faces as the visitor wants to see them."""
        faces = self.result.faces
        return {n: f if self.detail else f.without_detail() for n, f in faces.items()}

    def new_folder(self, kind: str, keep: int | None = None) -> Path:
        """An empty folder for files of a kind; its name cannot be guessed.

        keep: so many of that kind; the oldest go.
        """
        folder = self.folder / kind / f"{time.monotonic_ns():020}-{secrets.token_urlsafe(16)}"
        folder.mkdir(parents=True)
        if keep is not None:
            for old in sorted(folder.parent.iterdir())[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def remove(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, kind: str, wish: Any) -> None:
        """A run is to come, in place of any other of its kind; the same wish again, as by a
        double-click, is no other."""
        if not self.wants(kind, wish):
            self.call_off(kind)
            self.runs[kind] = Run(wish)

    def wants(self, kind: str, wish: Any) -> bool:
        """Whether this was asked for, and waits or goes on."""
        run = self.runs.get(kind)
        return run is not None and run.wanted and run.wish == wish

    def call_off(self, kind: str) -> bool:
        """A run ends at its next step, or when its turn comes. Returns whether there was one."""
        run = self.runs.get(kind)
        if run is None or not run.end():
            return False
        run.called_off = True
        return True

    @contextlib.contextmanager
    def running(self, kind: str) -> Iterator[Run | None]:
        """The turn of what was asked for has come; None if it is not wanted or goes on already.

        What is wrong with a wish that was called off is not told: the page shows something else
        then.
        """
        run = self.runs.get(kind)
        if run is None or run.begun or not run.wanted:
            yield None
            return
        run.begun = True
        try:
            yield run
        except EXPECTED:
            if not run.called_off:
                raise
        finally:
            run.end()

    def start_over(self) -> None:
        """Another photo is to come; what the visitor does elsewhere goes on.

        Files stay until there are newer ones: Gradio may be about to send them.
        """
        for kind in ("photo", "choice", "refinement", "light"):
            self.call_off(kind)
        with self.writing:
            self.pixels = self.photo = self.result = self.borrowed = None
            self.faces, self.meshes, self.downloads = [], {}, []


class Sessions:
    """Sessions by the hash that Gradio gives each visitor's page, or each client.

    They end with the visit, after an hour without use, or for want of room, and their files with
    them.

    root: a folder of this server's; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def visit(self, key: str | None) -> Iterator[Session]:
        """The visitor's session, which is made if there is none.

        A request without a key has one of its own, whose files are there for an hour.
        """
        new = Session(self.root / f"session-{secrets.token_urlsafe(16)}")
        if key is None:
            yield new
            return
        with self._lock:
            session = self._sessions.pop(key, new)
            session.used = time.monotonic()
            session.visits += 1
            self._sessions[key] = session
            crowd = list(self._sessions)[:-SESSIONS_KEPT]
        for name in crowd:
            self.end(name)
        try:
            yield session
        finally:
            with self._lock:
                session.used = time.monotonic()
                session.visits -= 1
                left = session.over and not session.visits
            if left:
                session.remove()

    def tidy(self) -> None:
        """End the sessions that are over, and remove folders that have none."""
        with self._lock:
            now = time.monotonic()
            over = [key for key, one in self._sessions.items() if now - one.used > SECONDS_KEPT]
        for key in over:
            self.end(key)
        kept = {one.folder for one in self._sessions.copy().values()}
        for folder in self.root.glob("session-*"):
            # Something that was still running when its visitor left may have written it.
            with contextlib.suppress(OSError):
                if folder not in kept and time.time() - folder.stat().st_mtime > SECONDS_KEPT:
                    shutil.rmtree(folder)

    def keep_tidy(self, seconds: float = 300.0) -> None:
        """Tidy up from time to time for as long as the process lives; and in the end."""

        def forever() -> None:
            while True:
                time.sleep(seconds)
                self.tidy()

        threading.Thread(target=forever, name="tidy", daemon=True).start()
        atexit.register(self.end_all)

    def end(self, key: str | None) -> None:
        """Forget a visitor; what is still being written goes when that has come to its end."""
        with self._lock:
            session = self._sessions.pop(key, None)
            if session is None:
                return
            session.over = True
            left = not session.visits
        for kind in list(session.runs):
            session.call_off(kind)
        if left:
            session.remove()

    def end_all(self) -> None:
        for key in list(self._sessions):
            self.end(key)
