"""matplotlib, when it is there."""

from types import ModuleType


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing to files.

    Raises ImportError with one sentence that says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'cest[eval]'.") from error
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt
