"""What every file of ours may raise, and how what others say is shown. Imports nothing: commands start with it."""

import re


class GatewayError(Exception):
    """Base of every error that one of our files raises for another to handle."""


def printable(text: str) -> str:
    """What others say, without what moves a terminal's cursor or colours it."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)
