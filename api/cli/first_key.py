"""Warn before a server's first key is made: from then on everyone needs one, and a gateway without one is shut out."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import click

GATEWAY_SCOPES = ("series:write", "series:read")
GATEWAY = "gateway-1"
MAKE_GATEWAYS_KEY = "python server.py keys create gateway-1 --scope series:write --scope series:read --save FILE"
GIVE_IT = "set GATEWAY_API_KEY_FILE of the gateway to its file, and restart the gateway"


def gateway_without(
    posters: Mapping[str, Any], scopes: Collection[str], with_gateway: str | None, yes: bool
) -> str | None:
    """Return the name of a gateway whose key has to be made as well, if any; warn on stderr of what a new key changes.

    `posters` says if there ever was a key (`made`), whose keys may post reports (`may_post`), and which gateways were
    heard from (`heard`). The cases:

    1. Some key may post: nothing more is needed.
    2. --with-gateway names a gateway: its key is made as well.
    3. The new key may post itself: warn that a gateway in use needs it from now on.
    4. There was a key before: warn that no gateway may post.
    5. This is the first key, and it may not post: ask, or raise.

    Raises click.ClickException if a working gateway would be shut out, nobody can be asked, and --yes was not given.
    """
    if posters["may_post"]:
        if with_gateway:
            _say(f"no key was made for {with_gateway}: {', '.join(posters['may_post'])} may post already")
        return None
    if with_gateway:
        return with_gateway
    if "series:write" in scopes:
        if posters["heard"] and not posters["made"]:
            _say(f"{_who(posters)} has no key and needs this one from now on: {GIVE_IT}. Until then its reports wait")
        return None
    if posters["made"]:
        warn_without_gateway(posters)
        return None
    return _before_the_first(posters, yes)


def warn_without_gateway(posters: Mapping[str, Any]) -> None:
    """Warn on stderr if no gateway may post."""
    if not posters["may_post"]:
        _say(f"no key may post reports. Make the gateway's: {MAKE_GATEWAYS_KEY}; {GIVE_IT}")


def _before_the_first(posters: Mapping[str, Any], yes: bool) -> str | None:
    """Handle case 5: this key, which may not post, would be the first one."""
    told = f"this is the first key: from now on everyone needs one, and {_who(posters)} is shut out"
    if yes:
        _say(told)
    elif sys.stdin.isatty() and sys.stdout.isatty():  # not a script that reads the key
        return _asked(told)
    elif posters["heard"]:
        raise click.ClickException(
            f"{told} (its reports wait, none is lost). No key was made. First make the gateway's: {MAKE_GATEWAYS_KEY}, "
            f"and {GIVE_IT}; or add --with-gateway NAME to make both, or --yes to make this one alone."
        )
    else:
        _say(f"{told}. Make the gateway's: {MAKE_GATEWAYS_KEY}")
    return None


def _asked(told: str) -> str | None:
    _say(f"{told} until it has a key as well (its reports wait, none is lost)")
    if click.confirm("Make the gateway's key as well?", default=True, err=True):
        return str(click.prompt("Name of the gateway", default=GATEWAY, err=True))
    click.confirm("Make this key alone?", default=False, abort=True, err=True)
    return None


def _who(posters: Mapping[str, Any]) -> str:
    return ", ".join(posters["heard"]) or "a gateway"


def _say(text: str) -> None:
    click.echo(f"warning: {text}.", err=True)
