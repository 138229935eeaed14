"""Generated addresses, headers and settings lose their secrets, in any text around them."""

from __future__ import annotations

import base64
import logging
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.errors import DataError, YoloError
from yolov7.redaction import bare_address, in_one_line, redacted

CORE = ("Pl4nted", "S3cret")
SPECIAL = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~Aa1é\u0416"
texts = st.text(SPECIAL, max_size=6)
secrets = st.builds(lambda a, b, c: f"{a}{CORE[0]}{b}{CORE[1]}{c}", texts, texts, texts)
"""Every special character before, inside and after two words to look for."""
schemes = st.sampled_from(
    ["http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "ssh", "git+https", "rtsp", "ftp", "s3"]
)
hosts = st.sampled_from(["db", "data.example", "127.0.0.1", "[::1]", "[fe80::1%25eth0]", "user-x.s3.amazonaws.com"])
ports = st.sampled_from(["", ":5432", ":80"])
paths = st.sampled_from(["", "/", "/set.zip", "/a/b%20c/d"])
arounds = st.sampled_from(
    ["{}", "at '{}' failed", 'url="{}", x', "<{}>", "({})", "(Caused by X: {})", "{}\nnext", "x={}", "[{}]", "{}: no"]
)


def clean(text: str) -> bool:
    return not any(word in text for word in CORE)


@settings(max_examples=400, deadline=None)
@given(schemes, st.sampled_from(["user", "", "u%40x"]), secrets, hosts, ports, paths, arounds)
def test_a_password_is_hidden_whatever_it_holds(scheme, user, secret, host, port, path, around):
    address = f"{scheme}://{user}:{secret}@{host}{port}{path}"
    text = around.format(address)
    assert clean(redacted(text)), redacted(text)
    assert clean(in_one_line(text, 500)) and clean(str(YoloError(text))) and clean(str(DataError("x", path=address)))
    assert redacted(redacted(text)) == redacted(text)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["user:{}@{}", "http:user:{}@{}", "http:/user:{}@{}", "netloc='user:{}@{}'", "X=u%40x:{}@{}/a@b"]),
    st.text("!#$%&()*+,-./:;=?@[]^_`{|}~Aa1\u0416", max_size=6),
    hosts,
    arounds,
)
def test_a_password_is_hidden_in_an_address_without_slashes(form, filling, host, around):
    text = around.format(form.format(f"{CORE[0]}{filling.replace('//', '/')}{CORE[1]}", host))
    assert clean(redacted(text)), redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@settings(max_examples=200, deadline=None)
@given(schemes.filter(lambda name: name != "s3"), secrets, hosts, paths, arounds)
def test_a_user_that_is_a_token_is_hidden(scheme, secret, host, path, around):
    assert clean(redacted(around.format(f"{scheme}://{secret}@{host}{path}")))


@settings(max_examples=300, deadline=None)
@given(schemes, hosts, ports, paths, st.sampled_from("?#"), secrets, arounds)
def test_query_and_fragment_are_hidden(scheme, host, port, path, mark, secret, around):
    address = f"{scheme}://{host}{port}{path}{mark}{secret}"
    assert clean(redacted(around.format(address))), redacted(around.format(address))
    assert clean(redacted(around.format(f"{scheme}://u:p@{host}{path}{mark}key={secret}&x=1")))
    if "@" not in secret:
        shown = redacted(f"{address} x")
        assert shown.startswith(f"{scheme}://{host}{port}{path}{mark}***"), "the place of a failure stays readable"
        assert bare_address(address) == f"{scheme}://{host}{port}{path}"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["X-Amz-Signature", "sig", "token", "AWSAccessKeyId", "Policy", "se"]), secrets)
def test_a_signed_path_is_hidden_without_its_host_as_urllib3_shows_it(name, secret):
    value = urllib.parse.quote(secret, safe="")
    for text in (
        f"Max retries exceeded with url: /set.zip?{name}={value}&x=y (Caused by NewConnectionError())",
        f'"GET /set.zip?a=b&{name}={value} HTTP/1.1" 403',
        f"redirected to /other/set.zip?{name}={value}",
    ):
        assert clean(redacted(text)), redacted(text)


@settings(max_examples=200, deadline=None)
@given(st.text("abcXYZ019+/=_-.", max_size=8), st.sampled_from(["Bearer", "Basic", "token", "AWS4-HMAC-SHA256"]))
def test_headers_are_hidden(filling, kind):
    secret = f"{CORE[0]}{filling}{CORE[1]}"
    encoded = base64.b64encode(f"user:{secret}".encode()).decode()
    for text in (
        f"Authorization: {kind} {secret}",
        f"{{'Authorization': '{kind} {secret}', 'Accept': '*/*'}}",
        f'"proxy-authorization": "{kind} {secret}", "x": 1',
        f"x-amz-security-token: {secret}",
        f"Set-Cookie: session={secret}; Path=/",
        f"sent Bearer {secret}",
    ):
        assert clean(redacted(text)), redacted(text)
    assert encoded not in redacted(f"sent Basic {encoded}")


@pytest.mark.parametrize(
    "text",
    [
        "connection to server failed: host=db user=x password={} dbname=y",
        "--password={}",
        '{{"aws_secret_access_key": "{}"}}',
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=x",
        "SharedAccessSignature=sv=2020&sig={}",
        "api_key={}",
        "aws_secret_access_key = {} x",
        "PRIVATE-TOKEN: {}1",
        "Port could not be cast to integer value as '{}'",
        "nonnumeric port: '{}'",
        "[(b'authorization', b'{}')]",
        "Url(scheme='http', auth='user:{}', host='h')",
        "auth=('user', '{}')",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_settings_are_hidden(text):
    assert clean(redacted(text.format(f"{CORE[0]}/{CORE[1]}==")))


@settings(max_examples=150, deadline=None)
@given(
    st.text(SPECIAL + " \t", min_size=0, max_size=6),
    st.sampled_from(["MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "X_SAS"]),
)
def test_secrets_of_the_environment_are_hidden_as_they_are_and_encoded(filling, name):
    secret = f"{CORE[0]}{filling}{CORE[1]}"
    value = f"postgresql://user:{secret}@db/mlflow?x={secret}" if name.endswith("URI") else secret
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        forms = [secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret), value]
        for form in forms:
            assert clean(redacted(f"it says {form}, and ends")), redacted(form)


@pytest.mark.parametrize(
    "text",
    [
        "train: 33 epochs, loss 0.4, 12:30:05, a/b/c.jpg: no boxes (known: x, y)",
        "models:/yolov7-tiny@champion",
        "s3://bucket/a@b/c and sqlite:////home/a@b/mlflow.db and file:///x/y@z",
        "see https://dvc.org/doc/user-guide/upgrade.",
        "http://127.0.0.1:5000/api and http://[::1]:80/, mail a@b.example",
        "port: '8080' is taken",
        "author=x, C:\\data\\a@2x.png, a/icon@2x.png:12: no box; token: expired, password = needed",
        "params.yaml: train.preset: unknown key (did you mean 'preset'?)",
        "Basic authentication is needed; the token is missing; which one? this=that",
    ],
)
def test_harmless_texts_stay_as_they_are(text):
    assert redacted(text) == text


def test_an_address_that_was_cut_in_its_password_is_hidden():
    assert redacted("cannot reach https://user:Pl4nt") == "cannot reach https://***"


def test_a_long_text_takes_linear_time():
    pieces = ["/", "?", "a", "://", "@", "password", "Authorization:", "a.-", "'", "x?a", "GET /", "cookie "]
    for piece in pieces:
        text = piece * (100_000 // len(piece))
        started = time.process_time()
        redacted(text)
        assert time.process_time() - started < 2.0, piece


def test_a_record_of_any_library_is_redacted_for_every_handler(caplog):
    from stages.project.redaction import redact_process

    factory = logging.getLogRecordFactory()
    redact_process()
    try:
        log = logging.getLogger("some.library")
        try:
            raise RuntimeError(f"https://u:{CORE[0]}@host/x")
        except RuntimeError:
            log.exception("to %s", f"https://host/x?token={CORE[1]}")
    finally:
        logging.setLogRecordFactory(factory)
    assert "https://***@host/x" in caplog.text and "to https://host/x?***" in caplog.text and clean(caplog.text)
