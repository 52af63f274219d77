"""An exported network behind HTTP: dynamic batching, limits on what comes in, a page to try it.

`tools/serve.py` is the way in. `create_app(engine, config)` gives the ASGI application alone, and
`serve(app, ...)` runs it until SIGTERM. FastAPI, uvicorn and prometheus-client are the extra
`serve`; importing this package needs none of them.

    app.py        the routes, and a prediction from body to answer
    guard.py      around every request: headers, bodies left unread, metrics, the last resort
    body.py       the bytes of a body, within limits of size, time and memory
    payload.py    from a body to image files: raw, JSON with base64, multipart
    images.py     what a file's header says, before anything is decoded
    parts.py      how many parts a file has, before anything reads its header
    batcher.py    single images in, batches to the engine
    metrics.py    what /metrics shows
    connection.py, server.py    uvicorn with a limit for slow clients, and a shutdown without loss
"""

from __future__ import annotations

from ppcls.deploy.serving.config import ServingConfig
from ppcls.deploy.serving.engine import Engine
from ppcls.utils.errors import UserError

__all__ = ["Engine", "ServingConfig", "require_packages"]

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
_PACKAGES["python_multipart"] = "python-multipart"


def require_packages() -> None:
    """Raise UserError naming the extra when a package the service needs is not installed."""
    import importlib.util

    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(
            f"serving: expected the packages {', '.join(_PACKAGES.values())}, found no "
            f"{', '.join(missing)}; install them with: pip install 'hardnet-paddle[serve]'"
        )
