"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

from runtime.server.requests import schema
from runtime.version import __version__


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
        },
        "required": ["created", "seed", "data"],
    }
    keyed: dict[str, Any] = {"security": [{"key": []}]} if with_key else {}
    refused = {"401": _error("The API key is missing or wrong.")} if with_key else {}
    generations: dict[str, Any] = {
        "summary": "Pictures of a prompt",
        "operationId": "generate",
        "requestBody": {"required": True, "content": _json(schema(side, most))},
        "responses": {
            "200": {"description": "The pictures.", "content": _json(pictures)},
            "400": _error("The request cannot be met; `param` says what is wrong."),
            "429": _error("Too many pictures are waited for; see `Retry-After`."),
            "500": _error("The pictures could not be made."),
            "503": _error("The server is starting or ending."),
            "504": _error("It took too long."),
            **refused,
        },
        **keyed,
    }

    def getting(summary: str, *others: str, **more: Any) -> dict[str, Any]:
        answers = {status: _error(_MEANINGS[status]) for status in others}
        given = {"200": {"description": "It."}, **answers}
        return {"get": {"summary": summary, "responses": given, **more}}

    def named(summary: str, **more: Any) -> dict[str, Any]:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        return getting(summary, "404", *more.pop("others", ()), parameters=[name], **more)

    models = ("401",) if with_key else ()
    components: dict[str, Any] = {}
    if with_key:
        components = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "galip-edge", "version": __version__},
        "paths": {
            "/v1/images/generations": {"post": generations},
            "/v1/models": getting("Models", *models, **keyed),
            "/v1/models/{name}": named("A model", others=models, **keyed),
            "/v1/pictures/{name}": named("A picture whose address was given"),
            "/healthz": getting("Whether the process lives"),
            "/readyz": getting("Whether it takes requests", "503"),
            "/metrics": getting("For Prometheus"),
        },
        "components": components,
    }


_MEANINGS = {
    "401": "The API key is missing or wrong.",
    "404": "There is none of this name.",
    "503": "The server is starting or ending.",
}


def _json(kind: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": kind}}


def _error(description: str) -> dict[str, Any]:
    said = {
        "type": "object",
        "properties": {"error": {"type": "object", "required": ["message", "type"]}},
        "required": ["error"],
    }
    return {"description": description, "content": _json(said)}
