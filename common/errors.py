"""The base of all our errors, and how texts from outside are shown. Imports nothing, since every command uses it."""

import re


class SeriesGatewayError(Exception):
    """Base class of the errors that one of our modules raises and another handles."""


def printable(text: str) -> str:
    """Return a text from outside with control characters replaced, so that it cannot control a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)
