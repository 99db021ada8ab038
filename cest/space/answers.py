"""Errors as a visitor meets them: one sentence, and never a traceback."""

import functools
import html
import inspect
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from cest.lighting import LightError
from cest.photo import PhotoError
from cest.video import VideoError

logger = logging.getLogger(__name__)


class RequestError(ValueError):
    """A wish that cannot be granted; the message is one sentence for the person who had it."""


EXPECTED = (RequestError, PhotoError, VideoError, LightError)
TROUBLE = "Something went wrong on the server; try again, or try another photo."


def answered(function: Callable, shown: Callable[[str], Any] | None = None) -> Callable:
    """Turns what goes wrong in an event's function, or generator, into one sentence.

    The names in it are text, whereas Gradio takes a message for HTML.

    shown: what is returned, or yielded last, for a sentence, instead of an error, which would leave
    on the page what was there before.
    """

    def sentence(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if not isinstance(error, EXPECTED):
            logger.error("%s failed", function.__name__, exc_info=error)
            return gr.Error(TROUBLE, print_exception=False)
        return gr.Error(html.escape(str(error), quote=False), print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*arguments, **named):
            try:
                yield from function(*arguments, **named)
            except Exception as error:
                if shown is None:
                    raise sentence(error) from None
                yield shown(sentence(error).message)

    else:

        @functools.wraps(function)
        def wrapper(*arguments, **named):
            try:
                return function(*arguments, **named)
            except Exception as error:
                if shown is None:
                    raise sentence(error) from None
                return shown(sentence(error).message)

    return wrapper
