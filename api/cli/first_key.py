"""What the first key of a server does: from then on everyone needs one, and a gateway that has none is shut out."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import click

GATEWAY_SCOPES = ("series:write", "series:read")
GATEWAY = "gateway-1"
MAKE_GATEWAYS_KEY = "python server.py keys create gateway-1 --scope series:write --scope series:read --save FILE"
GIVE_IT = "its file as GATEWAY_API_KEY_FILE to the gateway, which is then started again"


def gateway_without(
    posters: Mapping[str, Any], scopes: Collection[str], with_gateway: str | None, yes: bool
) -> str | None:
    """The name of a gateway whose key has to be made, too. Says on stderr what a new key of these scopes does.

    `posters`: whether there ever was a key (`made`), whose may post (`may_post`), which gateways were heard of
    (`heard`).
    Raises click.ClickException where a gateway that works would be shut out, and nobody can be asked or has said --yes.
    """
    if posters["may_post"]:
        if with_gateway:
            _say(f"no key was made for {with_gateway}: those of {', '.join(posters['may_post'])} may post")
        return None
    if with_gateway:
        return with_gateway
    if "series:write" in scopes:
        if posters["heard"] and not posters["made"]:
            _say(f"{_who(posters)} has no key, and from now on needs this one: {GIVE_IT}. Until then its reports wait")
        return None
    if posters["made"]:
        warn_without_gateway(posters)
        return None
    return _before_the_first(posters, yes)


def warn_without_gateway(posters: Mapping[str, Any]) -> None:
    """Say on stderr that no gateway may post, where that is so."""
    if not posters["may_post"]:
        _say(f"no key may post reports. For the gateway: {MAKE_GATEWAYS_KEY}; {GIVE_IT}")


def _before_the_first(posters: Mapping[str, Any], yes: bool) -> str | None:
    """This key, which may not post, would be the first."""
    told = f"from this first key on everyone needs one, and none may post reports: {_who(posters)} is shut out"
    if yes:
        _say(told)
    elif sys.stdin.isatty() and sys.stdout.isatty():  # no script that catches the key
        return _asked(told)
    elif posters["heard"]:
        raise click.ClickException(
            f"{told} (its reports wait, none is lost). No key was made. First {MAKE_GATEWAYS_KEY}, and {GIVE_IT}; or "
            "add --with-gateway NAME to make both, or --yes."
        )
    else:
        _say(f"{told}. For the gateway: {MAKE_GATEWAYS_KEY}")
    return None


def _asked(told: str) -> str | None:
    _say(f"{told} until it has a key, too (its reports wait, none is lost)")
    if click.confirm("Make the gateway's key as well?", default=True, err=True):
        return str(click.prompt("Name of the gateway", default=GATEWAY, err=True))
    click.confirm("Make this key alone?", default=False, abort=True, err=True)
    return None


def _who(posters: Mapping[str, Any]) -> str:
    return ", ".join(posters["heard"]) or "a gateway"


def _say(text: str) -> None:
    click.echo(f"warning: {text}.", err=True)
