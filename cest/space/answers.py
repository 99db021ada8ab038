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

    A file is known to a person by its name, not by where the server keeps it; and a name is text,
    whereas Gradio takes a message for HTML.

    shown: what a generator is to yield last for a sentence, instead of an error, which would leave
    on the page what was yielded before.
    """

    def sentence(error: Exception, arguments: tuple) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if not isinstance(error, EXPECTED):
            logger.error("%s failed", function.__name__, exc_info=error)
            return gr.Error(TROUBLE, print_exception=False)
        text = str(error)
        for argument in arguments:
            if isinstance(argument, str) and "/" in argument:
                text = text.replace(argument, argument.rpartition("/")[2])
        return gr.Error(html.escape(text, quote=False), print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*arguments, **named):
            try:
                yield from function(*arguments, **named)
            except Exception as error:
                said = sentence(error, arguments)
                if shown is None:
                    raise said from None
                yield shown(said.message)

    else:

        @functools.wraps(function)
        def wrapper(*arguments, **named):
            try:
                return function(*arguments, **named)
            except Exception as error:
                raise sentence(error, arguments) from None

    return wrapper
