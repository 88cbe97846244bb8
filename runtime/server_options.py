"""What the user of `foresight-serve` can choose; knows no model and imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foresight.runtime.config import BackendChoice, check_backend
from foresight.runtime.device import check_device_name

__all__ = ["ServeError", "ServeOptions", "is_loopback"]


class ServeError(ValueError):
    """The server cannot be started as asked; the message is one line: what, why, what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Serve reconstructions of clips and of live video over HTTP and WebSocket."""

    adapter: Annotated[Path | None, tyro.conf.arg(metavar="ADAPTER.engine|FOLDER")] = None
    """An engine file or a checkpoint folder; the stack's own adapters where none is given."""

    stack: Annotated[str, tyro.conf.arg(metavar="nano|full|FOLDER")] = "nano"
    """Which frozen models to use."""

    random_weights: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not load weights but draw them at random: right timings, meaningless pictures."""

    backend: BackendChoice | None = None
    """What runs the adapter; by default the best that can here. Without an engine: fused or eager."""

    engine_sha256: Annotated[str | None, tyro.conf.arg(metavar="HEX")] = None
    """Serve the engine only if its file has this SHA-256."""

    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|cuda:N")] = "auto"
    """Where to run; auto takes a GPU if there is one."""

    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs --api-key or --allow-open-host."""

    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""

    api_key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """Key that every route but /health asks for; better given as FORESIGHT_API_KEY, which `ps` does not show."""

    allow_open_host: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Listen on another host than this machine's own without a key: whoever reaches the port is served."""

    allow_origin: tuple[str, ...] = ()
    """Web origins, such as https://example.org, whose pages may post clips and open streams."""

    allow_hostname: tuple[str, ...] = ()
    """Further names under which browsers may address this server when it listens on loopback."""

    queue: int = 8
    """Clips that may wait while one is reconstructed; further ones are told to come back (429)."""

    sessions: int = 2
    """Live streams at a time."""

    max_steps: int = 16
    """Most denoising steps that a client may ask for."""

    max_upload_mib: int = 64
    """Largest clip, in MiB."""

    drain_seconds: float = 60.0
    """How long requests may go on after SIGTERM."""

    log_json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Log one JSON object a line."""

    def check(self) -> None:
        """Raise ServeError or ReconstructError, one line, for what cannot be served or should not be.

        Not done as the options are made, because tyro would frame the message in a box.
        """
        check_device_name(self.device)
        if not 0 <= self.port <= 65535:
            raise ServeError(f"port {self.port}: must be from 0 to 65535")
        for name in ("queue", "sessions", "max_steps", "max_upload_mib", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise ServeError(f"{name} {getattr(self, name)}: must be positive")
        if self.api_key is not None and not _is_key(self.api_key):
            raise ServeError("api_key: must be at least 8 printable ASCII characters without spaces")
        for origin in self.allow_origin:
            if "://" not in origin or origin.endswith("/"):
                raise ServeError(f"allow_origin {origin!r}: must be scheme://host[:port], and * is not taken")
        if self.adapter is None and self.engine_sha256 is not None:
            raise ServeError("engine_sha256: pins an engine; give one with --adapter")
        if self.adapter is not None and not self.adapter.exists():
            raise ServeError(f"{self.adapter}: there is no such engine or checkpoint folder")
        check_backend(self.backend, self.adapter)
        if self.api_key is None and not self.allow_open_host and not is_loopback(self.host):
            raise ServeError(
                f"host {self.host}: others can reach it; give --api-key, or --allow-open-host to serve anybody"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost are taken to be open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_key(key: str) -> bool:
    return len(key) >= 8 and key.isascii() and key.isprintable() and " " not in key
