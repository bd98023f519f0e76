"""The photo and the words of a request, read from its body into memory; no file is written."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from milseg.serve.problems import Problem

T = TypeVar("T")
# A client holds a slot of the queue no longer than this, and no longer without sending anything.
SECONDS = 60.0
PAUSE_SECONDS = 15.0
# Of a form: fields, and bytes of each that is not the photo.
MAX_FIELDS = 16
MAX_FIELD = 10_000
# Of a JSON body. Python's lock is held while it is parsed, so that nothing else is answered: 0.1 seconds at most.
MAX_JSON_LISTS = 100_000
MAX_JSON_TEXTS = 200_000
MAX_JSON_VALUES = 1_000_000
# Half a character of UTF-16, as JSON can spell it; it cannot be sent back.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Of a form; UTF-8 is meant. Some of Python's codecs make half characters, or are slow.
_CHARSET = re.compile(r";\s*charset\s*=[^;]*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A photo as it was sent.

    Attributes:
        data: the bytes of its file.
        name: its file name at the client; shown, never opened.
        fields: the form's other fields.
    """

    data: bytes
    name: str
    fields: dict[str, str]


def too_large(most: int) -> Problem:
    """413, with the limit in bytes."""
    return Problem(
        413,
        f"the request is larger than {most / 2**20:g} MiB; send a smaller photo or fewer tasks, or start the server "
        "with a larger --max-body",
    )


async def read_body(request: Request, most: int | None = None) -> bytes:
    """The whole body; `milseg.serve.middleware` limits its size already.

    Args:
        most: a lower limit of the size, bytes.

    Raises:
        Problem: 408 if it does not come in time, 413 if it is too large, 400 if the client went away.
    """
    pieces: list[bytes] = []
    size = 0
    now = asyncio.get_running_loop().time
    end = now() + SECONDS
    try:
        async with asyncio.timeout(PAUSE_SECONDS) as timer:
            async for piece in request.stream():
                size += len(piece)
                if most is not None and size > most:
                    raise too_large(most)
                pieces.append(piece)
                timer.reschedule(min(end, now() + PAUSE_SECONDS))
    except TimeoutError:
        raise Problem(
            408,
            f"the request did not arrive: nothing came for {PAUSE_SECONDS:g} seconds, or not all of it within "
            f"{SECONDS:g}",
        ) from None
    except ClientDisconnect:
        raise Problem(400, "the client went away") from None
    return b"".join(pieces)


def read_json(body: bytes) -> dict[str, Any]:
    """A body as a JSON object; called in a worker thread.

    Raises:
        Problem: 400, it is no JSON; 422, it is no object, has too many parts, or half a character.
    """
    for kind, count, most in (
        ("objects and lists", body.count(b"{") + body.count(b"["), MAX_JSON_LISTS),
        ("texts", body.count(b'"') // 2, MAX_JSON_TEXTS),
        ("values", body.count(b","), MAX_JSON_VALUES),
        ("escapes", body.count(b"\\"), MAX_JSON_VALUES),
    ):
        if count > most:
            raise Problem(422, f"JSON of about {count:,} {kind}; expected at most {most:,}; send fewer tasks")
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON in UTF-8") from None
    if _SURROGATE.search(body):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise Problem(
                422, "a text with half a character (a lone surrogate); send valid Unicode"
            ) from None
    if not isinstance(found, dict):
        raise Problem(422, "expected a JSON object")
    return found


def read_upload(body: bytes, content_type: str) -> Upload:
    """The photo of a multipart form's field `photo`, or the body itself; called in a worker thread.

    Raises:
        Problem: 400 for a form that cannot be read, 422 where it has no photo or a field is too long.
    """
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        upload = Upload(data=body, name="photo", fields={})
    else:
        upload = _read_form(body, content_type)
    if not upload.data:
        raise Problem(422, "no photo; send it as the multipart field 'photo', or as the body itself")
    return upload


class _MemoryForm(MultiPartParser):
    """Starlette's parser, which keeps photos in memory here and notices a form that is cut short."""

    spool_max_size = sys.maxsize
    ended = False

    def on_end(self) -> None:
        self.ended = True


def _read_form(body: bytes, content_type: str) -> Upload:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _MemoryForm(
        Headers({"content-type": _CHARSET.sub("", content_type)}),
        stream(),
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD,
    )
    try:
        form = _finish(parser.parse())
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise Problem(400, f"a form of more than {MAX_FIELDS} fields") from None
        if error.message.startswith("Part exceeded"):
            raise Problem(422, f"a form field of more than {MAX_FIELD:,} bytes; send less of it") from None
        raise Problem(400, f"the form cannot be read ({error.message.rstrip('.')})") from None
    if not parser.ended:
        raise Problem(400, "the form ends early")
    data, name, fields = b"", "photo", {}
    for field, value in form.multi_items():
        if isinstance(value, str):
            fields[field] = value
        elif field == "photo":
            data, name = value.file.read(), value.filename or ""
    if "photo" in fields:
        raise Problem(422, "the form field 'photo' is text; send a file, as curl -F photo=@FILE does")
    # Only the last part of what may be a path, as some clients send it.
    short = name.replace("\\", "/").rpartition("/")[2][-200:]
    return Upload(data=data, name=short or "photo", fields=fields)


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, as nothing does that is in memory already."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited")
