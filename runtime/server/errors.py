"""What goes wrong, as OpenAI's clients understand it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


class ServiceError(Exception):
    """A request that is not met, though nothing is wrong with it.

    Args:
        status: of the answer.
        message: what is wrong.
        code: the same for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


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


async def not_met(_: Request, error: Any) -> JSONResponse:
    """The handler of ServiceError."""
    return error_response(error.status, str(error), error.code)


async def bad_request(_: Request, error: Any) -> JSONResponse:
    """The handler of BadRequestError."""
    return error_response(400, str(error), "invalid_request_error", error.parameter)


async def no_such_address(request: Request, error: Any) -> JSONResponse:
    """The handler of 404 and 405."""
    if error.status_code == 405:
        message = f"{request.method} is not allowed here"
        return error_response(405, message, "not_allowed", headers=dict(error.headers or {}))
    return error_response(404, "there is nothing here", "not_found")
