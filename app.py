"""The Gradio Space: one photo in, CEST and IEST side by side. All it does is in `cest.space`.

    python app.py                                    serves http://127.0.0.1:7860
    GRADIO_SERVER_NAME=0.0.0.0 python app.py         serves other machines too

CEST_MODEL and IEST_MODEL name other checkpoints than this copy's own: a folder or a Hub id.
"""

import sys

from cest.configuration import CheckpointError
from cest.detection import DetectorError
from cest.released import RELEASED, released_checkpoint
from cest.space.memory import return_freed_memory
from cest.space.page import launch
from cest.space.studio import load_studio


def main() -> None:
    return_freed_memory()
    try:
        studio = load_studio({name.upper(): released_checkpoint(name) for name in RELEASED})
    except (CheckpointError, DetectorError) as error:
        sys.exit(f"app.py: {error}")
    launch(studio)


if __name__ == "__main__":
    main()
