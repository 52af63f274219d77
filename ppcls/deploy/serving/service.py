"""A prediction, from the bytes of a body to its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from ppcls.deploy.serving.batcher import Answer, Batcher
from ppcls.deploy.serving.body import Receive, read_body
from ppcls.deploy.serving.budget import Budget
from ppcls.deploy.serving.config import ServingConfig
from ppcls.deploy.serving.engine import Engine
from ppcls.deploy.serving.errors import ClientGone, RequestError
from ppcls.deploy.serving.images import check_header, shorter_side
from ppcls.deploy.serving.metrics import Metrics
from ppcls.deploy.serving.payload import Payload, Upload, read_payload
from ppcls.utils.errors import DataError

logger = logging.getLogger("ppcls")
T = TypeVar("T")
_SMALL_BODY = 65536  # bytes that are taken apart sooner than handed to a thread
# A result's lists that have one entry per class named, best first.
_RANKED = ("class_ids", "scores", "label_names")


class _Prepared(NamedTuple):
    item: Any
    seconds: float


class Service:
    """An engine and what stands before it: budgets, threads that decode, and the batcher."""

    def __init__(self, engine: Engine, config: ServingConfig) -> None:
        self.engine = engine
        self.config = config
        self.metrics = Metrics()
        self.is_ready = False
        self.is_draining = False
        self.images = Budget(config.queue, "places for images")
        self.bytes = Budget(config.buffer, "bytes for bodies")
        self._short = shorter_side(engine.manifest.transform_ops)
        self._decoders = ThreadPoolExecutor(config.decoders, thread_name_prefix="decode")
        self._free_decoders = asyncio.Semaphore(config.decoders)
        self.max_batch = _max_batch(engine, config)
        self.batcher = Batcher(
            engine.run,
            max_batch=self.max_batch,
            max_delay=config.max_delay_ms / 1000,
            workers=config.workers or engine.streams,
            observe=lambda size, seconds: self.metrics.batches.observe(size),
        )
        watch = self.metrics.watch
        watch("queue_depth", "Images that wait to be computed.", lambda: self.batcher.depth)
        watch("images", "Images accepted and not yet answered.", lambda: self.images.taken)
        watch("body_bytes", "Bytes of bodies in memory.", lambda: self.bytes.taken)

    async def start(self) -> None:
        """Run batches of every size, so that no client waits for what the network sets up."""
        await self._in_pool(self.engine.warm_up, *range(1, self.max_batch + 1))
        self.is_ready = True

    def drain(self) -> None:
        """Say that the service is no longer ready; it still answers."""
        self.is_ready = False
        self.is_draining = True

    def close(self) -> None:
        """Compute what waits and end the threads."""
        self.drain()
        self.batcher.close()
        self._decoders.shutdown()

    def metadata(self) -> dict[str, Any]:
        """What the engine says of the network, and the limits of a request."""
        config = self.config
        limits = {
            "max_bytes": config.max_bytes,
            "max_pixels": config.max_pixels,
            "max_images": config.images_per_request,
            "max_batch": self.max_batch,
            "queue": config.queue,
            "timeout_s": config.timeout,
        }
        manifest = self.engine.manifest
        own = {
            key: getattr(manifest, key)
            for key in ("task", "arch", "class_num", "topk", "threshold")
        }
        turned = {"exif_orientation": _turns_by_exif(manifest.transform_ops)}
        return {**own, **turned, **self.engine.metadata(), "limits": limits}

    async def predict(
        self, headers: Mapping[str, str], query: Mapping[str, str], receive: Receive
    ) -> dict[str, Any]:
        """Answer a request whose body `receive` gives.

        Raises RequestError for what the client is to be told, ClientGone when it has left.
        """
        started = time.perf_counter()
        config = self.config
        with self.bytes.hold() as held:
            body = await read_body(
                receive, headers, held, max_bytes=config.max_bytes, seconds=config.timeout
            )
            work = self._answer(headers.get("content-type", ""), query, body)
            images = await _while_connected(work, receive, config.timeout)
        total = 1000 * (time.perf_counter() - started)
        return {"images": images, "latency_ms": {**_slowest(images), "total": round(total, 3)}}

    async def _answer(
        self, content_type: str, query: Mapping[str, str], body: bytes
    ) -> list[dict[str, Any]]:
        if len(body) < _SMALL_BODY:
            payload = self._read(content_type, query, body)
        else:
            payload = await self._in_pool(self._read, content_type, query, body)
        with self.images.hold() as held:
            held.take(len(payload.uploads))
            return await self._compute(payload)

    async def _compute(self, payload: Payload) -> list[dict[str, Any]]:
        uploads = payload.uploads
        prepared = await _all([self._in_pool(self._prepare, upload) for upload in uploads])
        answers = await _all(
            [asyncio.wrap_future(self.batcher.submit(ready.item)) for ready in prepared]
        )
        rows = zip(uploads, prepared, answers, strict=True)
        return [self._result(upload, *row, payload.top_k) for upload, *row in rows]

    def _read(self, content_type: str, query: Mapping[str, str], body: bytes) -> Payload:
        payload = read_payload(content_type, query, body, max_images=self.config.images_per_request)
        if payload.top_k is None:
            return payload
        manifest = self.engine.manifest
        if manifest.task != "classification":
            raise RequestError(400, "top_k: expected for a classifier only, this is a detector")
        if not 1 <= payload.top_k <= manifest.topk:
            raise RequestError(
                400, f"top_k: expected 1 to {manifest.topk}, got {str(payload.top_k)[:20]}"
            )
        return payload

    def _prepare(self, upload: Upload) -> _Prepared:
        started = time.perf_counter()
        check_header(upload.data, upload.name, self.config.max_pixels, self._short)
        try:
            item = self.engine.prepare(upload.data, upload.name)
        except DataError as error:
            raise RequestError(400, " ".join(str(error).split())) from error
        return _Prepared(item, time.perf_counter() - started)

    def _result(
        self, upload: Upload, ready: _Prepared, answer: Answer, top_k: int | None
    ) -> dict[str, Any]:
        seconds = {"decode": ready.seconds, "queue": answer.queued, "compute": answer.computed}
        for stage, value in seconds.items():
            self.metrics.stages.labels(stage).observe(value)
        result = {**answer.result, "file_name": upload.name}
        if top_k is not None:
            result |= {key: result[key][:top_k] for key in _RANKED if key in result}
        latency = {stage: round(1000 * value, 3) for stage, value in seconds.items()}
        return {**result, "batch_size": answer.batch, "latency_ms": latency}

    async def _in_pool(self, function: Callable[..., T], *args: Any) -> T:
        """Run in a decoder thread. Who waits for one waits here, where a request that ends leaves
        nothing behind; in the pool's own queue its bytes would stay."""
        await self._free_decoders.acquire()
        loop = asyncio.get_running_loop()
        future = self._decoders.submit(function, *args)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free_decoders.release))
        return await asyncio.wrap_future(future)


def _max_batch(engine: Engine, config: ServingConfig) -> int:
    """An exported network may take batches of one size only."""
    fixed = engine.manifest.input.shape[0]
    if fixed is not None and fixed < config.max_batch:
        logger.warning("the network takes at most %d images at once", fixed)
        return fixed
    return config.max_batch


def _turns_by_exif(transform_ops: list[Any]) -> bool:
    """Whether boxes are in the pixels of a photograph turned as its EXIF data says."""
    options = [entry.get("DecodeImage") for entry in transform_ops if isinstance(entry, dict)]
    backends = [option.get("backend", "cv2") for option in options if option]
    return "pil" not in [str(backend).lower() for backend in backends]


async def _while_connected(work: Awaitable[T], receive: Receive, seconds: float) -> T:
    """Wait for `work`, but drop it when the client leaves or after `seconds`."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())  # after the body, the next message is the farewell
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise RequestError(504, f"no answer within {seconds:g} s", retry_after=1)
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task})  # what it holds is given back
        if not task.cancelled():
            task.exception()  # seen, or no longer of interest


async def _all(futures: list[Awaitable[T]]) -> list[T]:
    """Wait for all; when one fails the others are dropped."""
    tasks = [asyncio.ensure_future(future) for future in futures]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _slowest(images: list[dict[str, Any]]) -> dict[str, float]:
    stages = images[0]["latency_ms"]
    return {stage: max(image["latency_ms"][stage] for image in images) for stage in stages}
