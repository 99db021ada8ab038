"""Checkpoints go to the Hub while training goes on, and wait while the Hub does not answer."""

import logging
import shlex
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm

FILES = (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE, constants.REPOCARD_NAME)
"""What `FaceEstimator.save_pretrained` writes."""
START = 15.0
"""Seconds that a run waits at its start to hear whether it may push."""
SILENCE = 60.0
"""Seconds after which a connection that says nothing is given up; the Hub's client has no limit."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds between attempts: doubled from the first to the longest."""
CHANCES = 4
"""Attempts that may fail after the end of the run before it is left to its user."""


class PublishingError(ValueError):
    """This token must not push there; the message says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A model folder as it was: contents by file name."""

    folder: Path
    message: str
    contents: dict[str, bytes]


class Publisher:
    """Pushes model folders to a Hub repository, one commit each, in a thread of its own.

    `publish` reads the folder, so that it may be changed or removed at once, and returns. The
    newest waits if the Hub cannot be reached, and older ones are given up for it; nothing that the
    Hub does stops a run or slows it. Memory: two models' weights at most. What there is to say is
    said on stderr, a line each time that pushing begins to fail or works again.

    Args:
        repo_id: "owner/name"; created if it is missing.
        private: whether a repository that has to be created is private.

    Raises:
        PublishingError: no repository's name, no token, or one that may not write there. Not if
            the Hub cannot be reached.
    """

    def __init__(self, repo_id: str, private: bool = True) -> None:
        try:
            validate_repo_id(repo_id)
            _owner, _name = repo_id.split("/")
        except ValueError:
            raise PublishingError(
                f"{repo_id!r} is no repository of the Hub: give owner/name."
            ) from None
        if get_token() is None:
            raise PublishingError(
                f"There is no token to push to {repo_id} with: log in by `hf auth login`, set "
                "HF_TOKEN, or train without pushing."
            )
        self.repo_id, self.private = repo_id, private
        self._api = HfApi(library_name="cest")
        self._changed = threading.Condition()  # guards what follows
        self._waiting: Snapshot | None = None
        self._hurry = False  # the end of the run: no pause before the next attempt
        self._chances = CHANCES
        self._trouble: str | None = None  # why the last attempt failed
        self._refused = False  # the Hub said no, and nobody knows yet
        self._checked = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._checked.wait(START)
        self._checked.set()
        if self._refused:
            raise PublishingError(
                f"The Hub does not let this token push to {repo_id} ({self._trouble}): use one "
                "that may write there (`hf auth login` or HF_TOKEN), or train without pushing."
            )

    def publish(self, folder: str | Path, message: str) -> None:
        """Takes what `FaceEstimator.save_pretrained` wrote into ``folder`` and returns.

        Args:
            folder: has config.json, model.safetensors and README.md.
            message: of the commit.
        """
        folder = Path(folder)
        try:
            contents = {name: (folder / name).read_bytes() for name in FILES}
        except OSError as error:
            self._say(f"{message} is not pushed to {self.repo_id}: {error}.")
            return
        with self._changed:
            self._waiting = Snapshot(folder, message, contents)
            self._changed.notify_all()

    def close(self, timeout: float = 600.0) -> bool:
        """Waits for the last push: ``timeout`` seconds at most, and seconds if the Hub is away.

        Returns:
            Whether everything is on the Hub. If not, one line has said what pushes it later.
        """
        with self._changed:
            self._hurry, self._chances = True, CHANCES
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is None or not self._chances, timeout)
            if self._waiting is None:
                return True
            later = ["hf", "upload", self.repo_id, str(self._waiting.folder), "."]
            later += ["--private"] * self.private
            self._say(
                f"{self._waiting.message} is not on the Hub ({self._trouble or 'no time left'}): "
                f"push it later with `{shlex.join(later)}`."
            )
            return False

    # -- the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Checks that the repository can be pushed to, then pushes what comes."""
        for handler in hub_logging.get_logger().handlers:
            handler.addFilter(self._not_from_here)
        pause, snapshot = FIRST_PAUSE, None
        while True:
            try:
                with disable_progress_bars():
                    self._check()
                    if snapshot:
                        self._commit(snapshot)
            # The Hub's client raises its own errors, httpx2's, JSON's, Xet's and RuntimeErrors
            # around them; whichever it is, this thread goes on.
            except Exception as error:
                if not self._failed(error):
                    return
                pause = self._pause(pause)
            else:
                self._worked(snapshot)
                pause = FIRST_PAUSE
            snapshot = self._next()

    def _check(self) -> None:
        """Cheap, and without the client's own retries, which later requests have."""
        get_session().timeout = SILENCE
        try:
            self._api.auth_check(self.repo_id, write=True)
        except RepositoryNotFoundError:
            self._api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            self._api.auth_check(self.repo_id, write=True)

    def _commit(self, snapshot: Snapshot) -> None:
        # Not upload_folder, which may make several commits of one folder. Files that the
        # repository has already are left out; with none left there is no commit.
        self._api.create_commit(
            self.repo_id,
            [CommitOperationAdd(name, content) for name, content in snapshot.contents.items()],
            commit_message=snapshot.message,
        )

    def _next(self) -> Snapshot:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None)
            return self._waiting

    def _worked(self, snapshot: Snapshot | None) -> None:
        with self._changed:
            if self._trouble:
                self._say(f"The Hub lets {self.repo_id} be pushed to again.")
            self._trouble = None
            if self._waiting is snapshot:
                self._waiting = None
                self._changed.notify_all()
        self._checked.set()

    def _failed(self, error: Exception) -> bool:
        """Notes why; False for a refusal while the run, not yet begun, waits for the check."""
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        with self._changed:
            self._refused = status in (401, 403) and not self._checked.is_set()
            if not self._trouble and not self._refused:
                self._say(
                    f"{self.repo_id} cannot be pushed to ({reason}); training goes on, and the "
                    "newest checkpoint is pushed when it can be."
                )
            self._trouble = reason
            self._chances = max(0, self._chances - 1)
            self._changed.notify_all()
        self._checked.set()
        return not self._refused

    def _pause(self, seconds: float) -> float:
        """Waits, but not at the end of the run for its first attempt; returns the next pause."""
        with self._changed:
            if self._changed.wait_for(lambda: self._hurry, seconds):
                self._hurry = False
                return FIRST_PAUSE
        return min(2 * seconds, LONGEST_PAUSE)

    def _not_from_here(self, record: logging.LogRecord) -> bool:
        """Keeps the client from saying every retry of this thread."""
        return record.thread != self._thread.ident

    def _say(self, sentence: str) -> None:
        tqdm.write(f"publishing: {sentence}", file=sys.stderr)
