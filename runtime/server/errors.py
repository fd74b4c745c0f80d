"""What goes wrong, as OpenAI's clients understand it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


def error_response(
    status: int,
    message: str,
    code: str,
    parameter: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
    return JSONResponse(body, status, headers=headers)


async def no_such_address(request: Request, error: Any) -> JSONResponse:
    """The handler of 404 and 405."""
    if error.status_code == 405:
        message = f"{request.method} is not allowed here"
        return error_response(405, message, "not_allowed", headers=dict(error.headers or {}))
    return error_response(404, "there is nothing here", "not_found")
