"""Host, token, origin, size: what is refused before anything of the body is read."""

from __future__ import annotations

import base64
import http.client
import tempfile
from pathlib import Path

import pytest

from milseg.config import ServeOptions
from milseg.errors import UserError
from milseg.serve.middleware import allowed_hosts

from .conftest import Live, Start, form, photo, png_of

MIB = 2**20
GOOD = png_of(photo(0))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "192.168.0.7",
        "[::1].evil",
        "[::1]evil:80",
        "localhost:80:80",
        "localhost:x",
        "localhost@evil",
        "a localhost",
        "[localhost]",
        "localhost:" + "9" * 5000,
    ],
)
def test_another_name_is_refused(live: Live, host: str) -> None:
    answer = live.ask("/v1/model", headers={"Host": host})
    assert answer.status == 421
    assert "--allow-host" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_its_own_names_are_answered(live: Live, host: str) -> None:
    assert live.ask("/health", headers={"Host": host}).status == 200


def test_hosts_of_other_addresses() -> None:
    def hosts(host: str, *allow: str) -> tuple[str, ...]:
        return allowed_hosts(ServeOptions(model=Path("m"), host=host, allow_host=allow))

    assert hosts("0.0.0.0") == ()
    assert hosts("0.0.0.0", "masks.example") == ("masks.example",)
    assert hosts("10.0.0.5", "masks.example") == ("10.0.0.5", "masks.example")
    assert "[::1]" in hosts("::1")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_cannot_post(live: Live, site: str) -> None:
    assert live.ask("/v1/segment", GOOD, {"Sec-Fetch-Site": site}).status == 403
    assert live.ask("/v1/segment", GOOD, {"Sec-Fetch-Site": "same-origin"}).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost:1",
        "http://localhost.evil",
        "file://",
        "http://[::1].evil",
        "http://[",
        "http://localhost:99999999",
        "localhost",
        "http://x@localhost",
        "http://localhost/x",
    ],
)
def test_other_origins_cannot_post(live: Live, origin: str) -> None:
    """Browsers that send no Sec-Fetch-Site send this."""
    host = {"Host": f"localhost:{live.port}"}
    for path in ("/v1/segment", "/predict", "/setup", "/webhook"):
        assert live.ask(path, GOOD, host | {"Origin": origin}).status == 403


def test_its_own_page_can_post(live: Live) -> None:
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        headers = {"Host": f"{name}:{live.port}", "Origin": f"http://{name.lower()}:{live.port}"}
        assert live.ask("/v1/segment", GOOD, headers).status == 200
    # Without a port on both sides, it is the scheme's.
    assert live.ask("/v1/segment", GOOD, {"Host": "localhost", "Origin": "http://localhost"}).status == 200


def test_a_proxys_page_can_post(start: Start) -> None:
    """A proxy may keep the name that it was asked by, or ask by the server's own."""
    live = start(allow_host=("masks.example",))
    for host in ("masks.example", "127.0.0.1:8000"):
        headers = {"Host": host, "Origin": "https://masks.example", "Sec-Fetch-Site": "same-origin"}
        assert live.ask("/v1/segment", GOOD, headers).status == 200
    assert live.ask("/v1/segment", GOOD, {"Origin": "https://other.example"}).status == 403


def test_every_answer_carries_the_headers(live: Live) -> None:
    for path in ("/", "/page/page.js", "/v1/model", "/nothing"):
        headers = live.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy  # no outside host
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_a_token_is_asked_for(start: Start) -> None:
    live = start(token="secret")
    basic = base64.b64encode(b"anyone:secret").decode()
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic %%%"}):
        answer = live.ask("/v1/segment", GOOD, given)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert live.ask("/metrics").status == 401
    assert live.ask("/v1/segment", GOOD, {"Authorization": "Bearer secret"}).status == 200
    assert live.ask("/v1/segment", GOOD, {"Authorization": f"Basic {basic}"}).status == 200
    for path in ("/", "/page/page.js", "/health", "/ready"):
        assert live.ask(path).status == 200


# case 25: more than the limit, which is 1 MiB here


@pytest.fixture
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be written: temporary files have no folder to be in, and making one fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass


@pytest.mark.usefixtures("no_files")
class TestTooLarge:
    LARGE = b"\xff\xd8" + b"\0" * (2 * MIB)

    def refused(self, live: Live, body: object, headers: dict[str, str]) -> None:
        answer = live.ask("/v1/segment", body, headers)
        assert (answer.status, answer.json()["title"]) == (413, "Request Entity Too Large")
        assert "1 MiB" in answer.json()["detail"]
        assert live.server.engine.taken == 0

    def test_raw(self, live: Live) -> None:
        self.refused(live, self.LARGE, {})

    def test_multipart(self, live: Live) -> None:
        self.refused(live, *form(self.LARGE))

    def test_chunked(self, live: Live) -> None:
        self.refused(live, iter([self.LARGE[i : i + 50_000] for i in range(0, 2 * MIB, 50_000)]), {})

    def test_file_name(self, live: Live) -> None:
        self.refused(live, *form(GOOD, name="n" * 2 * MIB))

    def test_labels_too(self, live: Live) -> None:
        assert live.ask("/predict", self.LARGE).status == 413

    def test_a_length_is_believed_before_the_body_comes(self, live: Live) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
        connection.putrequest("POST", "/v1/segment")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()  # and not a byte of it
        assert connection.getresponse().status == 413
        connection.close()

    def test_just_below_is_read(self, live: Live) -> None:
        assert live.ask("/v1/segment", b"\0" * MIB).status == 422


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"port": 70000}, "--port 70000"),
        ({"label_studio_url": "file:///etc"}, "--label-studio-url"),
        ({"label_studio_token_file": Path("x")}, "--label-studio-url"),
        ({"token_file": Path("x"), "no_token": True}, "--no-token does not go with"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ServeOptions(model=Path("m"), **options)  # type: ignore[arg-type]
