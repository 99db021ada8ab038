"""The Gradio Space: one photo in, CEST and IEST side by side. All it does is in `cest.space`.

    python app.py                                    serves http://127.0.0.1:7860
    GRADIO_SERVER_NAME=0.0.0.0 python app.py         serves other machines too

CEST_MODEL and IEST_MODEL name other checkpoints than this copy's own: a folder or a Hub id.
"""

import atexit
import os
import signal
import sys
import tempfile


def keep_no_uploads() -> None:
    """Uploads go to a folder that others cannot read and that ends with the process, unless
    GRADIO_TEMP_DIR names another."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not os.environ.get("GRADIO_TEMP_DIR"):
        folder = tempfile.TemporaryDirectory(prefix="cest-", ignore_cleanup_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = folder.name
        atexit.register(folder.cleanup)


def main() -> None:
    keep_no_uploads()
    # Gradio looks for its folder when it is imported.
    from cest.configuration import CheckpointError
    from cest.detection import DetectorError
    from cest.released import RELEASED, released_checkpoint
    from cest.space.memory import return_freed_memory
    from cest.space.page import launch
    from cest.space.studio import load_studio

    return_freed_memory()
    try:
        studio = load_studio({name.upper(): released_checkpoint(name) for name in RELEASED})
    except (CheckpointError, DetectorError) as error:
        sys.exit(f"app.py: {error}")
    launch(studio)


if __name__ == "__main__":
    main()
