"""The errors that a user can act on, and what is said on the side."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Settings = TypeVar("Settings", bound=BaseModel)


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the argument, the requirement, what came, and what to do. The command line prints it
    without a traceback; in Python it is an ordinary `ValueError`.
    """


class UnstableDynamics(RuntimeError):
    """Molecular dynamics was stopped because the structure broke or numbers blew up; the message says which."""


def validated(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings of a kind.

    Raises:
        InputError: naming each value that does not fit, and for an unknown name the nearest.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            hint = nearest(name, kind.model_fields) if item["type"] == "extra_forbidden" else ""
            lines.append(f"`{name}`: {item['msg']}, got {item['input']!r}{hint}")
        raise InputError("\n".join(lines)) from error


@cache
def tell(text: str) -> None:
    """Says something on stderr, once."""
    print(f"ggnn-ff: {text}", file=sys.stderr, flush=True)


def nearest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the choice nearest to `word`, or an empty string."""
    close = get_close_matches(word, list(choices), n=1, cutoff=0.65)
    return f" (did you mean '{close[0]}'?)" if close else ""
