"""The routes: /predict, /healthz, /metadata, /metrics, and the page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ppcls.deploy.serving.config import ServingConfig
from ppcls.deploy.serving.engine import Engine
from ppcls.deploy.serving.errors import ClientGone, RequestError
from ppcls.deploy.serving.guard import Guard, error_response
from ppcls.deploy.serving.metrics import CONTENT_TYPE
from ppcls.deploy.serving.service import Service
from ppcls.utils.errors import DataError

_STATIC = Path(__file__).parent / "static"
# Path of the page's files -> file and content type.
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_BASE64_LIST = {"type": "array", "items": {"type": "string", "format": "byte"}}
_TOP_K = {"type": "integer", "minimum": 1}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": _BASE64_LIST, "top_k": _TOP_K},
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "top_k": _TOP_K,
                    },
                }
            },
        },
    },
    "parameters": [{"name": "top_k", "in": "query", "required": False, "schema": _TOP_K}],
}


def create_app(engine: Engine, config: ServingConfig | None = None) -> FastAPI:
    """Return the ASGI application; `app.state.service` is its `Service`.

    Its lifespan must run: it warms the network up, and at the end computes what waits. /docs is
    left out, since FastAPI's page loads scripts from another site; /openapi.json is there.
    """
    service = Service(engine, config or ServingConfig())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        service.close()

    app = FastAPI(
        title=f"{engine.manifest.arch} ({engine.manifest.task})",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    _add_predict(app, service)
    _add_health(app, service)
    for path, (name, kind) in _PAGE.items():
        _add_file(app, path, (_STATIC / name).read_bytes(), kind)
    paths = {route.path for route in app.routes}
    app.add_middleware(
        Guard, metrics=service.metrics, paths=paths, is_draining=lambda: service.is_draining
    )

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method[:20]} {request.url.path[:80]}"
        known = "POST /predict, GET /, /healthz, /metadata, /metrics or /openapi.json"
        return error_response(
            error.status_code, f"expected {known}, got {where}", dict(error.headers or {})
        )

    return app


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        """Classify images, or detect objects in them: per image what tools/infer.py writes, and
        its latency in ms."""
        try:
            answer = await service.predict(request.headers, request.query_params, request.receive)
        except RequestError as error:
            return error_response(error.status, str(error), error.headers)
        except DataError as error:  # of a batch: what the network itself refuses
            return error_response(400, " ".join(str(error).split()))
        except ClientGone:
            return _Nothing()
        return JSONResponse(answer)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """200 when the service takes requests, 503 while it starts or ends."""
        status = 200 if service.is_ready else 503
        return JSONResponse({"live": True, "ready": service.is_ready}, status_code=status)

    @app.get("/metadata")
    async def metadata() -> Response:
        """What the network is and takes, and the limits of a request."""
        return JSONResponse(service.metadata())

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, headers={"Content-Type": kind, **_PAGE_HEADERS})


class _Nothing(Response):
    """No answer at all: its reader has left."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        return
