"""ZeroGPU, where there is one: a Space lends its GPU to functions that are marked for it.

`spaces` is installed by such a Space and nowhere else. It has to be imported before CUDA is used.
"""

try:
    from spaces import GPU as on_gpu
except ImportError:

    def on_gpu(function):
        return function


__all__ = ["on_gpu"]
