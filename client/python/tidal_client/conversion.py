"""Between the dataclasses of types.py and the messages of the API."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union

from google.protobuf.message import Message
from tidal.inference.v1 import attention_pb2, inference_pb2, model_pb2

from tidal_client import types

Prompt = Union[str, Sequence[int]]
Output = Union[inference_pb2.Choice, inference_pb2.GenerateStreamResponse.Delta]
Request = TypeVar("Request", inference_pb2.GenerateRequest, inference_pb2.GenerateStreamRequest)
Dataclass = TypeVar("Dataclass")


# --- requests ------------------------------------------------------------------------------------


def _fill(message: Message, options: Any) -> None:
    """Copies what is not None, or empty, into the fields of the same names."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None:
            continue
        if isinstance(value, Mapping):
            getattr(message, field.name).update(value)
        elif isinstance(value, (list, tuple)):
            getattr(message, field.name).extend(value)
        else:
            setattr(message, field.name, value)


def _fill_attention(message: attention_pb2.AttentionOptions, options: types.Attention) -> None:
    if options.mode is not None:
        mode = types.AttentionMode(options.mode)
        message.MergeFrom(attention_pb2.AttentionOptions(mode=f"ATTENTION_MODE_{mode.name}"))
    _fill(message, dataclasses.replace(options, mode=None))


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """All that a generation takes besides its prompt."""

    sampling: types.Sampling | None = None
    stopping: types.Stopping | None = None
    output: types.Output | None = None
    attention: types.Attention | None = None
    request_id: str = ""
    priority: int | None = None
    cache_salt: str = ""
    num_choices: int | None = None


def fill_request(request: Request, prompt: Prompt, options: GenerationOptions) -> Request:
    """Raises ValueError or TypeError for what the API's types cannot hold."""
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    for name in ("sampling", "stopping", "output"):
        part = getattr(options, name)
        if part is not None:
            getattr(request, name).SetInParent()
            _fill(getattr(request, name), part)
    if options.attention is not None:
        _fill_attention(request.attention, options.attention)
    request.request_id = options.request_id
    request.cache_salt = options.cache_salt
    for name in ("priority", "num_choices"):
        if getattr(options, name) is not None:
            setattr(request, name, getattr(options, name))
    return request


def tokenize_request(text: str, add_special_tokens: bool | None) -> inference_pb2.TokenizeRequest:
    request = inference_pb2.TokenizeRequest(text=text)
    if add_special_tokens is not None:
        request.add_special_tokens = add_special_tokens
    return request


def detokenize_request(token_ids: Sequence[int],
                       skip_special_tokens: bool | None) -> inference_pb2.DetokenizeRequest:
    request = inference_pb2.DetokenizeRequest(token_ids=token_ids)
    if skip_special_tokens is not None:
        request.skip_special_tokens = skip_special_tokens
    return request


# --- answers -------------------------------------------------------------------------------------


def _same_fields(kind: type, message: Message) -> dict[str, Any]:
    """The fields that a dataclass has of a message's scalars, under their names."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields
            if field.name in names and field.message_type is None}


def _scalars(kind: type[Dataclass], message: Message) -> Dataclass:
    """A dataclass of scalars and lists of them only."""
    values = _same_fields(kind, message)
    return kind(**{name: value if isinstance(value, (str, bytes, int, float)) else tuple(value)
                   for name, value in values.items()})


def effective_attention(message: attention_pb2.EffectiveAttention) -> types.EffectiveAttention:
    mode = attention_pb2.AttentionMode.Name(message.mode).removeprefix("ATTENTION_MODE_")
    scope = None
    if message.selection_scope:
        name = attention_pb2.SelectionScope.Name(message.selection_scope)
        scope = name.removeprefix("SELECTION_SCOPE_").lower()
    return types.EffectiveAttention(
        mode=types.AttentionMode[mode], token_budget=message.token_budget,
        correction_interval=message.correction_interval, selection_scope=scope,
        sink_tokens=message.sink_tokens, recent_tokens=message.recent_tokens,
        full_layers=tuple(message.full_layers), selection_layers=tuple(message.selection_layers))


def _finish_reason(value: int) -> types.FinishReason | None:
    if value == inference_pb2.FINISH_REASON_UNSPECIFIED:
        return None
    return types.FinishReason[inference_pb2.FinishReason.Name(value).removeprefix("FINISH_REASON_")]


def _matched_stop(
        message: Output | inference_pb2.GenerateStreamResponse.Finished) -> str | int | None:
    kind = message.matched_stop.WhichOneof("stop")
    return None if kind is None else getattr(message.matched_stop, kind)


def _logprobs(messages: Sequence[inference_pb2.TokenLogprob]) -> tuple[types.TokenLogprob, ...]:
    return tuple(types.TokenLogprob(one.token_id, one.logprob, one.token, _logprobs(one.top))
                 for one in messages)


def _output(message: Output) -> dict[str, Any]:
    """What a choice and a delta have in common."""
    return {"text": message.text, "token_ids": tuple(message.token_ids),
            "logprobs": _logprobs(message.logprobs),
            "finish_reason": _finish_reason(message.finish_reason),
            "matched_stop": _matched_stop(message)}


def generation(message: inference_pb2.GenerateResponse) -> types.Generation:
    return types.Generation(
        request_id=message.request_id,
        choices=tuple(types.Choice(index=one.index, **_output(one)) for one in message.choices),
        usage=_scalars(types.Usage, message.usage),
        timings=_scalars(types.Timings, message.timings),
        attention=effective_attention(message.attention), seed=message.seed)


def event(message: inference_pb2.GenerateStreamResponse) -> types.Event | None:
    """None for an event of a newer server that is not known here."""
    kind = message.WhichOneof("event")
    if kind is None:
        return None
    one = getattr(message, kind)
    if kind == "started":
        return types.Started(attention=effective_attention(one.attention),
                             **_same_fields(types.Started, one))
    if kind == "progress":
        return _scalars(types.Progress, one)
    if kind == "delta":
        return types.Delta(choice_index=one.choice_index, **_output(one))
    return types.Finished(finish_reason=_finish_reason(one.finish_reason),
                          matched_stop=_matched_stop(one), usage=_scalars(types.Usage, one.usage),
                          timings=_scalars(types.Timings, one.timings))


def tokens(message: inference_pb2.TokenizeResponse) -> types.Tokens:
    return types.Tokens(tuple(message.token_ids), tuple(message.tokens))


def model_info(message: model_pb2.GetModelInfoResponse) -> types.ModelInfo:
    values = _same_fields(types.ModelInfo, message)
    values.update(bos_token_ids=tuple(message.bos_token_ids),
                  eos_token_ids=tuple(message.eos_token_ids))
    return types.ModelInfo(default_attention=effective_attention(message.default_attention),
                           limits=_scalars(types.Limits, message.limits), **values)
