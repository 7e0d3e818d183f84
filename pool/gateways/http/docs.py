"""The OpenAPI document, and a page that shows it without third-party scripts."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse

from pool.gateways.http.settings import Settings
from pool.gateways.http.told import definitions

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .4rem 0 } code, pre { font: 13px/1.5 ui-monospace, monospace }
pre { overflow: auto; padding: .8rem; border: 1px solid #8884; border-radius: 6px }
b.method { display: inline-block; width: 5rem } details { border-bottom: 1px solid #8884 }
"""
_METHODS = ("get", "post", "put", "delete", "head", "patch")


def make_routes(app: FastAPI) -> APIRouter:
    """The page /docs."""
    router = APIRouter()

    @router.head("/docs", include_in_schema=False)
    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))

    return router


def declare(app: FastAPI, settings: Settings) -> None:
    """Add to the document the bearer token, if one is set, and the error responses that every route may give."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions().items():
                schemas.setdefault(name, schema)
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if method in _METHODS:
                        _complete(path, operation, document, settings)
            if settings.token is not None:
                schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["token"] = {"type": "http", "scheme": "bearer"}
                document["security"] = [{"token": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(path: str, operation: dict[str, Any], document: dict[str, Any], settings: Settings) -> None:
    found = operation["responses"]
    schema = next((found[code]["content"] for code in ("404", "403", "400") if code in found), None)
    if (
        found.get("422", {})
        .get("content", {})
        .get("application/json", {})
        .get("schema", {})
        .get("$ref", "")
        .endswith("HTTPValidationError")
    ):
        del found["422"]  # the framework's own, which is never sent
    if path == "/health":
        operation["security"] = []
        return
    statuses = {"429": "Too many requests"}
    if settings.token is not None:
        statuses["401"] = "The token is missing or wrong"
    for code, words in statuses.items():
        if schema is not None:
            found.setdefault(code, {"description": words, "content": schema})


def _page(document: dict[str, Any]) -> str:
    parts = [f"<h1>{html.escape(document['info']['title'])} {html.escape(document['info']['version'])}</h1>"]
    parts.append(f"<p>{html.escape(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in _METHODS:
                continue
            summary = html.escape(operation.get("summary", ""))
            parts.append(f"<details><summary><b class=method>{method.upper()}</b> <code>{html.escape(path)}</code>")
            parts.append(f" {summary}</summary><p>{html.escape(operation.get('description', ''))}</p>")
            about = {key: operation[key] for key in ("parameters", "requestBody", "responses") if key in operation}
            parts.append(f"<pre>{html.escape(json.dumps(about, indent=2))}</pre></details>")
    schemas = document.get("components", {}).get("schemas", {})
    parts.append("<h2>Schemas</h2>")
    for name, schema in schemas.items():
        parts.append(f"<details><summary><code>{html.escape(name)}</code></summary>")
        parts.append(f"<pre>{html.escape(json.dumps(schema, indent=2))}</pre></details>")
    title = html.escape(document["info"]["title"])
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>{''.join(parts)}"
