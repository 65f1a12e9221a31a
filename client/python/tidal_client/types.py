"""What requests are made of, and what answers are: plain dataclasses.

A field of a request that is None is not sent, and takes the server's default. Ranges are the
server's; docs/api.md has them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Union


class AttentionMode(str, enum.Enum):
    """How decode steps attend to the KV cache; prefill is always full attention."""

    FULL = "full"
    TIDAL = "tidal"
    QUEST = "quest"


class FinishReason(str, enum.Enum):
    END_OF_SEQUENCE = "end_of_sequence"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"


# --- requests ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. The same seed, request and model give the same tokens."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None


@dataclasses.dataclass(frozen=True)
class Stopping:
    """Without max_new_tokens a text may become as long as the context has room for."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop_strings: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool | None = None
    include_stop_in_output: bool | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """num_top_logprobs: also 0 asks for each token's own log-probability; None for none."""

    num_top_logprobs: int | None = None
    skip_special_tokens: bool | None = None


@dataclasses.dataclass(frozen=True)
class Attention:
    """token_budget: positions that a sparse layer attends, the current token among them."""

    mode: AttentionMode | str | None = None
    token_budget: int | None = None
    correction_interval: int | None = None


# --- answers -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EffectiveAttention:
    """What a request runs with. All but `mode` is 0, empty or None for full attention."""

    mode: AttentionMode
    token_budget: int
    correction_interval: int
    selection_scope: str | None  # "query_head", "kv_head" or "layer"
    sink_tokens: int
    recent_tokens: int
    full_layers: tuple[int, ...]
    selection_layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """token: its bytes, which need not be whole UTF-8. top: the most probable tokens here."""

    token_id: int
    logprob: float
    token: bytes
    top: tuple[TokenLogprob, ...]


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of all choices together; the prompt counts once."""

    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    attended_tokens: int
    available_tokens: int
    preemptions: int

    @property
    def attended_share(self) -> float:
        """The part of the context that decode steps read, 1 for full attention; NaN where there
        was no decode step."""
        if self.available_tokens == 0:
            return float("nan")
        return self.attended_tokens / self.available_tokens


@dataclasses.dataclass(frozen=True)
class Timings:
    """Measured by the server, from the request's arrival. queue + prefill + decode = end to end."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    end_to_end_seconds: float
    time_to_first_token_seconds: float  # 0 where no token was generated


@dataclasses.dataclass(frozen=True)
class Choice:
    """matched_stop: the stop string, or the id of the stop or end-of-sequence token."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    matched_stop: str | int | None


@dataclasses.dataclass(frozen=True)
class Generation:
    """The answer of generate()."""

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    attention: EffectiveAttention
    seed: int

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text


@dataclasses.dataclass(frozen=True)
class Started:
    """The request has left the queue."""

    request_id: str
    prompt_tokens: int
    cached_prompt_tokens: int
    attention: EffectiveAttention
    seed: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """A chunk of the prompt is computed."""

    prefilled_tokens: int
    total_tokens: int


@dataclasses.dataclass(frozen=True)
class Delta:
    """What came since the last delta of this choice. Text may lag behind the tokens.
    finish_reason is set in a choice's last delta."""

    choice_index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    matched_stop: str | int | None


@dataclasses.dataclass(frozen=True)
class Finished:
    """Every choice has ended; reason and stop are those of choice 0."""

    finish_reason: FinishReason | None
    matched_stop: str | int | None
    usage: Usage
    timings: Timings


Event = Union[Started, Progress, Delta, Finished]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """ids, and each token's bytes, which need not be whole UTF-8."""

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_model_len: prompt and generated tokens of one request together. kv_cache_tokens: what
    the KV cache holds, over all requests."""

    max_model_len: int
    max_batch_tokens: int
    max_running_requests: int
    max_queued_requests: int
    max_queued_tokens: int
    kv_cache_tokens: int
    max_token_budget: int


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    model_name: str
    architecture: str
    server_version: str
    device: str
    num_layers: int
    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    bos_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    default_attention: EffectiveAttention
    limits: Limits


class HealthStatus(str, enum.Enum):
    """SERVICE_UNKNOWN: the server has no service of that name."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNKNOWN = "UNKNOWN"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
