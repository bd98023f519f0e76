"""The API's words, schemas and examples, as its OpenAPI description holds them."""

from __future__ import annotations

from typing import Any

from milseg.serve.problems import MEDIA_TYPE
from milseg.serve.responses import SHOWN_RULES

Responses = dict[int | str, dict[str, Any]]

ABOUT = "Photos in, masks out: a network trained from image tags, behind HTTP."
SEGMENT = (
    "Send a photo (JPEG, PNG, WebP, TIFF, ...) as the multipart field `photo`, or as the body itself. The Accept "
    "header chooses the answer: `image/png` is the palette mask at the photo's own size, its values class numbers; "
    "`application/json` is a COCO data set of this one photo with compressed run lengths, and besides it the tags the "
    "model saw and how sure it is."
)
TAGS = (
    "Classes known to be in the photo, with commas; the others, but for the background, are ruled out. Also as a "
    "form field."
)
INCLUDE = (
    "More in the JSON, with commas: heat (each class's probability over the photo), instances (the places that a "
    "rule would teach from these tags)."
)
INCLUDE_SCHEMA: dict[str, Any] = {
    "pattern": "^((heat|instances)(,(heat|instances))*)?$",
    "examples": ["heat,instances"],
}
RULE = "The rule whose instances are included."
RULE_SCHEMA: dict[str, Any] = {"enum": list(SHOWN_RULES)}

_PHOTO = {"type": "string", "format": "binary"}
PHOTO_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["photo"],
                "properties": {
                    "photo": {**_PHOTO, "description": "the photo's file"},
                    "tags": {"type": "string", "description": TAGS},
                },
            }
        },
        "image/jpeg": {"schema": _PHOTO},
        "image/png": {"schema": _PHOTO},
        "application/octet-stream": {"schema": _PHOTO},
    },
}

_COCO = {
    "info": {"description": "Masks predicted by milseg"},
    "licenses": [],
    "images": [{"id": 1, "file_name": "cat.jpg", "width": 4, "height": 2}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [2, 4], "counts": "22"},
            "area": 2,
            "bbox": [1, 0, 1, 2],
            "iscrowd": 0,
            "score": 0.97,
        }
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
    "tags": [{"name": "cat", "confidence": 0.97, "area": 0.25}],
    "tags_given": False,
    "confidence": 0.91,
}


def _json(about: str, example: Any = None, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema or {"type": "object"}}
    if example is not None:
        content["example"] = example
    return {"description": about, "content": {"application/json": content}}


def _problem(status: int, about: str, detail: str) -> Responses:
    example = {"type": "about:blank", "title": about, "status": status, "detail": detail}
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
    }
    return {status: {"description": about, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}}


ASKED: Responses = {
    **_problem(401, "No valid token", "no valid token; send the header Authorization: Bearer TOKEN"),
    **_problem(403, "Asked by a page of another site", "asked by a page of another site"),
    **_problem(421, "Asked under another name", "asked as 'evil.example', which is not this server's name"),
}
BUSY: Responses = _problem(503, "Busy, or stopping", "34 photos are in work or wait; ask again later")
BUSY[503]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_SENT: Responses = {
    **ASKED,
    **BUSY,
    **_problem(400, "A body that cannot be read", "the form ends early"),
    **_problem(408, "The body did not come", "the request did not arrive: nothing came for 15 seconds"),
    **_problem(413, "Too large", "the request is larger than 20 MiB"),
    **_problem(422, "Not what was expected", "the photo: not an image that can be read"),
}

STATE_RESPONSES: Responses = {200: _json("Yes", {"status": "UP"}), **ASKED}
METRICS_RESPONSES: Responses = {
    200: {
        "description": "Prometheus's text format",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    **ASKED,
}
EXAMPLE_RESPONSES: Responses = {
    200: {"description": "The photo", "content": {"image/*": {"schema": _PHOTO}}},
    **ASKED,
    **_problem(404, "No such photo", "no such example; GET /v1/model lists them"),
}
MODEL_RESPONSES: Responses = {
    200: _json(
        "The model",
        {
            "name": "mil-fcn@1a2b3c4d",
            "classes": [
                {"number": 0, "name": "background", "colour": "#000000", "overlay_colour": "#000000"},
                {"number": 1, "name": "cat", "colour": "#800000", "overlay_colour": "#e69f00"},
            ],
            "supervision": "image tags",
            "tags_from": "tags.csv",
            "backbone": "mobilenet_v2",
            "rules": ["max"],
            "examples": ["cat.jpg"],
            "max_body": 20971520,
            "max_pixels": 25000000,
            "milseg_version": "1.0",
        },
    ),
    **ASKED,
}
SEGMENT_RESPONSES: Responses = {
    200: {
        "description": "The mask",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": _COCO},
            "image/png": {"schema": _PHOTO},
        },
    },
    **_SENT,
    **_problem(406, "Neither JSON nor PNG is accepted", "Accept: expected application/json or image/png"),
}

_CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image"><Label value="cat"/>'
    "</BrushLabels></View>"
)
SETUP_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"schema": {"type": "string"}}},
            "example": {"project": "1.1700000000", "schema": _CONFIG},
        }
    },
}
SETUP_RESPONSES: Responses = {
    200: _json("Connected", {"model_version": "mil-fcn@1a2b3c4d"}),
    **{status: row for status, row in _SENT.items() if status != 503},
}
WEBHOOK_RESPONSES: Responses = {
    200: _json("Heard", {"status": "not used: milseg does not train from annotations"}),
    **ASKED,
    **_problem(413, "Too large", "the request is larger than 20 MiB"),
}
VERSIONS_RESPONSES: Responses = {
    200: _json("The one version there is", {"versions": ["mil-fcn@1a2b3c4d"]}),
    **ASKED,
}
PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["tasks", "label_config"],
                "properties": {
                    "tasks": {"type": "array", "items": {"type": "object"}},
                    "label_config": {"type": "string"},
                },
            },
            "example": {
                "tasks": [{"id": 1, "data": {"image": "/data/upload/1/cat.jpg"}}],
                "label_config": _CONFIG,
            },
        }
    },
}
PREDICT_RESPONSES: Responses = {
    200: _json(
        "A prediction for each task",
        {"results": [{"result": [], "score": 0.91, "model_version": "mil-fcn@1a2b3c4d"}]},
    ),
    **_SENT,
}
