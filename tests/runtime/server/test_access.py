"""Who may ask, and under which address."""

import pytest
from starlette.testclient import TestClient

from runtime import Pipeline
from runtime.server.access import host_name, is_loopback
from runtime.server.app import create_app
from runtime.server.options import ServerOptions

GENERATE = "/v1/images/generations"
BODY = {"prompt": "a bird"}
ELSEWHERE = "https://gallery.example"


@pytest.fixture(scope="module")
def pipeline(tiny_bundles):
    return Pipeline.from_bundle(tiny_bundles["int8"])


def started(pipeline, **options):
    app = create_app(pipeline, ServerOptions(**options))
    return TestClient(app, base_url="http://localhost:8000", client=("127.0.0.1", 50000))


@pytest.fixture(scope="module")
def client(pipeline):
    with started(pipeline) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(pipeline):
    """A server for a page of another origin, behind a proxy in 10.0.0.0/8."""
    options = {"cors_origins": (ELSEWHERE,), "trusted_proxies": ("10.0.0.0/8",)}
    with started(pipeline, allowed_hosts=("images.example",), **options) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("127.1.2.3", 200),
        ("[::1]:8000", 200),
        ("galip.localhost", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("192.168.1.2:8000", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/studio/", "/healthz", "/sdapi/v1/options"])
def test_without_a_key_only_names_of_the_loopback_are_accepted(host, status, path, client):
    """Else a domain that is made to resolve to 127.0.0.1 lets its pages use the server."""
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "invalid_host"
        assert "--allowed-host" in answer.json()["error"]["message"]


def test_further_hosts_are_accepted_where_they_are_named(open_client):
    for host, status in (("images.example", 200), ("IMAGES.example:80", 200), ("x.example", 403)):
        assert open_client.get("/v1/models", headers={"Host": host}).status_code == status


def test_host_names():
    assert host_name("[::1]:80") == "::1"
    assert host_name(" Example.COM.:8000") == "example.com"
    assert not is_loopback("")
    assert not is_loopback("0.0.0.0")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("HTTP://localhost:8000", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://127.0.0.1:8000", 403),
        (ELSEWHERE, 403),
        ("null", 403),
        ("file://", 403),
        ("chrome-extension://abcdef", 403),
    ],
)
def test_pages_of_other_origins_are_refused(origin, status, client):
    answer = client.post(GENERATE, json=BODY, headers={"Origin": origin})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "cross_site"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://localhost", "localhost:80"), ("https://localhost:443", "localhost")],
)
def test_default_ports_do_not_matter(origin, host, client):
    headers = {"Origin": origin, "Host": host}
    assert client.post(GENERATE, json=BODY, headers=headers).status_code == 200


def test_a_browser_that_says_same_origin_is_believed(client):
    """A proxy may have replaced the Host; other sites' pages cannot set this header."""
    headers = {"Origin": "https://images.example", "Sec-Fetch-Site": "same-origin"}
    assert client.post(GENERATE, json=BODY, headers=headers).status_code == 200
    headers["Sec-Fetch-Site"] = "same-site"
    assert client.post(GENERATE, json=BODY, headers=headers).status_code == 403


def test_allowed_origins_may_ask_and_read(open_client):
    headers = {"Origin": ELSEWHERE, "Sec-Fetch-Site": "cross-site"}
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    preflight = open_client.options(GENERATE, headers=headers | wanted)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ELSEWHERE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    answer = open_client.post(GENERATE, json=BODY, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ELSEWHERE
    other = {"Origin": "https://other.example"}
    assert open_client.options(GENERATE, headers=other | wanted).status_code == 400
    assert open_client.post(GENERATE, json=BODY, headers=other).status_code == 403


def test_no_site_may_frame_the_page(client):
    for path in ("/studio/", "/v1/models", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ({}, "http://localhost:8000/v1"),
        ({"X-Forwarded-Proto": "https"}, "https://localhost:8000/v1"),
        (
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "images.example"},
            "https://images.example/v1",
        ),
        (
            {"X-Forwarded-Host": "a.example, b.example", "X-Forwarded-Port": "8443"},
            "http://a.example:8443/v1",
        ),
        ({"X-Forwarded-Prefix": "/galip/"}, "http://localhost:8000/galip/v1"),
        ({"X-Script-Name": "/galip"}, "http://localhost:8000/galip/v1"),
        ({"X-Forwarded-Prefix": "//evil.example"}, "http://localhost:8000/v1"),
        ({"X-Forwarded-Proto": "javascript"}, "http://localhost:8000/v1"),
        ({"X-Forwarded-Host": "a b/c"}, "http://localhost:8000/v1"),
    ],
)
def test_urls_are_those_of_the_proxy(headers, start, client):
    (item,) = client.post(GENERATE, json=BODY, headers=headers).json()["data"]
    assert item["url"].startswith(f"{start}/files/")


def test_a_page_behind_a_proxy_is_of_the_same_origin(client):
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "images.example"}
    headers = proxied | {"Origin": "https://images.example"}
    assert client.post(GENERATE, json=BODY, headers=headers).status_code == 200


def test_only_trusted_proxies_are_believed(open_client):
    """127.0.0.1 is not in 10.0.0.0/8."""
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/x"}
    (item,) = open_client.post(GENERATE, json=BODY, headers=headers).json()["data"]
    assert item["url"].startswith("http://localhost:8000/v1/")


def test_a_root_path_may_be_stripped_by_the_proxy_or_not(pipeline):
    with started(pipeline, root_path="/galip") as client:
        for path in (GENERATE, f"/galip{GENERATE}"):
            (item,) = client.post(path, json=BODY).json()["data"]
            assert item["url"].startswith("http://localhost:8000/galip/v1/files/")
            assert client.get(item["url"]).headers["content-type"] == "image/png"
        for path in ("/", "/galip/"):
            page = client.get(path)
            assert page.status_code == 200
            assert page.url.path.endswith("studio/")
