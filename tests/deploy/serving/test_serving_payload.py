"""From a body to image files: every form of it, and what is said about the wrong ones."""

import base64
import json

import pytest

pytest.importorskip("python_multipart")

from running_service import form

from ppcls.deploy.serving.errors import RequestError
from ppcls.deploy.serving.payload import read_payload

B64 = base64.b64encode(b"image").decode()


def read(content_type, body, query=None, max_images=3):
    return read_payload(content_type, query or {}, body, max_images=max_images)


def refusal(content_type, body, query=None):
    with pytest.raises(RequestError) as caught:
        read(content_type, body, query)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/x-portable-pixmap", "IMAGE/PNG; q=1", "application/octet-stream"]
)
def test_a_raw_image(kind):
    payload = read(kind, b"bytes", {"top_k": "2"})
    assert payload.uploads[0].data == b"bytes" and payload.top_k == 2


def test_json():
    body = json.dumps({"images": [B64, B64], "top_k": 1}).encode()
    payload = read("application/json; charset=utf-8", body)
    assert [upload.name for upload in payload.uploads] == ["images[0]", "images[1]"]
    assert payload.uploads[1].data == b"image" and payload.top_k == 1
    assert (
        read("application/json", json.dumps({"images": [B64], "top_k": None}).encode()).top_k
        is None
    )


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe\xff", "expected JSON"),
        (b"[1]", "found other JSON"),
        (b'{"images": {}}', "found other JSON"),
        (b'{"images": []}', "expected 1 to 3 images in a request, found 0"),
        (b'{"images": [1]}', r"images\[0\]: expected base64 text, got int"),
        (b'{"images": ["?"]}', r"images\[0\]: expected base64 text: "),
        (b'{"images": ["abc"]}', r"images\[0\]: expected base64 text: Incorrect padding"),
        ('{"images": ["é"]}'.encode(), r"images\[0\]: expected base64 text: "),
        (b'{"images": ["", "", "", ""]}', "expected 1 to 3 images in a request, found 4"),
        (b'{"images": [""], "k": 1}', "expected the keys images and top_k, got 'k'"),
        (b'{"images": [""], "top_k": "five"}', "top_k: expected a whole number, got 'five'"),
        (b'{"images": [""], "top_k": true}', "top_k: expected a whole number, got 'True'"),
        (b'{"images": [""], "top_k": 1.5}', "top_k: expected a whole number"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "expected JSON"),
        (b'{"images": ' + b"[" * 100_000, "at most 3 images and the key top_k, got more"),
        (b'{"images": [' + b'"",' * 100_000 + b'""]}', "at most 3 images"),
    ],
)
def test_other_json(body, match):
    status, text = refusal("application/json", body)
    assert status == 400
    with pytest.raises(RequestError, match=match):
        read("application/json", body)


def test_a_form():
    body, kind = form(
        ("file", "a.png", b"one"),
        ("other", "b\u00e9.png", b"t\r\n--w\r\n\r\no"),
        ("top_k", None, b" 2 "),
    )
    payload = read(kind, body)
    assert [(upload.name, upload.data) for upload in payload.uploads] == [
        ("a.png", b"one"),
        ("b\u00e9.png", b"t\r\n--w\r\n\r\no"),
    ]
    assert payload.top_k == 2


def test_a_file_without_a_name_gets_one():
    body, kind = form(("file", "", b"one"))
    assert [upload.name for upload in read(kind, body).uploads] == ["file 0"]


@pytest.mark.parametrize(
    ("body", "kind", "match"),
    [
        (b"", "multipart/form-data", "expected a boundary"),
        (b"", "multipart/form-data; boundary=a", "closing boundary"),
        (b"hello", "multipart/form-data; boundary=a", "expected multipart/form-data"),
        (form()[0], form()[1], ""),
        (form(("file", "a", b"x"))[0][:-8], form()[1], "closing boundary"),
        (form(*[("f", "a", b"")] * 5)[0], form()[1], "form: expected at most 4 fields"),
        (form(("name", None, b"x"))[0], form()[1], "got the field 'name' without a file name"),
        (form(("top_k", None, b"\xff"))[0], form()[1], "top_k: expected a whole number"),
        (b"--a\r\nX: y\r\n\r\n\r\n--a--\r\n", "multipart/form-data; boundary=a", "Disposition"),
        (b"--a\r\n" + b"X: y\r\n" * 5000, "multipart/form-data; boundary=a", "header"),
        (b"--a\r\n" + b"X" * 50000, "multipart/form-data; boundary=a", "header"),
        (b"", "multipart/form-data; boundary*=utf-8''%E2%82%AC", ""),
    ],
)
def test_other_forms(body, kind, match):
    status, text = refusal(kind, body)
    assert status == 400 and match.lower() in text.lower()


@pytest.mark.parametrize(
    "kind", ["", "text/html", "application/x-www-form-urlencoded", "imag", "é"]
)
def test_other_content_types(kind):
    status, text = refusal(kind, b"abc")
    assert status == 415 and text.startswith("Content-Type: expected an image")


@pytest.mark.parametrize("value", ["", "x", "-1", "1e3", "²"])
def test_a_top_k_that_is_no_number(value):
    status, text = refusal("image/png", b"abc", {"top_k": value})
    assert status == 400 and text.startswith("top_k: expected a whole number")
