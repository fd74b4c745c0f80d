"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

from runtime.server.requests import INTERPOLATION, generation
from runtime.version import __version__

# Of answers that are no JSON: what a client would not expect, in ASCII.
WARNING_HEADER = "X-Galip-Edge-Warning"


def document(side: int, most: int, with_key: bool) -> dict[str, Any]:
    """The document of a server.

    Args:
        side: of the model's pictures, in pixels.
        most: pictures of one request.
        with_key: whether an API key is asked for.
    """
    picture = {
        "type": "object",
        "properties": {"url": {"type": "string"}, "b64_json": {"type": "string"}},
    }
    pictures = {
        "type": "object",
        "properties": {
            "created": {"type": "integer"},
            "seed": {"type": "integer", "description": "The one that the pictures were made with."},
            "data": {"type": "array", "items": picture},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["created", "seed", "data", "warnings"],
    }
    keyed: dict[str, Any] = {"security": [{"key": []}]} if with_key else {}
    refusals = ("401", "403") if with_key else ("403",)

    def posting(
        summary: str, name: str, wanted: dict[str, Any], given: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        return {
            "post": {
                "summary": summary,
                "operationId": name,
                "requestBody": {"required": True, "content": _json(wanted)},
                "responses": {
                    "200": {"description": summary, "content": given, **more},
                    **_errors("400", *refusals, "429", "500", "503", "504"),
                },
                **keyed,
            }
        }

    def getting(summary: str, *others: str, **more: Any) -> dict[str, Any]:
        given = {"200": {"description": summary}, **_errors(*others)}
        return {"get": {"summary": summary, "responses": given, **more}}

    def named(summary: str, **more: Any) -> dict[str, Any]:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        return getting(summary, "404", *more.pop("others", ()), parameters=[name], **more)

    components: dict[str, Any] = {}
    if with_key:
        components = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "galip-edge", "version": __version__},
        "paths": {
            "/v1/images/generations": posting(
                "Pictures of a prompt",
                "generate",
                generation(side, most).schema(),
                _json(pictures),
            ),
            "/v1/images/interpolations": posting(
                "A picture between two",
                "interpolate",
                INTERPOLATION.schema(),
                {"image/png": {"schema": {"type": "string", "format": "binary"}}},
                headers={WARNING_HEADER: {"schema": {"type": "string"}}},
            ),
            "/v1/models": getting("Models", *refusals, **keyed),
            "/v1/models/{name}": named("A model", others=refusals, **keyed),
            "/v1/pictures/{name}": named("A picture whose address was given"),
            "/healthz": getting("Whether the process lives"),
            "/readyz": getting("Whether it takes requests", "503"),
            "/metrics": getting("For Prometheus"),
        },
        "components": components,
    }


_MEANINGS = {
    "400": "The request cannot be met; `param` says what is wrong.",
    "401": "The API key is missing or wrong.",
    "403": "A page of another site asked.",
    "404": "There is none of this name.",
    "429": "Too many pictures are waited for; see `Retry-After`.",
    "500": "The pictures could not be made.",
    "503": "The server is starting or ending.",
    "504": "It took too long.",
}


def _json(kind: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": kind}}


def _errors(*statuses: str) -> dict[str, Any]:
    said = {
        "type": "object",
        "properties": {"error": {"type": "object", "required": ["message", "type"]}},
        "required": ["error"],
    }
    return {
        status: {"description": _MEANINGS[status], "content": _json(said)} for status in statuses
    }
