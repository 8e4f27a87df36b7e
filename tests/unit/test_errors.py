from __future__ import annotations

import pickle

import grpc
import pytest

from softkin import errors
from softkin.statuses import STATUS_CODES, failure, status_code

Code = grpc.StatusCode
EXPECTED = {
    "AuthenticationError": Code.UNAUTHENTICATED,
    "BundleError": Code.INTERNAL,
    "CancelledError": Code.CANCELLED,
    "ConflictError": Code.ALREADY_EXISTS,
    "DataError": Code.INTERNAL,
    "DeviceError": Code.UNAVAILABLE,
    "ExportError": Code.INTERNAL,
    "ExpiredError": Code.DEADLINE_EXCEEDED,
    "InvalidInputError": Code.INVALID_ARGUMENT,
    "MessageTooLargeError": Code.RESOURCE_EXHAUSTED,
    "NotFoundError": Code.NOT_FOUND,
    "OverloadedError": Code.RESOURCE_EXHAUSTED,
    "PreconditionError": Code.FAILED_PRECONDITION,
    "RecipeError": Code.INTERNAL,
    "SoftkinError": Code.INTERNAL,
    "StateError": Code.INTERNAL,
    "UnavailableError": Code.UNAVAILABLE,
    "UnmeetableError": Code.RESOURCE_EXHAUSTED,
    "UnsupportedError": Code.UNIMPLEMENTED,
}


def family(cls):
    """The class and all that derive from it."""
    return {cls} | {c for sub in cls.__subclasses__() for c in family(sub)}


def test_every_error_has_a_status_of_its_own():
    """A new error must be given one, not inherit it by accident."""
    ours = {c for c in family(errors.SoftkinError) if c.__module__.startswith("softkin")}

    assert {c.__name__: STATUS_CODES[c] for c in ours} == EXPECTED


def test_status_codes_follow_the_table_and_what_is_not_ours_is_internal():
    """Also for a subclass that someone else derives."""

    class Derived(errors.NotFoundError):
        pass

    found = [
        status_code(e)
        for e in (
            errors.OverloadedError("full", 1.0),
            errors.InvalidInputError("alpha", "wrong"),
            Derived("x"),
            ValueError("x"),
            errors.CancelledError(),
        )
    ]

    assert found == [Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.INTERNAL, Code.CANCELLED]


def test_an_invalid_input_error_keeps_field_and_message_apart():
    """Callers show the message beside the field."""
    e = errors.InvalidInputError("inputs.data", "has 3 bytes")

    assert (e.field, e.message, str(e)) == ("inputs.data", "has 3 bytes", "inputs.data: has 3 bytes")


def test_one_except_clause_catches_all():
    """Everything that softkin raises on purpose is a SoftkinError, and an overload is a kind of unavailability."""
    assert all(issubclass(getattr(errors, name), errors.SoftkinError) for name in EXPECTED)
    with pytest.raises(errors.UnavailableError):
        raise errors.OverloadedError("full", 1.0)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInputError("alpha", "got 2"),
        errors.OverloadedError("full", 0.5),
        errors.UnavailableError("gone", 1.5),
        errors.CancelledError(),
        errors.ExpiredError(),
        errors.BundleError("damaged"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_survives_the_way_out_of_a_process(error):
    """A pool of processes would otherwise lose it, and wait for its result for ever."""
    found = pickle.loads(pickle.dumps(error))

    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.OverloadedError("full", 0.5), "queue_full"),
        (errors.UnmeetableError("late", 0.5), "unmeetable"),
        (errors.MessageTooLargeError("large"), "too_large"),
    ],
)
def test_metrics_tell_a_full_queue_from_a_deadline_that_cannot_be_met_and_a_message_too_large(error, reason):
    """All three are RESOURCE_EXHAUSTED; what to do about them differs."""
    found = failure(error, "Score")

    assert (found.code, found.reason) == (Code.RESOURCE_EXHAUSTED, reason)
