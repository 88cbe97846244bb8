"""Whether an engine is worth loading models for, asked of its file alone before the server listens."""

from __future__ import annotations

from foresight.runtime.device import find_device
from foresight.runtime.server_options import ServeOptions

__all__ = ["check_engine"]


def check_engine(options: ServeOptions) -> None:
    """Refuse an engine that is damaged, is not the pinned one or was made for another stack; nothing is loaded.

    Without an engine, or with a checkpoint folder, there is nothing to check. A stack whose parts are the
    hub's is known only once it is there, so that its engine is held against it as the models load. Raises
    EngineError or StackError in one line, and ReconstructError for a bare plan's device that is not there.
    """
    path = options.adapter
    if path is None or path.is_dir():
        return
    # Torch comes with these; a server without an engine listens before it imports it.
    from foresight.adapters import EngineFile, is_engine_archive, read_bare_plan
    from foresight.models.fingerprint import local_fingerprint

    if not is_engine_archive(path):
        from foresight.runtime.backend_choice import check_plan_device

        check_plan_device(path, find_device(options.device))
        read_bare_plan(path, expected_sha256=options.engine_sha256)
        return
    with EngineFile(path, expected_sha256=options.engine_sha256) as engine:
        fingerprint = local_fingerprint(options.stack, random_weights=options.random_weights)
        if fingerprint is not None:
            engine.check_stack(fingerprint)
        engine.verify()
