"""Client of Tidal, a gRPC inference server for long contexts.

    from tidal_client import Client, Stopping

    with Client("localhost:50051") as client:
        for piece in client.stream("Once upon a time", stopping=Stopping(max_new_tokens=64)).text():
            print(piece, end="", flush=True)

The messages that these classes stand for are in the package `tidal.inference.v1`, generated when
this one is built.
"""

from tidal_client.async_client import AsyncClient, AsyncStream
from tidal_client.channels import Tls
from tidal_client.client import Client, Stream
from tidal_client.errors import (
    AlreadyExistsError, CancelledError, DeadlineExceededError, FieldViolation, InternalError,
    InvalidArgumentError, NotFoundError, ResourceExhaustedError, TidalError, UnauthenticatedError,
    UnavailableError, UnimplementedError)
from tidal_client.types import (
    Attention, AttentionMode, Choice, Delta, EffectiveAttention, Event, Finished, FinishReason,
    Generation, HealthStatus, Limits, ModelInfo, Output, Progress, Sampling, Started, Stopping,
    Timings, TokenLogprob, Tokens, Usage)

__all__ = [
    "AlreadyExistsError", "AsyncClient", "AsyncStream", "Attention", "AttentionMode",
    "CancelledError", "Choice", "Client", "DeadlineExceededError", "Delta", "EffectiveAttention",
    "Event", "FieldViolation", "FinishReason", "Finished", "Generation", "HealthStatus",
    "InternalError", "InvalidArgumentError", "Limits", "ModelInfo", "NotFoundError", "Output",
    "Progress", "ResourceExhaustedError", "Sampling", "Started", "Stopping", "Stream", "TidalError",
    "Timings", "Tls", "TokenLogprob", "Tokens", "UnauthenticatedError", "UnavailableError",
    "UnimplementedError", "Usage",
]
