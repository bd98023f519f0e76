"""Label Studio's ML backend: its tasks come in, brush masks go back as predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from milseg.annotations.label_studio import brush_regions
from milseg.errors import UserError
from milseg.inference.segmenter import Segmenter
from milseg.serve import openapi
from milseg.serve.engine import Engine
from milseg.serve.label_studio_photos import LabelStudioFiles
from milseg.serve.labeling_config import Brush, read_config
from milseg.serve.problems import Problem
from milseg.serve.requests import read_body, read_json

log = logging.getLogger("milseg.serve")
MAX_SETUP = 2**22  # bytes of a project's settings
# Each takes from 0.02 seconds on; Label Studio itself waits for 100 seconds.
MAX_TASKS = 1000
MAX_ANSWER = 2**27  # bytes


def known_tags(task: dict[str, Any], classes: Iterable[str]) -> list[str] | None:
    """The classes that people ticked as choices of this photo; None where nobody ticked any.

    Choices that are no class of the model say nothing about its classes.
    """
    ticked: set[str] = set()
    for annotation in task.get("annotations") or []:
        for region in annotation.get("result") or []:
            if region.get("type") == "choices":
                ticked.update(region["value"]["choices"])
    return [name for name in classes if name in ticked and name != "background"] or None


def add_label_studio(
    app: FastAPI,
    segmenter: Segmenter,
    engine: Engine,
    *,
    name: str,
    url: str | None,
    token: str,
    max_bytes: int,
) -> None:
    """The routes that Label Studio calls besides /health: /setup, /versions, /predict and /webhook."""
    backend = Backend(segmenter, engine, LabelStudioFiles(url, token, max_bytes=max_bytes), name)

    @app.post(
        "/setup",
        summary="Label Studio: connect a project",
        openapi_extra={"requestBody": openapi.SETUP_BODY},
        responses=openapi.SETUP_RESPONSES,
    )
    async def setup(request: Request) -> dict[str, str]:
        with engine.slot():
            body = await read_body(request, MAX_SETUP)
            await engine.run(request, check_setup, body)
        return {"model_version": name}

    @app.post("/webhook", summary="Label Studio: news of annotations", responses=openapi.WEBHOOK_RESPONSES)
    async def webhook() -> dict[str, str]:
        # Label Studio sends every backend what happens in its project; refused, it would call that an error.
        return {"status": "not used: milseg does not train from annotations"}

    @app.get("/versions", summary="Label Studio: versions of the model", responses=openapi.VERSIONS_RESPONSES)
    async def versions() -> dict[str, list[str]]:
        return {"versions": [name]}

    @app.post(
        "/predict",
        summary="Label Studio: predictions of tasks",
        openapi_extra={"requestBody": openapi.PREDICT_BODY},
        responses=openapi.PREDICT_RESPONSES,
    )
    async def predict(request: Request) -> Response:
        with engine.slot():
            body = await read_body(request)
            brush, tasks = await engine.run(request, read_tasks, body)
            del body
            results: list[bytes] = []
            mistakes: list[UserError] = []
            for task in tasks:
                try:
                    results.append(await engine.run(request, backend.predict, task, brush))
                except UserError as error:
                    # One photo that cannot be read takes no prediction from the others.
                    log.warning("%s", error)
                    mistakes.append(error)
                    results.append(_as_json({"result": [], "score": 0.0, "model_version": name}))
                if sum(map(len, results)) > MAX_ANSWER:
                    raise Problem(
                        422, f"masks of more than {MAX_ANSWER // 2**20} MiB; send fewer tasks at once"
                    )
            if mistakes and len(mistakes) == len(tasks):
                raise mistakes[0]
        return Response(b'{"results":[' + b",".join(results) + b"]}", media_type="application/json")


def check_setup(body: bytes) -> None:
    """Look at what Label Studio tells when a project is connected; called in a worker thread.

    Raises:
        Problem, UserError: no JSON, or a labeling configuration that cannot be used.
    """
    found = read_json(body)
    schema = found.get("schema") or found.get("label_config")
    # A project may be connected before it has its labels.
    if isinstance(schema, str) and "<BrushLabels" in schema:
        read_config(schema)


def read_tasks(body: bytes) -> tuple[Brush, list[Any]]:
    """The brush and the tasks of a request; called in a worker thread.

    Raises:
        Problem, UserError: no JSON, no list of tasks or a long one, or a labeling configuration that cannot be used.
    """
    found = read_json(body)
    config, tasks = found.get("label_config"), found.get("tasks")
    if not isinstance(config, str) or not isinstance(tasks, list):
        raise Problem(422, "expected tasks, a list, and label_config, the labeling configuration")
    if len(tasks) > MAX_TASKS:
        raise Problem(422, f"{len(tasks):,} tasks; expected at most {MAX_TASKS:,} at once")
    return read_config(config), tasks


class Backend:
    """Predictions of tasks.

    Args:
        segmenter, engine: see there.
        files: where photos are read from.
        name: the model's version.
    """

    def __init__(self, segmenter: Segmenter, engine: Engine, files: LabelStudioFiles, name: str) -> None:
        self.segmenter, self.engine, self.files, self.name = segmenter, engine, files, name

    def predict(self, task: Any, brush: Brush) -> bytes:
        """One task's prediction as JSON; called in a worker thread.

        Raises:
            UserError: names the task, which has no photo or one that cannot be read.
        """
        classes = self.segmenter.classes
        number = task.get("id") if isinstance(task, dict) else None
        shown = str(number)[:40] if isinstance(number, int | str) else None
        try:
            address = task["data"][brush.key]
            tags = known_tags(task, classes)
        except (KeyError, TypeError, AttributeError):
            address, tags = None, None
        if not isinstance(address, str):
            raise UserError(f"task {shown}: expected data with {brush.key[:100]!r}, the photo's address")
        try:
            photo = self.engine.decode(self.files.read(address))
        except UserError as error:
            raise UserError(f"task {shown}: {error}") from None
        found = self.segmenter.segment(photo, tags=tags)
        confidence = dict(found.tags)
        labels = {classes.index(label): label for label, _ in found.tags if label in brush.labels}
        regions = brush_regions(
            found.mask,
            dict(sorted(labels.items())),
            lambda label: round(confidence[label], 6),
            from_name=brush.from_name,
            to_name=brush.to_name,
        )
        score = round(found.confidence, 6)
        return _as_json({"result": regions, "score": score, "model_version": self.name})


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
