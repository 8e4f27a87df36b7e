"""Every error that softkin raises on purpose.

    SoftkinError
      InvalidInputError      the caller's arrays or arguments are wrong; retrying cannot help
      MessageTooLargeError   a message has more bytes than the server takes
      NotFoundError          no detector of that name and version
      AuthenticationError    the caller has no valid token, or may not do this
      ConflictError          that name and version is loaded already
      PreconditionError      the server's state forbids the change that was asked for
      UnsupportedError       the server was started without what was asked for; it will not do so later either
      BundleError            a bundle on disk is damaged, inconsistent or of an unknown format
      StateError             what a server keeps between restarts cannot be read or written
      DeviceError            the device asked for is not there, or failed
      CancelledError         the caller stopped a call that was running
      ExpiredError           the caller's deadline passed before there was a result
      UnavailableError       the service cannot answer now; a retry may succeed
        OverloadedError      too much work is pending; retry after the stated delay
          UnmeetableError    what is pending leaves no time for this deadline
      DataError              rows or labels given for training, bank or calibration are unfit
      RecipeError            a training recipe does not parse or contradicts itself
      ExportError            the exported model does not reproduce the trained one

No error knows a transport: `statuses.py` maps each to a status in one table.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from typing import Any


def reason_of(error: Exception) -> str:
    """What went wrong, without the path that the text of an OSError repeats: our messages begin with it."""
    return getattr(error, "strerror", None) or str(error)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, as protobuf needs: file names may hold surrogates, for other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(values: Iterable[object]) -> str:
    """Values for a message: names in quotes, with commas between them."""
    return ", ".join(map(repr, values))


class SoftkinError(Exception):
    """Base of all errors raised by softkin. All of them can be pickled: process pools hand them on."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own `__reduce__` calls the class with the arguments of `super().__init__`, which are not its own.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class InvalidInputError(SoftkinError):
    """The caller's arrays or arguments are wrong.

    Args:
        field: which argument or request field.
        message: what is wrong with the offending value, what is allowed, and the remedy.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class MessageTooLargeError(SoftkinError):
    """A message has more bytes than the server takes."""


class NotFoundError(SoftkinError):
    """No detector of that name and version is loaded."""


class AuthenticationError(SoftkinError):
    """The caller has no valid token, or may not do this."""


class ConflictError(SoftkinError):
    """That name and version is loaded already."""


class PreconditionError(SoftkinError):
    """The server's state forbids the change that was asked for; the message says what to do first."""


class UnsupportedError(SoftkinError):
    """The server was started without what was asked for: no retry helps; the message says what does the same."""


class BundleError(SoftkinError):
    """A bundle is damaged, inconsistent or of an unknown format; the message names the file."""


class StateError(SoftkinError):
    """What a server keeps between restarts cannot be read or written; the message names the file."""


class DeviceError(SoftkinError):
    """The device asked for is missing, or failed while running."""


class CancelledError(SoftkinError):
    """The caller stopped the computation: nothing failed, and there is no result."""

    def __init__(self) -> None:
        super().__init__("cancelled by the caller; there is no result")


class ExpiredError(SoftkinError):
    """The caller's deadline passed: nothing failed, and there is no result."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before there was a result")


class UnavailableError(SoftkinError):
    """The service cannot answer now; a retry may succeed.

    Args:
        message: why.
        retry_after_seconds: how long to wait before the next try, where that is known.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(UnavailableError):
    """Too much work is pending.

    Args:
        message: the limit that was hit.
        retry_after_seconds: how long to wait before the next try.
    """

    retry_after_seconds: float

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message, retry_after_seconds)


class UnmeetableError(OverloadedError):
    """What is pending leaves no time for this deadline."""


class DataError(SoftkinError):
    """Rows or labels given for training, bank or calibration are unfit."""


class RecipeError(SoftkinError):
    """A training recipe does not parse or contradicts itself; the message names file, section and key."""


class ExportError(SoftkinError):
    """The exported model does not reproduce the trained one."""
