"""Broken, contradictory and hostile answers to a download: retried or refused, never taken for a complete file."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.sources import http as download
from stages.sources import http_session
from stages.sources.http import Download, fetch
from yolov7.errors import DataError

CONTENT = b"0123456789"
Answer = bytes | Callable[[str], bytes]


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that sends these bytes, one answer a connection, the last one again and again; and the requests."""
    requests: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for number in range(1000):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536) or b"\r\n\r\n"
                requests.append(head.decode("latin-1"))
                answer = answers[min(number, len(answers) - 1)]
                connection.sendall(answer if isinstance(answer, bytes) else answer(requests[-1]))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def head(status: str, *headers: str, body: bytes = CONTENT) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode("latin-1") + body


GOOD = head("200 OK", "Content-Length: 10")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.delenv(download.TOKEN, raising=False)


def bring(url: str, folder: Path, name: str = "a.zip", **more) -> Path:
    return fetch(Download(f"{url}/{name}", **more), folder, pause=lambda seconds: None)


BROKEN = {
    "negative length": head("200 OK", "Content-Length: -5"),
    "length of words": head("200 OK", "Content-Length: ten"),
    "signed length": head("200 OK", "Content-Length: +10"),
    "length in hex": head("200 OK", "Content-Length: 0xA"),
    "length of 5000 digits": head("200 OK", "Content-Length: " + "9" * 5000),
    "two lengths": head("200 OK", "Content-Length: 5", "Content-Length: 10"),
    "two lengths in one": head("200 OK", "Content-Length: 5, 10"),
    "length and pieces": head(
        "200 OK", "Content-Length: 10", "Transfer-Encoding: chunked", body=b"5\r\n01234\r\n0\r\n\r\n"
    ),
    "pieces cut": head("200 OK", "Transfer-Encoding: chunked", body=b"5\r\n01234\r\n5\r\n56"),
    "pieces without an end": head("200 OK", "Transfer-Encoding: chunked", body=b"5\r\n01234\r\n"),
    "a piece of negative size": head("200 OK", "Transfer-Encoding: chunked", body=b"-5\r\n01234\r\n0\r\n\r\n"),
    "compressed pieces": head("200 OK", "Transfer-Encoding: gzip, chunked", body=b"5\r\n01234\r\n0\r\n\r\n"),
    "a compressed transfer": head("200 OK", "Transfer-Encoding: gzip"),
    "pieces of another kind": head("200 OK", "Transfer-Encoding: xchunked"),
    "body cut": head("200 OK", "Content-Length: 20"),
    "encoded": head("200 OK", "Content-Length: 10", "Content-Encoding: gzip"),
    "encoded twice": head("200 OK", "Content-Length: 10", "Content-Encoding: identity", "Content-Encoding: br"),
    "a part that was not asked for": head("206 Partial Content", "Content-Range: bytes 5-14/20"),
    "a part that is not named": head("206 Partial Content", "Content-Length: 10"),
    "a part that ends before it begins": head("206 Partial Content", "Content-Range: bytes 0--5/10"),
    "a part beyond its whole": head("206 Partial Content", "Content-Range: bytes 0-9/5"),
    "a part of another length": head("206 Partial Content", "Content-Range: bytes 0-9/10", "Content-Length: 7"),
    "two ranges": head("206 Partial Content", "Content-Range: bytes 0-9/10", "Content-Range: bytes 0-4/10"),
    "a part of 5000 digits": head("206 Partial Content", f"Content-Range: bytes 0-{'9' * 5000}/*"),
    "multipart": head("206 Partial Content", "Content-Type: multipart/byteranges; boundary=x"),
    "unchanged, not asked": head("304 Not Modified", body=b""),
    "no range, not asked": head("416 Range Not Satisfiable", "Content-Range: bytes */0", body=b""),
    "always beyond the end": head("416 Range Not Satisfiable", body=b""),
    "no answer": b"",
    "not HTTP": b"220 ftp.example ready\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_no_complete_file(answer: bytes, tmp_path: Path) -> None:
    with answering(answer) as (url, requests), pytest.raises(DataError, match=r"stopped after 6 attempts") as caught:
        bring(url, tmp_path)
    assert not (tmp_path / "a.zip").exists() and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert len(requests) >= 6


@pytest.mark.parametrize(
    "answer", [answer for answer in BROKEN.values() if answer], ids=[n for n, a in BROKEN.items() if a]
)
def test_after_a_broken_answer_a_good_one_is_the_file(answer: bytes, tmp_path: Path) -> None:
    with answering(answer, GOOD) as (url, _):
        assert bring(url, tmp_path).read_bytes() == CONTENT


def test_a_length_that_is_said_twice_the_same_is_one(tmp_path: Path) -> None:
    with answering(head("200 OK", "Content-Length: 10", "Content-Length: 10")) as (url, _):
        assert bring(url, tmp_path).read_bytes() == CONTENT


def test_a_stored_gzip_may_be_called_encoded(tmp_path: Path) -> None:
    with answering(head("200 OK", "Content-Length: 10", "Content-Encoding: x-gzip")) as (url, _):
        assert bring(url, tmp_path, "a.tar.gz").read_bytes() == CONTENT


def test_a_server_that_sends_pieces_of_its_own_size_is_asked_until_all_are_here(tmp_path: Path) -> None:
    def part(request: str) -> bytes:
        start = int(request.partition("Range: bytes=")[2].partition("-")[0] or 0)
        last = min(start + 3, 9)
        stated = (f"Content-Range: bytes {start}-{last}/10", f"Content-Length: {last - start + 1}")
        return head("206 Partial Content", *stated, body=CONTENT[start : last + 1])

    with answering(part) as (url, requests):
        assert bring(url, tmp_path).read_bytes() == CONTENT
    assert len(requests) == 3


def test_more_bytes_than_the_range_says_are_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:4])
    (tmp_path / "a.zip.json").write_text("{}")
    long = head("206 Partial Content", "Content-Range: bytes 0-9/10", body=CONTENT + b"more")
    with answering(long) as (url, _), pytest.raises(DataError, match="more bytes than the 10 of the file"):
        bring(url, tmp_path)
    assert not (tmp_path / "a.zip").exists()


def test_a_body_without_end_stops_at_the_expected_size(tmp_path: Path) -> None:
    endless = head(
        "200 OK", "Transfer-Encoding: chunked", body=b"1000\r\n" + bytes(0x1000) + b"\r\n" + b"5\r\nabcde\r\n"
    )
    with answering(endless) as (url, requests), pytest.raises(DataError, match="20 are expected"):
        bring(url, tmp_path, size=20)
    assert len(requests) == 1


def test_a_part_of_a_file_of_unknown_length_is_not_complete(tmp_path: Path) -> None:
    unknown = head("206 Partial Content", "Content-Range: bytes 0-9/*")
    end = head("416 Range Not Satisfiable", "Content-Range: bytes */10", body=b"")
    with answering(unknown, end) as (url, _):
        assert bring(url, tmp_path).read_bytes() == CONTENT
    with answering(unknown) as (url, _), pytest.raises(DataError):
        bring(url, tmp_path / "other")


def test_a_file_without_a_length_is_said_to_be_uncertain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with answering(head("200 OK")) as (url, _):
        assert bring(url, tmp_path).read_bytes() == CONTENT
    assert "states no length" in caplog.text


def test_a_validator_with_strange_characters_is_not_sent_back(tmp_path: Path) -> None:
    bad = head("200 OK", "Content-Length: 20", 'ETag: "a\x01b"', "Last-Modified: \xe9\x01")
    with answering(bad, head("200 OK", "Content-Length: 10")) as (url, requests):
        assert bring(url, tmp_path).read_bytes() == CONTENT
    assert "If-Range" not in requests[1]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd?token=Pl4nted", "another kind"),
        ("ftp://host/x?token=Pl4nted", "another kind"),
        ("gopher://host/", "another kind"),
        ("//u:Pl4nted@[::bad/", "not an address"),
    ],
)
def test_a_redirect_to_another_kind_of_address_is_refused(location: str, says: str, tmp_path: Path) -> None:
    answer = head("302 Found", f"Location: {location}", body=b"")
    with answering(answer) as (url, requests), pytest.raises(DataError, match=says) as caught:
        bring(url, tmp_path)
    assert "Pl4nted" not in str(caught.value) and len(requests) == 1


@pytest.mark.parametrize(
    "target", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "2130706433", "[::ffff:10.0.0.1]", "localhost"]
)
def test_a_public_server_must_not_redirect_to_a_private_address(target: str) -> None:
    judge = http_session._judge
    with pytest.raises(DataError, match="redirects to a private address"):
        judge("http://93.184.216.34/set.zip", f"http://{target}/latest/meta-data")
    judge("http://93.184.216.34/set.zip", "http://8.8.8.8/set.zip")
    judge("http://10.0.0.2/set.zip", f"http://{target}/set.zip")
    with pytest.raises(DataError, match="from https to http"):
        judge("https://93.184.216.34/set.zip", "http://93.184.216.34/set.zip")


def test_redirects_without_end_are_an_error(tmp_path: Path) -> None:
    answer = head("302 Found", "Location: /again", "Content-Length: 0", body=b"")
    with answering(answer) as (url, requests), pytest.raises(DataError, match="cannot be fetched"):
        bring(url, tmp_path)
    assert len(requests) < 50
