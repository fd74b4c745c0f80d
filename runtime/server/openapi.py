"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

from runtime.server.schema import INTERPOLATION, generation
from runtime.version import __version__

# Warnings of responses other than JSON, in ASCII.
WARNING_HEADER = "X-Galip-Edge-Warning"


def document(max_images: int, with_key: bool) -> dict[str, Any]:
    """Create the document of a server.

    Args:
        max_images: of one request.
        with_key: whether an API key is required.
    """
    image = {
        "type": "object",
        "properties": {"url": {"type": "string"}, "b64_json": {"type": "string"}},
    }
    images = {
        "type": "object",
        "properties": {
            "created": {"type": "integer"},
            "seed": {"type": "integer", "description": "Seed of the images."},
            "data": {"type": "array", "items": image},
            "warnings": {"type": "array", "items": {"type": "string"}},
            "background": {"type": "string"},
            "output_format": {"type": "string"},
            "quality": {"type": "string"},
            "size": {"type": "string"},
            "usage": {"type": "object"},
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
                    **_errors("400", *refusals, "404", "429", "500", "503", "504"),
                },
                **keyed,
            }
        }

    def getting(summary: str, *statuses: str, **more: Any) -> dict[str, Any]:
        given = {"200": {"description": summary}, **_errors(*statuses)}
        return {"get": {"summary": summary, "responses": given, **more}}

    def named(summary: str, **more: Any) -> dict[str, Any]:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        return getting(summary, "404", *more.pop("statuses", ()), parameters=[name], **more)

    components: dict[str, Any] = {}
    if with_key:
        components = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "galip-edge", "version": __version__},
        "paths": {
            "/v1/images/generations": posting(
                "Images of a prompt",
                "generate",
                generation(max_images).schema(),
                {**_json(images), "text/event-stream": {"schema": {"type": "string"}}},
            ),
            "/v1/images/interpolations": posting(
                "An interpolated image",
                "interpolate",
                INTERPOLATION.schema(),
                {"image/png": {"schema": {"type": "string", "format": "binary"}}},
                headers={WARNING_HEADER: {"schema": {"type": "string"}}},
            ),
            "/v1/models": getting("Models", *refusals, **keyed),
            "/v1/models/{name}": named("A model", statuses=refusals, **keyed),
            "/v1/files/{name}": named("An image returned by URL"),
            "/healthz": getting("Liveness"),
            "/readyz": getting("Readiness", "503"),
            "/metrics": getting("Prometheus metrics"),
        },
        "components": components,
    }


_MEANINGS = {
    "400": "The request is invalid; `param` names the parameter.",
    "401": "The API key is missing or wrong.",
    "403": "Cross-site request, or unknown Host.",
    "404": "Not found.",
    "429": "The queue is full; see `Retry-After`.",
    "500": "The images could not be generated.",
    "503": "The server is starting or stopping.",
    "504": "The request timed out.",
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
