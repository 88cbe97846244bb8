"""From options to a server that runs until it is told to stop."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial

import uvicorn

from foresight.media import UNTRUSTED
from foresight.models.stack_file import load_config
from foresight.runtime.access import AccessRules
from foresight.runtime.decoding import ClipDecoder
from foresight.runtime.engine_check import check_engine
from foresight.runtime.engine_models import load_served_models
from foresight.runtime.engine_worker import EngineWorker
from foresight.runtime.http_protocol import DeadlineProtocol
from foresight.runtime.metrics import Metrics
from foresight.runtime.server import DrainingServer
from foresight.runtime.server_log import configure_log
from foresight.runtime.server_options import ServeError, ServeOptions, is_loopback
from foresight.runtime.service import create_app
from foresight.runtime.service_state import RequestCeilings, ServiceState

__all__ = ["serve"]

_MAX_MESSAGE = 2**23
_MAX_CONNECTIONS = 256


def serve(options: ServeOptions, *, own_process: bool = False) -> None:
    """Serve until a signal has drained the server; raises ValueError in one line where it cannot be started."""
    options.check()
    load_config(options.stack)
    check_engine(options)
    configure_log(as_json=options.log_json)
    state = _state(options, own_process=own_process)
    with _listening_socket(options) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(state, _rules(options)),
            http=DeadlineProtocol,
            ws="websockets-sansio",
            ws_max_size=_MAX_MESSAGE,
            # A client whose frames wait for the models answers pings no sooner than those are read.
            ws_ping_timeout=60.0,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        server = DrainingServer(config, state, drain_seconds=options.drain_seconds)
        print(f"foresight-serve: listening on http://{_shown(options.host)}:{port}", flush=True)
        server.run(sockets=[listener])
    if state.worker.failure is not None:
        raise state.worker.failure


def _state(options: ServeOptions, *, own_process: bool) -> ServiceState:
    clip = replace(UNTRUSTED, max_bytes=options.max_upload_mib * 2**20)
    limits = RequestCeilings(
        clip=clip, queue=options.queue, sessions=options.sessions, max_steps=options.max_steps
    )
    metrics = Metrics()
    load = partial(load_served_models, options, own_process=own_process)
    worker = EngineWorker(load, queue_size=options.queue, metrics=metrics)
    return ServiceState(worker=worker, decoder=ClipDecoder(clip), metrics=metrics, limits=limits)


def _rules(options: ServeOptions) -> AccessRules:
    keys = (options.api_key,) if options.api_key is not None else ()
    if is_loopback(options.host):
        return AccessRules.on_loopback(
            keys=keys, origins=options.allow_origin, names=(options.host, *options.allow_hostname)
        )
    return AccessRules(keys=keys, origins=options.allow_origin, hostnames=options.allow_hostname or None)


def _listening_socket(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        where = f"{options.host}:{options.port}"
        raise ServeError(
            f"{where}: cannot be listened on ({error.strerror}); choose another --port"
        ) from error
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
