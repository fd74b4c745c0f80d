"""The page for people: plain files beside this module, which need nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"


def studio_routes() -> list[BaseRoute]:
    """The page at `/studio/`, to which `/` leads."""
    return [Route("/", _to_studio), Mount("/studio", _Files(directory=FOLDER, html=True))]


async def _to_studio(_: Request) -> Response:
    return RedirectResponse("studio/")


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Asked for again by its ETag, so that a new version's files never mix with old ones."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
