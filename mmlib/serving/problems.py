"""What an error looks like: RFC 9457's problem details, without stack traces.

Every answer with a status from 400 on is one JSON object: ``title`` (what the status means),
``status``, ``detail`` (what is wrong, in words) and ``request_id`` (to find it in the log).
"""

import http
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

__all__ = [
    "Problem",
    "Refused",
    "add_problem_handlers",
    "problem_response",
    "problem_responses",
    "reason",
]

MEDIA_TYPE = "application/problem+json"


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: From 400 on.
        detail: Why, for the one who asked.
        retry_after: Seconds after which it may be tried again.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Problem(BaseModel):
    """The body of every error."""

    title: str
    status: int
    detail: str
    request_id: str


def problem_response(
    status: int, detail: str, request_id: str, retry_after: int | None = None
) -> JSONResponse:
    """An error as a response."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    title = http.HTTPStatus(status).phrase
    problem = Problem(title=title, status=status, detail=detail, request_id=request_id)
    return JSONResponse(problem.model_dump(), status, headers, media_type=MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI page."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def reason(error: Mapping[str, Any]) -> str:
    """The words of one of pydantic's errors; those of our own checks come after "Value error"."""
    return error["msg"].removeprefix("Value error, ")


def add_problem_handlers(app: FastAPI) -> None:
    """Let every error of an application be a :class:`Problem`."""

    def respond(request: Request, status: int, detail: str, retry_after: int | None = None):
        return problem_response(status, detail, request.scope.get("request_id", ""), retry_after)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return respond(request, error.status, error.detail, error.retry_after)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        response = respond(request, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})  # which methods are allowed
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Not the input itself, which may be long, secret, or NaN, which JSON does not have.
        reasons = [
            f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {reason(one)}"[:200]
            for one in error.errors()[:5]
        ]
        detail = "; ".join(reasons).encode("utf-8", "replace").decode()
        return respond(request, 422, detail)
