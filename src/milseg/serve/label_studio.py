"""Label Studio's ML backend: its tasks come in, brush masks go back as predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from fastapi import FastAPI, Request

from milseg.annotations.label_studio import brush_regions
from milseg.errors import UserError
from milseg.inference.segmenter import Segmenter
from milseg.serve import openapi
from milseg.serve.engine import Engine, decode
from milseg.serve.label_studio_photos import LabelStudioFiles
from milseg.serve.problems import Problem
from milseg.serve.requests import read_body

log = logging.getLogger("milseg.serve")


@dataclass(frozen=True, kw_only=True)
class Brush:
    """What a labeling configuration says of masks.

    Attributes:
        from_name, to_name: names of the brush and of its image.
        key: the field of a task that holds the photo's address.
        labels: the brush's labels.
    """

    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]


def read_config(text: str) -> Brush:
    """The first brush of a labeling configuration.

    Raises:
        UserError: not XML, XML that defines entities, or no brush on an image.
    """
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, ValueError) as error:
        # DefusedXmlException is a ValueError: entities, which may expand without end, or a DTD.
        reason = "it defines entities" if isinstance(error, DefusedXmlException) else error
        raise UserError(f"the labeling configuration cannot be read ({reason})") from None
    images = {image.get("name"): image.get("value", "") for image in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        name, target = brush.get("name"), brush.get("toName")
        value = images.get(target)
        if name and target and value and value.startswith("$"):
            return Brush(from_name=name, to_name=target, key=value[1:], labels=_labels(brush))
    raise UserError(
        'the labeling configuration has no brush on an image; expected <Image name="image" value="$image"/> and '
        '<BrushLabels name="brush" toName="image"> with the model\'s classes as labels'
    )


def _labels(brush: Element) -> tuple[str, ...]:
    return tuple(label.get("value", "") for label in brush.iter("Label"))


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
    max_pixels: int,
) -> None:
    """The routes that Label Studio calls besides /health: /setup, /versions, /predict and /webhook."""
    photos = LabelStudioFiles(url, token, max_bytes=max_bytes)

    @app.post(
        "/setup",
        summary="Label Studio: connect a project",
        openapi_extra={"requestBody": openapi.SETUP_BODY},
        responses=openapi.SETUP_RESPONSES,
    )
    async def setup(request: Request) -> dict[str, str]:
        body = await _json(request)
        schema = body.get("schema") or body.get("label_config")
        # A project may be connected before it has its labels.
        if isinstance(schema, str) and "<BrushLabels" in schema:
            read_config(schema)
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
    async def predict(request: Request) -> dict[str, list[dict[str, Any]]]:
        with engine.place():
            body = await _json(request)
            config, tasks = body.get("label_config"), body.get("tasks")
            if not isinstance(config, str) or not isinstance(tasks, list):
                raise Problem(422, "expected tasks, a list, and label_config, the labeling configuration")
            brush = read_config(config)
            results: list[dict[str, Any]] = []
            mistakes: list[UserError] = []
            for task in tasks:
                try:
                    results.append(await engine.run(_predict, task, brush))
                except UserError as error:
                    # One photo that cannot be read takes no prediction from the others.
                    log.warning("%s", error)
                    mistakes.append(error)
                    results.append({"result": [], "score": 0.0, "model_version": name})
            if mistakes and len(mistakes) == len(tasks):
                raise mistakes[0]
            return {"results": results}

    def _predict(task: Any, brush: Brush) -> dict[str, Any]:
        """One task's prediction; in a worker thread."""
        number = task.get("id") if isinstance(task, dict) else None
        try:
            address = task["data"][brush.key]
            tags = known_tags(task, segmenter.classes)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"task {number}: expected data with {brush.key!r}, the photo's address") from None
        try:
            photo = decode(photos.read(str(address)), max_pixels, segmenter.spec.value_ranges)
        except UserError as error:
            raise UserError(f"task {number}: {error}") from None
        found = segmenter.segment(photo, tags=tags)
        sure = dict(found.tags)
        labels = {segmenter.classes.index(label): label for label, _ in found.tags if label in brush.labels}
        regions = brush_regions(
            found.mask,
            dict(sorted(labels.items())),
            lambda label: round(sure[label], 6),
            from_name=brush.from_name,
            to_name=brush.to_name,
        )
        return {"result": regions, "score": round(found.confidence, 6), "model_version": name}


async def _json(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Problem: 400, it is none.
    """
    try:
        found = json.loads(await read_body(request))
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Problem(422, "expected a JSON object")
    return found
