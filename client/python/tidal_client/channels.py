"""How a server is reached: encryption, tokens, keepalive."""

from __future__ import annotations

import dataclasses
import pathlib

import grpc

# Log-probabilities of a long answer are far larger than gRPC's default limit of 4 MiB.
_MAX_RECEIVED_BYTES = 256 << 20
# Servers take pings every 10 s, by default; they keep idle connections open through balancers.
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 20_000


@dataclasses.dataclass(frozen=True)
class Tls:
    """Encryption. Without ca_file gRPC's own list of authorities is used; cert_file and key_file,
    both in PEM, are for servers that ask for a client's certificate. server_name: the name in the
    server's certificate, where it is not the one that is called."""

    ca_file: str | pathlib.Path | None = None
    cert_file: str | pathlib.Path | None = None
    key_file: str | pathlib.Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("Tls: cert_file and key_file belong together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError where one cannot be read."""
        contents = [None if path is None else pathlib.Path(path).read_bytes()
                    for path in (self.ca_file, self.key_file, self.cert_file)]
        return grpc.ssl_channel_credentials(*contents)


def channel_options(tls: Tls | None) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", _MAX_RECEIVED_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.lb_policy_name", "round_robin"),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def call_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)
