"""The service as a client sees it, before an engine that answers how bright an image is."""

import base64
import http.client
import io
import json
import threading
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from PIL import Image
from running_service import form, read_reply, running, until
from serving_fakes import FakeEngine, picture

from ppcls.utils.errors import DataError, JobError

MAX_BYTES = 250_000


@pytest.fixture(scope="module")
def service():
    broken = {13: DataError("the network takes no such image"), 17: JobError("not finite")}
    with running(FakeEngine(broken=broken), max_bytes=MAX_BYTES, max_images=4) as service:
        yield service


@pytest.fixture
def held(request):
    """A service with room for 3 images whose network waits until `engine.gate` is opened."""
    options = {"queue": 3, "timeout": 10.0, "max_delay_ms": 0.0, **getattr(request, "param", {})}
    with running(FakeEngine(), **options) as service:
        service.engine.gate.clear()
        yield service
        service.engine.gate.set()


def classes(reply):
    assert reply.status == 200, reply
    return [image["label_names"][0] for image in reply.content["images"]]


def in_background(function):
    """Call in a thread; the list it returns gets the result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return results


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("form_", ["PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF"])
def test_a_raw_image(service, form_):
    reply = service.post(picture(250, form=form_), "image/whatever")
    assert classes(reply) == ["white"]
    image = reply.content["images"][0]
    assert image["file_name"] == "image" and image["class_ids"][0] == 4
    assert sum(image["scores"]) == pytest.approx(1) and len(image["scores"]) == 5
    assert image["latency_ms"].keys() == {"decode", "queue", "compute"}
    assert reply.content["latency_ms"]["total"] >= image["latency_ms"]["compute"] >= 0


def test_a_form_of_several(service):
    files = [("file", f"{shade}.png", picture(shade)) for shade in (0, 255, 128)]
    body, kind = form(*files, ("top_k", None, b"2"))
    reply = service.post(body, kind)
    assert classes(reply) == ["black", "white", "grey"]
    images = reply.content["images"]
    assert [image["file_name"] for image in images] == ["0.png", "255.png", "128.png"]
    assert all(len(image["scores"]) == len(image["class_ids"]) == 2 for image in images)


def test_json(service):
    images = [base64.b64encode(picture(shade)).decode() for shade in (200, 60)]
    assert classes(service.json({"images": images, "top_k": 1})) == ["light", "dark"]


def test_metadata(service):
    content = service.ask("GET", "/metadata").content
    assert content["arch"] == "FakeNet" and content["task"] == "classification"
    assert content["runtime"] == "nothing at all" and content["exif_orientation"] is True
    assert content["limits"]["max_bytes"] == MAX_BYTES and content["limits"]["max_images"] == 4


def test_health_and_api(service):
    reply = service.ask("GET", "/healthz")
    assert (reply.status, reply.content) == (200, {"live": True, "ready": True})
    api = service.ask("GET", "/openapi.json").content
    assert "image/*" in api["paths"]["/predict"]["post"]["requestBody"]["content"]


def test_the_page_asks_for_nothing_from_elsewhere(service):
    reply = service.ask("GET", "/")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    page = reply.content
    for name in ("/page.js", "/page.css", "/icon.svg"):
        assert f'"{name}"' in page
        page += service.ask("GET", name).content
    links = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "http" not in links.lower() and "<script>" not in page and "style=" not in page


def test_metrics(service):
    service.post(picture(), "image/png")
    service.post(b"", "image/png")
    for path in ("/one", "/two"):
        service.ask("GET", path)
    reply = service.ask("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in reply.content.splitlines() if line[0] != "#")
    assert float(lines['ppcls_requests_total{path="/predict",status="200"}']) >= 1
    assert float(lines['ppcls_requests_total{path="/predict",status="400"}']) >= 1
    assert float(lines['ppcls_requests_total{path="other",status="404"}']) >= 2
    assert float(lines["ppcls_batch_size_count"]) >= 1
    assert float(lines['ppcls_image_seconds_count{stage="queue"}']) >= 1
    assert lines["ppcls_queue_depth"] == lines["ppcls_images"] == lines["ppcls_body_bytes"] == "0.0"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "kind", "query", "status", "words"),
    [
        (b"", "image/png", "", 400, "image: expected an image, found no bytes"),
        (b"hello", "image/png", "", 415, "image: expected a JPEG, PNG"),
        (picture()[:60], "image/png", "", 400, "image: cannot decode the image"),
        (picture(form="JPEG")[:-2], "image/jpeg", "", 400, "image: cannot decode the image"),
        (picture(size=(60_000, 1)), "image/png", "", 413, "once the shorter side is scaled"),
        (picture(13), "image/png", "", 400, "the network takes no such image"),
        (picture(), "text/plain", "", 415, "Content-Type: expected an image"),
        (picture(), "image/png", "?top_k=6", 400, "top_k: expected 1 to 5, got 6"),
        (picture(), "image/png", "?top_k=0", 400, "top_k: expected 1 to 5, got 0"),
        (b"x" * (MAX_BYTES + 1), "image/png", "", 413, f"at most {MAX_BYTES} bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_bodies(service, body, kind, query, status, words):
    reply = service.post(body, kind, query)
    assert reply.status == status and words in reply.error
    assert reply.error.count("\n") == 0 and classes(service.post(picture(0), "image/png"))


def test_the_bad_image_among_good_ones_is_named(service):
    files = [("file", "good.png", picture()), ("file", "bad.png", picture()[:50])]
    reply = service.post(*form(*files))
    assert reply.status == 400 and reply.error.startswith("bad.png: ")


def test_too_many_images(service):
    reply = service.json({"images": [base64.b64encode(picture()).decode()] * 5})
    assert reply.status == 400 and "expected 1 to 4 images" in reply.error


def test_a_compressed_body(service):
    reply = service.post(picture(), "image/png", **{"Content-Encoding": "gzip"})
    assert reply.status == 415 and "Content-Encoding" in reply.error


@pytest.mark.parametrize(("method", "path"), [("GET", "/predict"), ("POST", "/"), ("GET", "/../x")])
def test_other_routes(service, method, path):
    reply = service.ask(method, path)
    assert reply.status in (404, 405) and "POST /predict" in reply.error


def test_too_many_headers(service):
    reply = service.ask("GET", "/healthz", headers={f"X-{n}": "y" for n in range(120)})
    assert reply.status == 431


def test_a_bug_is_500_and_in_the_log(service, caplog):
    reply = service.post(picture(17), "image/png")
    assert reply.status == 500 and reply.error == "the server failed; its log says why"
    assert "not finite" in caplog.text
    assert classes(service.post(picture(0), "image/png")) == ["black"]


def test_a_detector_has_no_top_k():
    with running(FakeEngine("detection")) as service:
        reply = service.post(picture(size=(100, 50)), "image/png")
        assert reply.content["images"][0]["boxes"][0] == [8, 10, 50, 45]
        reply = service.post(picture(), "image/png", "?top_k=1")
        assert reply.status == 400 and "this is a detector" in reply.error


# ---------------------------------------------------------------- bodies on the wire


def test_a_chunked_body(service):
    data = picture(0)
    reply = service.post(iter([data[:20], data[20:]]), "image/png")
    assert classes(reply) == ["black"]


def test_a_chunked_body_is_cut_at_the_limit(service):
    """The client gets its answer although it has sent more than was read."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.request(
        "POST", "/predict", iter([b"x" * 50_000] * 100), {"Content-Type": "image/png"}
    )
    reply = read_reply(connection)
    assert reply.status == 413 and reply.headers["connection"] == "close"


def test_a_body_without_end_is_not_read_for_ever(service):
    with service.connect() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        client.sendall(b"Content-Type: image/png\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent, end = 0, time.monotonic() + 15
        with pytest.raises(OSError):
            while time.monotonic() < end:
                client.sendall(chunk)
                sent += len(chunk)
    assert sent < 2**30
    assert service.service.bytes.taken == 0


@pytest.mark.parametrize("held", [{"timeout": 0.3, "header_timeout": 0.3}], indirect=True)
def test_slow_clients(held):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
    for start in (b"", b"GET / HT", head, head + b"\r\nabc"):
        with held.connect() as client:
            client.sendall(start)
            reply = client.makefile("rb").read()
            assert reply.startswith(b"HTTP/1.1 408 "), (start, reply)
            assert b'{"error"' in reply
    assert held.service.bytes.taken == 0


@pytest.mark.parametrize("held", [{"connections": 2}], indirect=True)
def test_too_many_connections(held):
    with held.connect() as one, held.connect() as two:
        for client in (one, two):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        with held.connect() as three:
            assert three.makefile("rb").read().startswith(b"HTTP/1.1 503 ")
    until(lambda: held.ask("GET", "/healthz").status == 200)


@pytest.mark.parametrize("held", [{"max_bytes": 1000, "buffered_bytes": 1500}], indirect=True)
def test_all_bodies_together_have_a_limit(held):
    head = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n"
    )
    with held.connect() as slow:
        slow.sendall(head + b"\r\n" + b"x" * 998)
        until(lambda: held.service.bytes.taken == 998)
        reply = held.post(b"x" * 900, "image/png")
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
    until(lambda: held.service.bytes.taken == 0)
    assert held.post(b"x" * 900, "image/png").status == 415


# ---------------------------------------------------------------- load


def test_a_full_queue(held):
    waiting = [in_background(lambda: held.post(picture(0), "image/png")) for _ in range(3)]
    until(lambda: held.service.images.taken == 3)
    reply = held.post(picture(), "image/png")
    assert reply.status == 503 and reply.headers["retry-after"] == "1"
    assert "busy" in reply.error
    assert held.ask("GET", "/healthz").status == 200
    held.engine.gate.set()
    until(lambda: all(waiting))
    assert [classes(reply) for (reply,) in waiting] == [["black"]] * 3
    assert held.service.images.taken == 0


@pytest.mark.parametrize("held", [{"timeout": 0.5, "max_batch": 1}], indirect=True)
def test_late_work_is_dropped(held):
    done = len(held.engine.batches)
    first = in_background(lambda: held.post(picture(0), "image/png"))
    until(lambda: len(held.engine.batches) == done + 1)
    reply = held.post(picture(255), "image/png")
    assert reply.status == 504 and "0.5 s" in reply.error
    assert held.service.batcher.depth == 0 and held.service.images.taken == 0
    held.engine.gate.set()
    assert classes(held.post(picture(128), "image/png")) == ["grey"]
    until(lambda: bool(first))
    assert first[0].status == 504
    assert held.engine.batches[done:] == [[0], [128]]


@pytest.mark.parametrize("held", [{"max_batch": 1}], indirect=True)
def test_who_leaves_frees_its_place(held):
    done = len(held.engine.batches)
    staying = in_background(lambda: held.post(picture(0), "image/png"))
    until(lambda: len(held.engine.batches) == done + 1)
    data = picture(255)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with held.connect() as leaving:
        leaving.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: held.service.batcher.depth == 1)
    until(lambda: held.service.batcher.depth == 0)
    until(lambda: held.service.images.taken == 1)
    held.engine.gate.set()
    until(lambda: bool(staying))
    assert classes(staying[0]) == ["black"] and held.engine.batches[done:] == [[0]]
    metrics = held.ask("GET", "/metrics").content
    assert 'ppcls_requests_total{path="/predict",status="499"} 1.0' in metrics


def test_requests_share_batches():
    with running(FakeEngine(per_batch=0.05), max_batch=4) as service:
        shades = [0, 64, 128, 191, 255, 0, 64, 128]
        replies = [
            in_background(lambda shade=shade: service.post(picture(shade), "image/png"))
            for shade in shades
        ]
        until(lambda: all(replies))
    names = [classes(reply)[0] for (reply,) in replies]
    assert names == ["black", "dark", "grey", "light", "white", "black", "dark", "grey"]
    sizes = [reply.content["images"][0]["batch_size"] for (reply,) in replies]
    assert max(sizes) > 1 and max(sizes) <= 4


def test_a_network_of_a_fixed_batch_sets_the_largest():
    with running(FakeEngine(batch=1), max_batch=8) as service:
        assert service.ask("GET", "/metadata").content["limits"]["max_batch"] == 1


def test_a_photograph_of_a_telephone(service):
    """Large and turned by its EXIF data, but within the limits."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 3000), "white").save(file, "JPEG", quality=20, exif=exif)
    assert len(file.getvalue()) < MAX_BYTES
    assert classes(service.post(file.getvalue(), "image/jpeg")) == ["white"]


def test_draining_says_not_ready_and_ends_connections():
    with running(FakeEngine()) as service:
        service.service.drain()
        reply = service.ask("GET", "/healthz")
        assert reply.status == 503 and reply.content == {"live": True, "ready": False}
        reply = service.post(picture(0), "image/png")
        assert classes(reply) == ["black"] and reply.headers["connection"] == "close"


def test_pipelined_requests(service):
    data = picture(255)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    one = head + b"Content-Length: %d\r\n\r\n" % len(data) + data
    with service.connect() as client:
        client.sendall(one * 2 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = client.makefile("rb").read()
    assert text.count(b"HTTP/1.1 200 ") == 3 and text.count(b'"white"') == 2
    assert json.loads(text[text.rindex(b"{") :])["ready"] is True
