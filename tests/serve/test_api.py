"""Answers of the API: masks, JSON, and what it says to wrong requests."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from milseg.annotations.coco import box
from milseg.data.image import open_photo
from milseg.data.masks import palette
from milseg.inference.segmenter import Segmenter
from milseg.serve.responses import SHOWN_RULES

from .conftest import CLASSES, Live, form, photo, png_of

PNG = {"Accept": "image/png"}


def mask_in(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def decoded(counts: str, size: list[int]) -> np.ndarray:
    """COCO's compressed counts, decoded by pycocotools."""
    tools = pytest.importorskip("pycocotools.mask")
    return tools.decode({"size": size, "counts": counts.encode()}).astype(bool)


@pytest.mark.parametrize("raw", [True, False])
def test_the_mask_is_the_segmenters_own(live: Live, segmenter: Segmenter, raw: bool) -> None:
    pixels = photo(1)
    body, headers = (png_of(pixels), {}) if raw else form(png_of(pixels))
    answer = live.ask("/v1/segment", body, headers | PNG)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    expected = segmenter.segment(pixels).mask
    assert len(np.unique(expected)) > 1  # a mask of one class would hide mistakes
    np.testing.assert_array_equal(mask_in(answer.data), expected)
    colours = Image.open(io.BytesIO(answer.data)).getpalette()
    assert colours is not None
    assert colours[:12] == palette()[:4].ravel().tolist()


def test_the_json_is_a_coco_data_set(live: Live, segmenter: Segmenter) -> None:
    pixels = photo(1)
    found = segmenter.segment(pixels)
    answer = live.ask("/v1/segment", *form(png_of(pixels), name="../../etc/cat.png")).json()
    assert answer["images"] == [{"id": 1, "file_name": "cat.png", "width": 56, "height": 40}]
    assert [row["name"] for row in answer["categories"]] == list(CLASSES[1:])
    assert [row["id"] for row in answer["categories"]] == [1, 2, 3]
    numbers = [row["category_id"] for row in answer["annotations"]]
    assert numbers == [n for n in np.unique(found.mask).tolist() if n]
    for row in answer["annotations"]:
        region = found.mask == row["category_id"]
        np.testing.assert_array_equal(decoded(row["segmentation"]["counts"], [40, 56]), region)
        assert (row["area"], row["bbox"]) == (region.sum(), box(region))
    assert [row["name"] for row in answer["tags"]] == [name for name, _ in found.tags]
    assert answer["tags"][0]["confidence"] == pytest.approx(found.tags[0][1], abs=1e-5)
    assert answer["confidence"] == pytest.approx(found.confidence, abs=1e-5)
    assert answer["tags_given"] is False


@pytest.mark.parametrize("field", [True, False])
def test_known_tags_rule_the_others_out(live: Live, segmenter: Segmenter, field: bool) -> None:
    pixels = photo(2)
    path, fields = ("/v1/segment", {"tags": "dog"}) if field else ("/v1/segment?tags=dog", {})
    body, headers = form(png_of(pixels), **fields)
    mask = mask_in(live.ask(path, body, headers | PNG).data)
    np.testing.assert_array_equal(mask, segmenter.segment(pixels, tags=["dog"]).mask)
    assert set(np.unique(mask)) <= {0, 2}
    assert live.ask(path, body, headers).json()["tags_given"] is True


def test_heat_maps_are_the_probabilities(live: Live, segmenter: Segmenter) -> None:
    pixels = photo(3)
    heat = live.ask("/v1/segment?include=heat&tags=cat,dog", png_of(pixels)).json()["heat"]
    assert sorted(heat["maps"]) == ["background", "cat", "dog"]  # ruled out: sheep
    found = segmenter.segment(pixels, tags=["cat", "dog"])
    e = np.exp(found.scores - found.scores.max(axis=0))
    p = e / e.sum(axis=0)
    data = base64.b64decode(heat["maps"]["dog"].partition(",")[2])
    np.testing.assert_allclose(mask_in(data) / 255, p[2], atol=0.5 / 255 + 1e-6)
    # Stride 4, offset 0, the photo not resized: the first place reaches from pixel -1.5 to 2.5.
    rows, columns = found.scores.shape[1:]
    assert heat["box"] == [found.offset + 0.5 - 2.0, found.offset + 0.5 - 2.0, 4.0 * columns, 4.0 * rows]


def test_instances_of_the_papers_rule(live: Live, segmenter: Segmenter) -> None:
    pixels = photo(4)
    answer = live.ask("/v1/segment?include=instances&tags=cat,dog", png_of(pixels)).json()["instances"]
    assert (answer["rule"], answer["present"]) == ("max", ["background", "cat", "dog"])
    scores = segmenter.score_map(pixels).scores.numpy()  # sheep stays in the softmax: absent, not ruled out
    p = np.exp(scores - scores.max(axis=0))
    p /= p.sum(axis=0)
    assert [row["name"] for row in answer["places"]] == ["background", "cat", "dog"]
    for row in answer["places"]:
        number = CLASSES.index(row["name"])
        top, left = np.unravel_index(p[number].argmax(), p[number].shape)
        # Place i is centred on pixel 4 i + offset, whose middle is half a pixel on.
        middle = np.array([left, top]) * 4 + segmenter.model.offset + 0.5
        assert [row["x"], row["y"]] == middle.tolist()
        assert row["weight"] == pytest.approx(1 / 3, abs=1e-4)
        assert row["loss"] == pytest.approx(-np.log(p[number].max()), abs=1e-3)


@pytest.mark.parametrize("rule", SHOWN_RULES)
def test_every_offered_rule_can_be_shown(live: Live, rule: str) -> None:
    answer = live.ask(f"/v1/segment?include=instances&rule={rule}&tags=cat", png_of(photo(5)))
    assert answer.status == 200, answer.data
    assert answer.json()["instances"]["places"]


def test_the_model_describes_itself(live: Live) -> None:
    model = live.ask("/v1/model").json()
    assert model["classes"][2] == {
        "number": 2,
        "name": "dog",
        "colour": "#008000",
        "overlay_colour": "#56b4e9",
    }
    assert (model["max_body"], model["max_pixels"], model["examples"]) == (2**20, 100_000, ["one.png"])
    np.testing.assert_array_equal(mask_in(live.ask("/v1/examples/one.png").data), photo(9))


# what is wrong with a request


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


GOOD = png_of(photo(0))
WRONG = {
    "no photo": (b"", {}, "", 422, "no photo"),
    "no image": (b"hello", {}, "", 422, "a text file, not a photo"),
    "cut short": (GOOD[: len(GOOD) // 2], {}, "", 422, "cut short"),
    "a bomb": (bomb(), {}, "", 422, "more than the limit of 100,000"),
    "too many pixels": (
        png_of(np.zeros((300, 400, 3), np.uint8)),
        {},
        "",
        422,
        "120,000 pixels, more than the limit",
    ),
    "an unknown tag": (GOOD, {}, "?tags=cot", 422, "did you mean 'cat'"),
    "an unknown rule": (GOOD, {}, "?rule=os:system", 422, "rule is 'os:system'"),
    "an unknown inclusion": (GOOD, {}, "?include=weights", 422, "include is 'weights'"),
    "another type": (GOOD, {"Accept": "text/html"}, "", 406, "application/json"),
    "a form without end": (form(GOOD)[0][:-9], form(GOOD)[1], "", 400, "ends early"),
    "a form without boundary": (form(GOOD)[0], {"Content-Type": "multipart/form-data"}, "", 400, "form"),
    "a form without photo": (b"--x--\r\n", form(b"")[1], "", 422, "no photo"),
    "a huge file name": (*form(GOOD, name="n" * 100_000), "", 400, "form cannot be read"),
    "too many fields": (*form(GOOD, **{f"f{i}": "" for i in range(20)}), "", 400, "more than 16 fields"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_why(live: Live, case: str) -> None:
    body, headers, query, status, words = WRONG[case]
    answer = live.ask(f"/v1/segment{query}", body, headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]
    assert "Traceback" not in answer.data.decode()


@pytest.mark.parametrize(
    "path", ["/nothing", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/v1/examples/%2fetc%2fpasswd"]
)
def test_no_path_of_a_request_is_opened(live: Live, path: str) -> None:
    answer = live.ask(path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_bug_is_no_trace(start, segmenter, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    broken = Segmenter(segmenter.model, segmenter.spec)
    monkeypatch.setattr(broken, "segment", lambda *a, **k: 1 / 0)
    answer = start(model=broken).ask("/v1/segment", GOOD)
    assert (answer.status, answer.json()["detail"]) == (500, "the server failed; its log says why")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_sent_photos_read_as_files_do(live: Live, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """EXIF orientation too: the mask matches the photo as it is displayed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(photo(6)).save(path, exif=exif)
    mask = mask_in(live.ask("/v1/segment", path.read_bytes(), PNG).data)
    assert mask.shape == open_photo(path).shape[:2] == (56, 40)
