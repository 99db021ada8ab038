"""Where the released weights are: what the environment names, else this checkout's own."""

import os
from pathlib import Path

from cest.configuration import CheckpointError

RELEASED = ("cest", "iest")
CHECKOUT = Path(__file__).resolve().parent.parent / "model_card"


def released_checkpoint(name: str) -> str:
    """Folder or Hub id of "cest" or "iest".

    The environment variable CEST_MODEL or IEST_MODEL if it is set, else the folder of that name
    under model_card/ of a checkout.

    Raises:
        CheckpointError: neither is there.
    """
    if given := os.environ.get(f"{name.upper()}_MODEL"):
        return given
    if not (CHECKOUT / name / "config.json").is_file():
        raise CheckpointError(
            f"There are no released {name.upper()} weights here: name a folder or a Hub id, in "
            f"{name.upper()}_MODEL or to the command; a checkout of the project has its own."
        )
    return str(CHECKOUT / name)
