"""The photo and the words of a request, read from its body into memory; no file is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from milseg.serve.problems import Problem

PARTS = 16
# A client that sends nothing holds a place in the line no longer than this.
SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A photo as it was sent.

    Attributes:
        data: the bytes of its file.
        name: what the client calls it; shown, never opened.
        fields: the form's other fields.
    """

    data: bytes
    name: str
    fields: dict[str, str]


async def read_body(request: Request) -> bytes:
    """The whole body; its size is limited before (see `milseg.serve.middleware`).

    Raises:
        Problem: 408 when it does not come, 400 when the client went away.
    """
    try:
        async with asyncio.timeout(SECONDS):
            return await request.body()
    except TimeoutError:
        raise Problem(408, f"the request did not arrive within {SECONDS} seconds") from None
    except ClientDisconnect:
        raise Problem(400, "the client went away") from None


def read_upload(body: bytes, content_type: str) -> Upload:
    """The photo of a multipart form's field `photo`, or the body itself.

    Raises:
        Problem: 400 for a form that cannot be read, 422 where there is no photo.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        upload = Upload(data=body, name="photo", fields={})
    else:
        upload = _from_parts(_parts(body, options.get(b"boundary", b"")))
    if not upload.data:
        raise Problem(422, "no photo; send it as the multipart field 'photo', or as the body itself")
    return upload


def _from_parts(parts: list[tuple[dict[bytes, bytes], bytes]]) -> Upload:
    data, name, fields = b"", "photo", {}
    for disposition, content in parts:
        field = disposition.get(b"name", b"")
        if field == b"photo":
            data = content
            name = disposition.get(b"filename", b"photo").decode("utf-8", "replace")
        else:
            fields[field.decode("utf-8", "replace")] = content.decode("utf-8", "replace")
    # Only the last part of what may be a path, as some clients send it.
    short = name.replace("\\", "/").rpartition("/")[2][-200:]
    return Upload(data=data, name=short or "photo", fields=fields)


def _parts(body: bytes, boundary: bytes) -> list[tuple[dict[bytes, bytes], bytes]]:
    """Each part's content disposition and content."""
    parts: list[tuple[dict[bytes, bytes], bytes]] = []
    header: list[bytes] = [b"", b""]
    disposition: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    ended = False

    def begin() -> None:
        if len(parts) == PARTS:
            raise Problem(400, f"a form of more than {PARTS} fields")
        disposition.clear()
        pieces.clear()

    def header_end() -> None:
        if header[0].lower() == b"content-disposition":
            disposition.update(parse_options_header(header[1])[1])
        header[:] = [b"", b""]

    def end() -> None:
        nonlocal ended
        ended = True

    def name(data: bytes, start: int, stop: int) -> None:
        header[0] += data[start:stop]

    def value(data: bytes, start: int, stop: int) -> None:
        header[1] += data[start:stop]

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": name,
                "on_header_value": value,
                "on_header_end": header_end,
                "on_part_data": lambda data, start, stop: pieces.append(data[start:stop]),
                "on_part_end": lambda: parts.append((dict(disposition), b"".join(pieces))),
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the form cannot be read ({error})") from None
    if not ended:
        raise Problem(400, "the form ends early")
    return parts
