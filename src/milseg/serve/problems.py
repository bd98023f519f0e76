"""What goes wrong, as the answer says it: JSON problem details (RFC 9457), never a trace."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from milseg.errors import UserError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        detail: what was found, what was expected, the way out.
        headers: of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        # Half a character, which a name may hold, cannot be sent.
        self.detail = detail.encode("utf-8", "backslashreplace").decode()
        self.status, self.headers = status, dict(headers or {})

    def response(self) -> JSONResponse:
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return JSONResponse(body, self.status, self.headers, media_type=MEDIA_TYPE)


def busy(detail: str, seconds: int) -> Problem:
    """503, with the seconds after which another try makes sense."""
    return Problem(503, detail, {"Retry-After": str(seconds)})


def add_problem_handlers(app: FastAPI) -> None:
    """Every error of the app as problem details; a bug's trace goes to the log alone."""

    @app.exception_handler(Problem)
    async def known(request: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        return Problem(422, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        told = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors()]
        return Problem(422, "; ".join(told)).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), error.headers).response()

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return Problem(500, "the server failed; its log says why").response()
