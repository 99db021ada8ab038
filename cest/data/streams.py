"""Reading a clip set that is too large, or too far away, to be copied: streamed, shuffled, and
resumed exactly.

The shuffle buffer of `datasets` is lost on resuming. Here the set's row groups are permuted anew
each epoch, a few of them at a time are held as a window, and the window's rows are permuted: all
of it is a function of (seed, epoch, window), so that a position is three numbers (and the number
of row groups, by which another set is recognised).
"""

from concurrent.futures import Future, ThreadPoolExecutor

import datasets
import numpy as np

# Row groups held at a time: rows of different parts of the set meet in a batch.
GROUPS_A_WINDOW = 8


class StreamedClips:
    """Endless rows of a streamed set, this process's share of it.

    Memory: two windows of eight row groups, the one being read and the next.

    Args:
        rows: from `load_clips(..., streaming=True)`.
        seed: of the order.
        process, processes: every row group is one process's in an epoch.
        position: where to go on; default the beginning.

    Raises:
        ValueError: fewer row groups than processes, a position in another set, or a row group that
            cannot be read.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        position: dict | None = None,
    ) -> None:
        self.rows = rows.reshard()
        self.groups = self.rows.num_shards
        if self.groups < processes:
            raise ValueError(
                f"The streamed set has {self.groups} row group(s) for {processes} processes: write "
                "it in smaller row groups or more files, or train without streaming."
            )
        self.seed, self.process, self.processes = seed, process, processes
        beginning = {"epoch": 0, "window": 0, "row": 0, "groups": self.groups}
        self.position = beginning | (position or {})
        if self.position["groups"] != self.groups:
            raise ValueError(
                f"The stream to go on with had {self.position['groups']} row groups and this has "
                f"{self.groups}: give the set that the run was begun with."
            )
        self.ahead = ThreadPoolExecutor(1)
        self.current: list[dict] | None = None
        self.coming: Future | None = None

    def take(self, number: int) -> list[dict]:
        """The next rows."""
        taken: list[dict] = []
        while len(taken) < number:
            epoch, window, row = (self.position[name] for name in ("epoch", "window", "row"))
            if self.current is None:
                self.current = self._window(epoch, window)
            if self.coming is None:
                self.coming = self.ahead.submit(self._window, *self._after(epoch, window))
            some = self.current[row : row + number - len(taken)]
            taken += some
            self.position = self.position | {"row": row + len(some)}
            if row + len(some) == len(self.current):
                self.current, self.coming = self.coming.result(), None
                epoch, window = self._after(epoch, window)
                self.position = self.position | {"epoch": epoch, "window": window, "row": 0}
        return taken

    def _order(self, epoch: int) -> np.ndarray:
        """This process's row groups in an epoch's order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.groups)
        return order[self.process :: self.processes]

    def _after(self, epoch: int, window: int) -> tuple[int, int]:
        last = (window + 1) * GROUPS_A_WINDOW >= len(self._order(epoch))
        return (epoch + 1, 0) if last else (epoch, window + 1)

    def _window(self, epoch: int, window: int) -> list[dict]:
        first = window * GROUPS_A_WINDOW
        rows: list[dict] = []
        for group in self._order(epoch)[first : first + GROUPS_A_WINDOW]:
            try:
                rows += self.rows.shard(num_shards=self.groups, index=int(group))
            except Exception as error:  # pyarrow, datasets, the Hub's client have their own
                raise ValueError(
                    f"Row group {group} of the streamed set cannot be read ({error}): if the "
                    "connection failed, start again; if a file is damaged, replace it."
                ) from error
        if not rows:
            raise ValueError("A window of the streamed set has no rows: leave empty files out.")
        order = np.random.default_rng((self.seed, epoch, window, self.process)).permutation(
            len(rows)
        )
        return [rows[i] for i in order]
