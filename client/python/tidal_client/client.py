"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidal.inference.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

from tidal_client import channels, conversion, errors, types
from tidal_client.conversion import GenerationOptions, Prompt


class Stream:
    """The events of one generation, as they come. Iterating raises a TidalError where the call
    fails. Leaving a `with` block, or cancel(), ends a generation that is not over."""

    def __init__(self, call: Any):  # a grpc.Call, and an iterator of messages
        self._call = call

    def __iter__(self) -> Iterator[types.Event]:
        with errors.translated():
            for message in self._call:
                event = conversion.event(message)
                if event is not None:
                    yield event

    def text(self) -> Iterator[str]:
        """The text of the first choice, piece by piece."""
        for event in self:
            if isinstance(event, types.Delta) and event.choice_index == 0 and event.text:
                yield event.text

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """A connection to a server, for any number of threads. Methods raise a TidalError where their
    call fails; timeouts are seconds, and None waits for ever.

    target: "host:port", "dns:///host:port" (all addresses, in turn) or "unix:path".
    tls: encryption; None for none. token: sent as a bearer token with each call; without tls it
    can be read on the network.
    """

    def __init__(self, target: str = "localhost:50051", *, tls: channels.Tls | None = None,
                 token: str | None = None):
        options = channels.channel_options(tls)
        self._channel = (grpc.insecure_channel(target, options) if tls is None else
                         grpc.secure_channel(target, tls.credentials(), options))
        self._metadata = channels.call_metadata(token)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._model = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def close(self) -> None:
        """Ends the connection, and calls in flight with CancelledError."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, prompt: Prompt, *, sampling: types.Sampling | None = None,
                 stopping: types.Stopping | None = None, output: types.Output | None = None,
                 attention: types.Attention | None = None, request_id: str = "",
                 priority: int | None = None, cache_salt: str = "",
                 num_choices: int | None = None, timeout: float | None = None) -> types.Generation:
        """The whole answer, when it is complete. prompt: text, or token ids."""
        options = GenerationOptions(sampling, stopping, output, attention, request_id, priority,
                                    cache_salt, num_choices)
        request = conversion.fill_request(inference_pb2.GenerateRequest(), prompt, options)
        with errors.translated():
            answer = self._inference.Generate(request, timeout=timeout, metadata=self._metadata)
        return conversion.generation(answer)

    def stream(self, prompt: Prompt, *, sampling: types.Sampling | None = None,
               stopping: types.Stopping | None = None, output: types.Output | None = None,
               attention: types.Attention | None = None, request_id: str = "",
               priority: int | None = None, cache_salt: str = "",
               num_choices: int | None = None, timeout: float | None = None) -> Stream:
        """Begins a generation; its events come as the stream is iterated."""
        options = GenerationOptions(sampling, stopping, output, attention, request_id, priority,
                                    cache_salt, num_choices)
        request = conversion.fill_request(inference_pb2.GenerateStreamRequest(), prompt, options)
        return Stream(self._inference.GenerateStream(request, timeout=timeout,
                                                     metadata=self._metadata))

    def tokenize(self, text: str, *, add_special_tokens: bool | None = None,
                 timeout: float | None = None) -> types.Tokens:
        """With the begin-of-sequence token, unless add_special_tokens is False."""
        request = conversion.tokenize_request(text, add_special_tokens)
        with errors.translated():
            answer = self._inference.Tokenize(request, timeout=timeout, metadata=self._metadata)
        return conversion.tokens(answer)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None,
                   timeout: float | None = None) -> str:
        """Without special tokens, unless skip_special_tokens is False."""
        request = conversion.detokenize_request(token_ids, skip_special_tokens)
        with errors.translated():
            answer = self._inference.Detokenize(request, timeout=timeout, metadata=self._metadata)
        return str(answer.text)

    def model_info(self, *, timeout: float | None = None) -> types.ModelInfo:
        """The model, the default attention, the limits."""
        with errors.translated():
            answer = self._model.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=timeout,
                                              metadata=self._metadata)
        return conversion.model_info(answer)

    def health(self, service: str = "", *, timeout: float | None = 5) -> types.HealthStatus:
        """service: "", "readiness", "liveness", or a service's full name."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            with errors.translated():
                answer = self._health.Check(request, timeout=timeout)
        except errors.NotFoundError:
            return types.HealthStatus.SERVICE_UNKNOWN
        return types.HealthStatus[health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)]
