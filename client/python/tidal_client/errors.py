"""Errors of calls, a class for each gRPC status code that the server uses."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


@dataclasses.dataclass(frozen=True)
class FieldViolation:
    """field: its path in the request, as in "sampling.top_p"."""

    field: str
    description: str


class TidalError(Exception):
    """A call that failed.

    code: gRPC's status code. message: the server's, or gRPC's where it was not reached.
    field_violations: what is wrong with the request, where the server says so.
    retry_after_seconds: when the server asks to be called again, or None.
    """

    def __init__(self, code: grpc.StatusCode, message: str,
                 field_violations: tuple[FieldViolation, ...] = (),
                 retry_after_seconds: float | None = None):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.field_violations = field_violations
        self.retry_after_seconds = retry_after_seconds


class InvalidArgumentError(TidalError):
    """A field is wrong, or the request can never fit."""


class UnimplementedError(TidalError):
    """A field or value that this server does not serve."""


class AlreadyExistsError(TidalError):
    """The request id is that of a request still running."""


class NotFoundError(TidalError):
    """No such request is running."""


class UnauthenticatedError(TidalError):
    """The server wants a token, and got no valid one."""


class ResourceExhaustedError(TidalError):
    """A queue, a token limit or a client's limit is reached: call again later."""


class UnavailableError(TidalError):
    """The server is not reached, or is loading or draining: call another one."""


class DeadlineExceededError(TidalError):
    """The timeout passed, or would pass before the first token."""


class CancelledError(TidalError):
    """The call was cancelled, here or by an operator."""


class InternalError(TidalError):
    """A fault of the server."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def _details_of(error: grpc.RpcError) -> list[any_pb2.Any]:
    """The google.rpc messages in a status, or none where they cannot be read: the status itself
    holds without them."""
    metadata = cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ())
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            with contextlib.suppress(DecodeError):
                return list(status_pb2.Status.FromString(value).details)
    return []


def from_rpc_error(error: grpc.RpcError) -> TidalError:
    violations: tuple[FieldViolation, ...] = ()
    retry_after_seconds = None
    for detail in _details_of(error):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(detail.value)
            violations = tuple(FieldViolation(one.field, one.description)
                               for one in bad_request.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after_seconds = delay.seconds + delay.nanos / 1e9
    code = error.code()
    return _CLASSES.get(code, TidalError)(code, error.details() or "", violations,
                                          retry_after_seconds)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns gRPC's errors into ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
