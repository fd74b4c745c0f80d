"""Errors in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


class ServiceError(Exception):
    """A request that cannot be fulfilled.

    Args:
        status: of the answer.
        message: what is wrong.
        code: the same for programs.
        parameter: name of the parameter that is wrong, if it is one.
    """

    def __init__(self, status: int, message: str, code: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.parameter = status, code, parameter


def error_body(
    status: int, message: str, code: str, parameter: str | None = None
) -> dict[str, Any]:
    """The JSON of an error. `detail` is what clients of A1111's API show."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = _encodable(message)
    parameter = None if parameter is None else _encodable(parameter)
    error = {"message": message, "type": kind, "param": parameter, "code": code}
    return {"error": error, "detail": message}


def _encodable(text: str) -> str:
    """`text` without lone surrogates, which a request's JSON may contain and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(
    status: int,
    message: str,
    code: str,
    parameter: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse(error_body(status, message, code, parameter), status, headers=headers)


async def service_error(_: Request, error: Any) -> JSONResponse:
    """Handler of ServiceError."""
    return error_response(error.status, str(error), error.code, error.parameter)


async def bad_request(_: Request, error: Any) -> JSONResponse:
    """Handler of BadRequestError."""
    return error_response(400, str(error), "invalid_request_error", error.parameter)


async def not_found(request: Request, error: Any) -> JSONResponse:
    """Handler of 404 and 405."""
    if error.status_code == 405:
        message = f"{request.method} is not allowed here"
        return error_response(405, message, "not_allowed", headers=dict(error.headers or {}))
    return error_response(404, "not found", "not_found")
