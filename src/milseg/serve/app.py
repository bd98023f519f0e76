"""The app: what it answers, and how it describes itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response

from milseg._version import __version__
from milseg.config import ServeOptions
from milseg.errors import unknown_name
from milseg.inference.segmenter import Segmenter
from milseg.serve import openapi
from milseg.serve.engine import Engine
from milseg.serve.label_studio import add_label_studio
from milseg.serve.metrics import CONTENT_TYPE, Metrics
from milseg.serve.middleware import Guard, allowed_hosts
from milseg.serve.negotiate import best_type
from milseg.serve.problems import Problem, add_problem_handlers, busy
from milseg.serve.requests import Upload, read_body, read_upload
from milseg.serve.responses import SHOWN_RULES, as_json, chosen_instances, described_classes, heat_maps, png

JSON, PNG = "application/json", "image/png"
PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "coco.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
INCLUDE = ("heat", "instances")


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the routes share.

    Attributes:
        segmenter: the model.
        name: what the model is called.
        engine, metrics: see there.
        examples: name -> bytes of a photo that the page offers; read at the start, so that no request opens a file.
        token: what requests must carry; "" for none.
        label_studio_token: of the Label Studio that is answered; "" for none.
    """

    segmenter: Segmenter
    name: str
    options: ServeOptions
    engine: Engine
    examples: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
    token: str = ""
    label_studio_token: str = ""
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        gauges = {
            "milseg_photos_taken": ("Photos in work or waiting.", lambda: float(self.engine.taken)),
            "milseg_photos_capacity": (
                "Photos that may be in work or wait.",
                lambda: float(self.engine.capacity),
            ),
        }
        object.__setattr__(self, "metrics", Metrics(gauges))


def build(server: Server) -> Guard:
    """The whole server as one ASGI app, guarded."""
    options = server.options
    return Guard(
        make_app(server),
        metrics=server.metrics,
        hosts=allowed_hosts(options),
        origins=options.allow_host,
        token=server.token,
        max_body=options.max_body * 2**20,
    )


def make_app(server: Server) -> FastAPI:
    """The routes, unguarded."""
    # No interactive documentation: FastAPI's would load its scripts from elsewhere.
    app = FastAPI(
        title="milseg",
        version=__version__,
        description=openapi.ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )
    add_problem_handlers(app)
    _add_page(app, server)
    _add_state(app, server)
    _add_segment(app, server)
    add_label_studio(
        app,
        server.segmenter,
        server.engine,
        name=server.name,
        url=server.options.label_studio_url,
        token=server.label_studio_token,
        max_bytes=server.options.max_body * 2**20,
    )
    return app


def _add_page(app: FastAPI, server: Server) -> None:
    folder = files("milseg.serve") / "page"
    page = {name: (folder / name).read_bytes() for name in PAGE_FILES}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page["index.html"], media_type=PAGE_FILES["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in page:
            raise Problem(404, "no such file of the page")
        return Response(page[name], media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})

    @app.get(
        "/v1/examples/{name}",
        summary="A photo that the page offers",
        response_class=Response,
        responses=openapi.EXAMPLE_RESPONSES,
    )
    async def example(name: str) -> Response:
        if name not in server.examples:
            raise Problem(404, "no such example; GET /v1/model lists them")
        data, kind = server.examples[name]
        return Response(data, media_type=kind)


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/health", summary="Whether the server lives", responses=openapi.STATE_RESPONSES)
    async def health() -> dict[str, str]:
        # Label Studio asks here too, and reads model_class.
        return {"status": "UP", "model_class": f"milseg {server.name}"}

    @app.get(
        "/ready",
        summary="Whether the server takes photos",
        responses=openapi.STATE_RESPONSES | openapi.BUSY,
    )
    async def ready() -> dict[str, str]:
        if server.engine.closing:
            raise busy("the server is stopping", 10)
        return {"status": "ready"}

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        response_class=PlainTextResponse,
        responses=openapi.METRICS_RESPONSES,
    )
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/model", summary="What the model knows", responses=openapi.MODEL_RESPONSES)
    async def model() -> dict[str, Any]:
        spec = server.segmenter.spec
        return {
            "name": server.name,
            "classes": described_classes(server.segmenter.classes),
            "supervision": spec.supervision,
            "tags_from": spec.tags_from,
            "backbone": spec.backbone,
            "rules": list(SHOWN_RULES),
            "examples": list(server.examples),
            "max_body": server.options.max_body * 2**20,
            "max_pixels": server.options.max_pixels,
            "milseg_version": __version__,
        }


def _add_segment(app: FastAPI, server: Server) -> None:
    @app.post(
        "/v1/segment",
        summary="The mask of a photo",
        description=openapi.SEGMENT,
        openapi_extra={"requestBody": openapi.PHOTO_BODY},
        responses=openapi.SEGMENT_RESPONSES,
        response_class=Response,
    )
    async def segment(
        request: Request,
        tags: str | None = Query(None, description=openapi.TAGS, examples=["cat,dog"], max_length=10_000),
        include: str = Query("", description=openapi.INCLUDE, json_schema_extra=openapi.INCLUDE_SCHEMA),
        rule: str = Query("max", description=openapi.RULE, json_schema_extra=openapi.RULE_SCHEMA),
    ) -> Response:
        kind = best_type(request.headers.get("accept", ""), (JSON, PNG))
        if kind is None:
            raise Problem(406, f"Accept: expected {JSON} or {PNG}")
        wanted = [word.strip() for word in include.split(",") if word.strip()]
        if not set(wanted) <= set(INCLUDE):
            raise Problem(422, f"include is {include!r}; expected words of {', '.join(INCLUDE)}")
        if rule not in SHOWN_RULES:
            raise Problem(422, f"rule is {rule!r}; expected one of {', '.join(SHOWN_RULES)}")
        with server.engine.slot():
            body = await read_body(request)
            content_type = request.headers.get("content-type", "")
            answer = await server.engine.run(
                request, _compute, server, body, content_type, tags, wanted, rule, kind
            )
        return Response(answer, media_type=kind)


def _compute(
    server: Server,
    body: bytes,
    content_type: str,
    tags: str | None,
    wanted: Sequence[str],
    rule: str,
    kind: str,
) -> bytes:
    """From the body to the answer; in a worker thread."""
    upload: Upload = read_upload(body, content_type)
    known = upload.fields.get("tags", tags)
    present = None if known is None else known_classes(known, server.segmenter.classes)
    found = server.segmenter.segment(server.engine.decode(upload.data), tags=present)
    if kind == PNG:
        return png(found.mask)
    answer = as_json(found, upload.name)
    if "heat" in wanted:
        answer["heat"] = heat_maps(found)
    if "instances" in wanted:
        shown = [name for name, _ in found.tags] if present is None else present
        answer["instances"] = chosen_instances(server.segmenter, found, shown, rule)
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def known_classes(words: str, classes: Sequence[str]) -> list[str]:
    """The classes named in words with commas.

    Raises:
        UserError: a word that is no class.
    """
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in classes:
            # Before the photo is decoded; and a very long word is not repeated.
            raise unknown_name("tag", name[:100], classes)
    return names


def read_examples(folder: Path, limit: int = 12) -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, media type) of the first photos of a folder; none where there is no folder."""
    kinds = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in kinds) if folder.is_dir() else []
    return {p.name: (p.read_bytes(), kinds[p.suffix.lower()]) for p in found[:limit]}
