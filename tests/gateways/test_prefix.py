"""The gateway under a path of somebody else's site: behind a real nginx, and for pages of other origins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from scenarios.world import passing

from gateways.gateway import TIMEOUT_S, Gateway, configure, wav
from gateways.proxy import documented, nginx

ORIGIN = "https://app.example"
KEPT = "location /pool/ { proxy_pass http://127.0.0.1:8308; }"  # nginx hands the whole path on


def fetch(method: str, address: str, **more: Any) -> requests.Response:
    return requests.request(method, address, timeout=TIMEOUT_S, allow_redirects=False, **more)


@pytest.fixture(scope="module", params=["taken off", "left on"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx with a gateway below /pool/: one that is told by a header, and one that is configured."""
    folder, left = tmp_path_factory.mktemp("prefix"), request.param == "left on"
    with passing(folder) as world, Gateway(world) as gate:
        configure(world, "fake", "transcribe", **({"root_path": "/pool"} if left else {}))
        world.serve(ready=3)
        gate.start()
        location = (KEPT if left else documented()).replace("127.0.0.1:8308", urlsplit(gate.base).netloc)
        with nginx(folder / "nginx", location) as address:
            yield address


def test_a_job_by_the_addresses_that_the_answers_give(site: str) -> None:
    accepted = fetch("POST", f"{site}/pool/jobs/fake", json={"params": {"do": "write", "mb": 1}})
    assert accepted.status_code == 202, accepted.text
    view = urljoin(accepted.url, accepted.headers["Location"])
    assert fetch("GET", view).json()["id"] == accepted.json()["id"]
    outcome = fetch("GET", f"{view}/result?wait_s=40").json()
    assert outcome["files"], outcome
    for file in outcome["files"]:
        assert len(fetch("GET", urljoin(view, file["url"])).content) == file["size"]
    streamed = fetch("GET", f"{view}/events").text
    assert f'"url": "{outcome["files"][0]["url"]}"' in streamed
    again = fetch("POST", f"{view}/rerun", json={})
    assert fetch("GET", urljoin(again.url, again.headers["Location"])).status_code == 200


def test_everything_that_the_page_names_is_there(site: str) -> None:
    page = fetch("GET", f"{site}/pool/")
    names = list[str](re.findall(r'(?:href|src)="([^"#]+)"', page.text))
    assert len(names) > 5
    scripts = [name for name in names if name.endswith(".js")]
    while scripts:  # and what the scripts import, in turn
        base = urljoin(page.url, scripts.pop())
        for name in re.findall(r'from "(\./[^"]+)"', fetch("GET", base).text):
            if (address := urljoin(base, name)) not in names:
                names.append(address)
                scripts.append(address)
    assert {name: fetch("GET", urljoin(page.url, name)).status_code for name in names} == dict.fromkeys(names, 200)


def test_the_api_of_openai_and_the_documents(site: str) -> None:
    form = {"model": (None, "any"), "file": ("a.wav", wav(), "audio/wav")}
    said = fetch("POST", f"{site}/pool/v1/audio/transcriptions", files=form)
    assert said.json()["text"] == "Hello there. Good --> day.", said.text
    wrong = fetch("POST", f"{site}/pool/v1/audio/transcriptions", files={"model": (None, "any")})
    assert wrong.json()["error"]["param"] == "file"  # in the form of the API below the prefix
    assert fetch("GET", f"{site}/pool/health").json()["service"] == "digital-human-service"
    document = fetch("GET", f"{site}/pool/openapi.json").json()
    assert document["servers"] == [{"url": "/pool"}]
    described = fetch("GET", f"{site}/pool/docs")
    assert "openapi.json" in described.text
    assert not re.findall(r"href=['\"]/", described.text)
    assert fetch("GET", f"{site}/pool/nowhere").status_code == 404


def test_without_a_prefix_nothing_changes(gateway: Gateway) -> None:
    assert "servers" not in gateway.get("/openapi.json").json()
    assert gateway.post("/jobs/echo", json={}).headers["Location"].startswith("/jobs/")


@pytest.mark.parametrize("prefix", ["pool", "//evil.example", "/a/../b", "/a b", "https://evil.example/", "/a, /b"])
def test_a_prefix_that_is_none_is_refused(gateway: Gateway, prefix: str) -> None:
    answer = gateway.get("/jobs", headers={"X-Forwarded-Prefix": prefix})
    assert answer.status_code == 400
    assert "X-Forwarded-Prefix" in answer.json()["error"]["message"]


# ---- pages of other origins


@pytest.fixture(scope="module", params=["", "correct-horse-battery-staple"], ids=["no token", "token"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that one other origin may use; nobody serves its spool, in which one job waits."""
    env = {"FILEPOOL_HTTP_TOKEN": request.param} if request.param else {}
    with passing(tmp_path_factory.mktemp("shared")) as world, Gateway(world, "--no-start", env=env) as gate:
        configure(world, "echo", cors_origins=[ORIGIN])
        world.pool().submit("echo", id="waits")
        gate.session.headers.update({"Authorization": f"Bearer {request.param}"} if request.param else {})
        yield gate.start()


def preflight(gate: Gateway, origin: str, method: str, path: str = "/jobs/echo") -> requests.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    headers["Access-Control-Request-Headers"] = "authorization,content-type,idempotency-key,x-stainless-os"
    return requests.options(gate.base + path, headers=headers, timeout=TIMEOUT_S)  # a browser sends no token with it


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_preflight_of_the_origin_that_is_named(shared: Gateway, method: str) -> None:
    answer = preflight(shared, ORIGIN, method)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert method in answer.headers["Access-Control-Allow-Methods"]
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert {"authorization", "content-type", "idempotency-key", "x-stainless-os"} <= set(allowed)


def test_a_preflight_of_any_other_origin(shared: Gateway) -> None:
    answer = preflight(shared, "https://evil.example", "POST")
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers
    why = "the origin 'https://evil.example' is not named in http.cors_origins"
    assert answer.json() == {"error": {"type": "Forbidden", "message": why, "path": ""}}
    assert preflight(shared, "https://evil.example", "POST", "/human/generate").json()["message"] == why
    assert preflight(shared, "https://evil.example", "POST", "/v1/models").json()["error"]["message"] == why
    method = preflight(shared, ORIGIN, "PATCH")
    assert method.json()["error"]["message"].startswith("pages of other origins may not use 'PATCH', only GET, ")


def test_the_page_may_read_what_it_needs(shared: Gateway) -> None:
    answer = shared.get("/jobs/waits", headers={"Origin": ORIGIN})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = answer.headers["Access-Control-Expose-Headers"].lower()
    for name in ("location", "x-job-id", "x-request-id", "retry-after", "content-disposition", "etag"):
        assert name in exposed
    other = shared.get("/jobs/waits", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    assert shared.call("DELETE", "/jobs/absent", headers={"Origin": ORIGIN}).status_code == 404  # not 403
    refused = requests.get(f"{shared.base}/jobs?nonsense=1", headers={"Origin": ORIGIN}, timeout=TIMEOUT_S)
    assert refused.status_code in (401, 422)
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN  # or the page could not read why


def test_without_configuration_no_origin(gateway: Gateway) -> None:
    assert preflight(gateway, ORIGIN, "GET").status_code >= 400
    assert "Access-Control-Allow-Origin" not in gateway.get("/jobs", headers={"Origin": ORIGIN}).headers
