"""Bearer tokens (RFC 6750): what one looks like, how it travels, and the file that holds several."""

from __future__ import annotations

import re
from pathlib import Path

from softkin.errors import InvalidInputError

METADATA_KEY = "authorization"
SCHEME = "Bearer"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # section 2.1
_ALPHABET = "letters, digits and any of - . _ ~ + /, then = to pad it"


def authorization(token: str) -> str:
    """The value of the metadata `authorization` for a token.

    Raises:
        InvalidInputError: the token is no text, or has characters that no token may have. The message does not show it.
    """
    if not isinstance(token, str):
        raise InvalidInputError("token", f"is of type {type(token).__name__}; must be text")
    if not _TOKEN.fullmatch(token):
        raise InvalidInputError("token", f"has characters that a token may not have; allowed: {_ALPHABET}")
    return f"{SCHEME} {token}"


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one a line; empty lines and lines that begin with `#` are left out.

    Returns:
        At least one token, in the order of the file.

    Raises:
        InvalidInputError: the file cannot be read, has no token, or has a line that is none. The message names the
            line and does not show it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as e:
        raise InvalidInputError("token_file", f"{path}: cannot be read ({e.strerror}); check path and rights") from None
    except UnicodeDecodeError:
        raise InvalidInputError("token_file", f"{path}: not a text file; write one token a line") from None
    tokens = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if not _TOKEN.fullmatch(line):
            raise InvalidInputError("token_file", f"{path}: line {number} is no token; allowed: {_ALPHABET}")
        tokens.append(line)
    if not tokens:
        raise InvalidInputError("token_file", f"{path}: has no token; write at least one, one a line")
    return tuple(tokens)
