"""Downloads by the standard library from a server that misbehaves: whole, or not there."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import contextmanager

import pytest
from loopback import Served, serving

from yolov7.weights import download
from yolov7.weights.download import FetchError, bring

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def server():
    with serving() as state:
        yield state


@pytest.fixture
def part(tmp_path):
    return tmp_path / "a.pt.part"


def test_a_file_arrives_and_its_progress_is_told(server, part):
    server.files["/a.pt"] = Served(CONTENT)
    part.write_bytes(b"of a program that was killed")
    told = []
    bring(f"{server.url}/a.pt", part, advance=lambda have, total: told.append((have, total)))
    assert part.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_cut_connection_is_resumed(server, part):
    server.files["/a.pt"] = Served(CONTENT, cuts=[100_000, 50_000, 0, 1])
    bring(f"{server.url}/a.pt", part)
    assert part.read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.sent()] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150000-",
        "bytes=150001-",
    ]


@pytest.mark.parametrize("served", [{"etag": None}, {"etag": 'W/"weak"'}, {"ranges": False}])
def test_without_a_version_or_ranges_it_begins_anew(server, part, served):
    server.files["/a.pt"] = Served(CONTENT, cuts=[200_000, 100_000], **served)
    bring(f"{server.url}/a.pt", part)
    assert part.read_bytes() == CONTENT


def test_a_file_that_changes_on_the_way_is_not_mixed(server, part):
    served = server.files["/a.pt"] = Served(CONTENT, cuts=[100_000])
    other = random.Random(1).randbytes(250_000)

    def changed(have, total):
        served.content, served.etag = other, '"two"'

    bring(f"{server.url}/a.pt", part, advance=changed)
    assert part.read_bytes() == other


def test_a_server_that_never_gets_further_is_given_up(server, part):
    server.files["/a.pt"] = Served(CONTENT, cuts=[70_000, *[0] * 50])
    with pytest.raises(FetchError, match=r"cut after 70,000 of 300,000 bytes; given up after 3 attempts"):
        bring(f"{server.url}/a.pt", part)
    assert len(server.requests) == 4


def test_busy_servers_are_asked_again(server, part):
    server.files["/a.pt"] = Served(CONTENT, statuses=[503, 429])
    bring(f"{server.url}/a.pt", part)
    assert [status for _, status in server.sent()] == [503, 429, 200]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"no such file \(404\)"),
        (403, r"refuses access \(403\)"),
        (400, "answers 400"),
        (204, "answers 204, without a file"),
    ],
)
def test_refusals_are_final(server, part, status, message):
    server.files["/a.pt"] = Served(CONTENT, statuses=[status] * 9)
    with pytest.raises(FetchError, match=message):
        bring(f"{server.url}/a.pt", part)
    assert len(server.requests) == 1


def test_a_redirect_is_followed_without_the_password(server, part):
    server.files["/a.pt"] = Served(CONTENT, statuses=[302], location="/elsewhere")
    server.files["/elsewhere"] = Served(CONTENT)
    bring(server.url.replace("//", "//me:hunter2222@") + "/a.pt", part)
    assert part.read_bytes() == CONTENT
    assert [headers.get("Authorization") for headers in server.headers] == ["Basic bWU6aHVudGVyMjIyMg==", None]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_kind_of_address_is_refused(server, part, target):
    server.files["/a.pt"] = Served(CONTENT, statuses=[302], location=target)
    with pytest.raises(FetchError, match=r"redirects from http to ftp|is not allowed"):
        bring(f"{server.url}/a.pt", part)


def test_a_redirect_from_https_to_http_is_refused():
    request = download.urllib.request.Request("https://host/a.pt")
    with pytest.raises(FetchError, match="from https to http"):
        download._GuardedRedirects().redirect_request(request, None, 302, "", {}, "http://host/a.pt")


@pytest.mark.parametrize("stated", [True, False])
def test_an_answer_without_end_is_stopped(server, part, monkeypatch, stated):
    monkeypatch.setattr(download, "LARGEST", 100_000)
    server.files["/a.pt"] = Served(CONTENT, stated=stated)
    with pytest.raises(FetchError, match="than any published file has"):
        bring(f"{server.url}/a.pt", part)


def test_the_proxy_of_the_environment_is_asked(server, part, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://weights.invalid/a.pt"] = Served(CONTENT)
    bring("http://weights.invalid/a.pt", part)
    assert part.read_bytes() == CONTENT


@contextmanager
def silent(answer: bytes):
    """A server that sends `answer` and then nothing, without closing; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.pt"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in taken:
            connection.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "no answer within 0.2 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc", "no byte came for 0.2 s; given up after 3 attempts"),
    ],
)
def test_a_silent_server_is_left(part, monkeypatch, answer, message):
    monkeypatch.setattr(download, "SECONDS", 0.2)
    with silent(answer) as address, pytest.raises(FetchError, match=message):
        bring(address, part)


def test_no_server_and_no_host_are_told_at_once(part, monkeypatch):
    def unknown():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(FetchError, match="cannot be reached"):
        bring(f"http://127.0.0.1:{port}/a.pt", part)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: unknown())
    with pytest.raises(FetchError, match="no network, or no such host"):
        bring("http://weights.invalid/a.pt", part)


@pytest.mark.parametrize("address", ["http://127.0.0.1:port/a.pt", "http://[half/a.pt", "http:///a.pt"])
def test_what_is_no_address_is_one_line(part, address):
    with pytest.raises(FetchError) as caught:
        bring(address, part)
    assert "\n" not in str(caught.value)
