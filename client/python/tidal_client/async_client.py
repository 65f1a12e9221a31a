"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidal.inference.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

from tidal_client import channels, conversion, errors, types
from tidal_client.conversion import GenerationOptions, Prompt


class AsyncStream:
    """As Stream, for `async for` and `async with`."""

    def __init__(self, call: Any):  # a grpc.aio.UnaryStreamCall
        self._call = call
        self._is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[types.Event]:
        try:
            with errors.translated():
                async for message in self._call:
                    event = conversion.event(message)
                    if event is not None:
                        yield event
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise  # the task is cancelled, not the call alone
            raise errors.CancelledError(grpc.StatusCode.CANCELLED,
                                        "cancelled by the caller") from None

    async def text(self) -> AsyncIterator[str]:
        """The text of the first choice, piece by piece."""
        async for event in self:
            if isinstance(event, types.Delta) and event.choice_index == 0 and event.text:
                yield event.text

    def cancel(self) -> None:
        self._is_cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncClient:
    """As Client, for one event loop: make it in a coroutine."""

    def __init__(self, target: str = "localhost:50051", *, tls: channels.Tls | None = None,
                 token: str | None = None):
        options = channels.channel_options(tls)
        self._channel = (grpc.aio.insecure_channel(target, options) if tls is None else
                         grpc.aio.secure_channel(target, tls.credentials(), options))
        self._metadata = channels.call_metadata(token)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._model = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Ends the connection, and calls in flight with it."""
        await self._channel.close(grace=None)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(self, prompt: Prompt, *, sampling: types.Sampling | None = None,
                       stopping: types.Stopping | None = None, output: types.Output | None = None,
                       attention: types.Attention | None = None, request_id: str = "",
                       priority: int | None = None, cache_salt: str = "",
                       num_choices: int | None = None,
                       timeout: float | None = None) -> types.Generation:
        """The whole answer, when it is complete. prompt: text, or token ids."""
        options = GenerationOptions(sampling, stopping, output, attention, request_id, priority,
                                    cache_salt, num_choices)
        request = conversion.fill_request(inference_pb2.GenerateRequest(), prompt, options)
        with errors.translated():
            answer = await self._inference.Generate(request, timeout=timeout,
                                                    metadata=self._metadata)
        return conversion.generation(answer)

    def stream(self, prompt: Prompt, *, sampling: types.Sampling | None = None,
               stopping: types.Stopping | None = None, output: types.Output | None = None,
               attention: types.Attention | None = None, request_id: str = "",
               priority: int | None = None, cache_salt: str = "",
               num_choices: int | None = None, timeout: float | None = None) -> AsyncStream:
        """Begins a generation; its events come as the stream is iterated."""
        options = GenerationOptions(sampling, stopping, output, attention, request_id, priority,
                                    cache_salt, num_choices)
        request = conversion.fill_request(inference_pb2.GenerateStreamRequest(), prompt, options)
        return AsyncStream(self._inference.GenerateStream(request, timeout=timeout,
                                                          metadata=self._metadata))

    async def tokenize(self, text: str, *, add_special_tokens: bool | None = None,
                       timeout: float | None = None) -> types.Tokens:
        """With the begin-of-sequence token, unless add_special_tokens is False."""
        request = conversion.tokenize_request(text, add_special_tokens)
        with errors.translated():
            answer = await self._inference.Tokenize(request, timeout=timeout,
                                                    metadata=self._metadata)
        return conversion.tokens(answer)

    async def detokenize(self, token_ids: Sequence[int], *,
                         skip_special_tokens: bool | None = None,
                         timeout: float | None = None) -> str:
        """Without special tokens, unless skip_special_tokens is False."""
        request = conversion.detokenize_request(token_ids, skip_special_tokens)
        with errors.translated():
            answer = await self._inference.Detokenize(request, timeout=timeout,
                                                      metadata=self._metadata)
        return str(answer.text)

    async def model_info(self, *, timeout: float | None = None) -> types.ModelInfo:
        """The model, the default attention, the limits."""
        with errors.translated():
            answer = await self._model.GetModelInfo(model_pb2.GetModelInfoRequest(),
                                                    timeout=timeout, metadata=self._metadata)
        return conversion.model_info(answer)

    async def health(self, service: str = "", *,
                     timeout: float | None = 5) -> types.HealthStatus:
        """service: "", "readiness", "liveness", or a service's full name."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            with errors.translated():
                answer = await self._health.Check(request, timeout=timeout)
        except errors.NotFoundError:
            return types.HealthStatus.SERVICE_UNKNOWN
        return types.HealthStatus[health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)]
