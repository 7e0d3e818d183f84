"""Whether the events of a stream are those that the OpenAPI document describes."""

from __future__ import annotations

import copy
from typing import Any

from jsonschema import Draft202012Validator

from gateways.gateway import Gateway


class Described:
    """The events of one route, as the document has them; no object may have keys that it does not name."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        document = gateway.get("/openapi.json").json()
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"]
        self._components = _closed(copy.deepcopy(document["components"]))
        self._items = {
            one["properties"]["event"]["const"]: one["properties"] for one in answer["x-itemSchema"]["oneOf"]
        }

    @property
    def names(self) -> set[str]:
        """Of all events that there may be."""
        return set(self._items)

    def faults(self, name: str, data: dict[str, Any], event_id: str = "") -> list[str]:
        """What is wrong with one event."""
        about = self._items[name]
        schema = {**_closed(copy.deepcopy(about["data"]["contentSchema"])), "components": self._components}
        found = [f"{name}: {one.json_path}: {one.message}" for one in Draft202012Validator(schema).iter_errors(data)]
        if event_id and "id" not in about:
            found.append(f"{name} has an id")
        return found


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("properties"), dict):
        schema.setdefault("additionalProperties", False)
    return {key: _closed(one) for key, one in schema.items()}
