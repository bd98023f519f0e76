"""Write fuzz/seeds: for each target a few whole files, and those that once escaped (kept under their own names).

python fuzz/make_seeds.py
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

SEEDS = Path(__file__).parent / "seeds"
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def picture(form: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, form, **options)
    return out.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif)


def deep() -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(out, "PNG")
    return out.getvalue()


def animated() -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, i, axis=1)).convert("P") for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def packed(form: int) -> bytes:
    out = io.BytesIO()
    about = json.dumps({"key": "a", "name": "a", "file": "a.png", "tags": ["cat"], "unknown": []}).encode()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in (("a.png", picture("PNG")), ("a.json", about), ("é" * 60 + ".png", picture("PNG"))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def pickled(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "in/b.png"}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}],
}
TASK = {
    "data": {"image": "/data/local-files/?d=a.png"},
    "annotations": [
        {"result": [{"type": "choices", "from_name": "t", "to_name": "i", "value": {"choices": ["cat"]}}]}
    ],
}
INDEX = {
    "milseg_shard_index": 1,
    "bytes": 10240,
    "tags_key": "tags",
    "keys": ["tags"],
    "notes": [],
    "samples": [["a", ".png", 512, 100, ["cat"], [], [], ""]],
}
MANIFEST = {
    "milseg_shards": 1,
    "name": "x",
    "classes": ["background", "cat"],
    "tags_from": "tag file",
    "notes": [],
    "shards": [{"file": "s.tar", "photos": 1, "bytes": 10240, "sha256": "0" * 64, "index": "s.json"}],
}
TENSORS = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
XML = b"<annotation><object><name>cat</name></object><object><name>dog</name></object></annotation>"
CONFIG = b"backbone: tiny\noutput_stride: 4\nsupervision: tags\ninference: {scales: [1.0], flip: false}\nprior: null\n"

FILES: dict[str, dict[str, bytes]] = {
    "tags_csv": {
        "plain": b"image,tags,split\na.png,cat dog,train\nin/b.png,,val\n",
        "semicolons": b'\xef\xbb\xbfimage;tags\r\na.png;"cat, dog"\r\n',
        "wide": b"image,cat,dog\na.png,1,0\nin/b.png,,-1\n",
    },
    "tags_tsv": {"plain": b"image\ttags\na.png\tcat\nin/b.png\tdog;cat\n"},
    "tags_json_lines": {
        "plain": b'{"image": "a.png", "tags": ["cat"]}\n{"image": "in/b.png", "tags": [], "absent": ["cat"]}\n'
    },
    "coco": {"plain": json.dumps(COCO).encode()},
    "label_studio": {"plain": json.dumps([TASK]).encode(), "flat": b'[{"image": "a.png", "t": "cat"}]'},
    "label_map": {"plain": b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n"},
    "cvat": {
        "plain": b'<annotations><image name="a.png"><tag label="cat"/><box label="cat"/></image></annotations>'
    },
    "datumaro": {
        "plain": json.dumps(
            {
                "categories": {"label": {"labels": [{"name": "cat"}]}},
                "items": [
                    {"id": "a", "annotations": [{"type": "label", "label_id": 0}], "image": {"path": "a.png"}}
                ],
            }
        ).encode()
    },
    "voc_xml": {"plain": XML, "encoded": b"<?xml version='1.0' encoding='utf-8'?>" + XML},
    "lists": {
        "ids": b"a\nb\n",
        "flags": b"a  1\nb -1\nc  0\n",
        "labels": b'{"classes": ["background", "cat"]}',
    },
    "settings": {
        "train": b"seed: 1\nmax_steps: 5\nclasses: [cat, dog]\nflip: true\nlearning_rate: 1e-3\n",
        "mapping": b"cat: [tench, 1]\ndog: [n01443537]\n",
        # Once escaped: what PyYAML raises on tags whose values do not fit.
        "escaped-timestamp": b"seed: !!timestamp x\n",
        "escaped-bool": b"cat: !!bool x\n",
        "escaped-int": b"cat: !!int ''\n",
    },
    "model_config": {"plain": CONFIG, "escaped-int": CONFIG + b"more: !!int ''\n"},
    "model_labels": {"plain": b'{"classes": ["background", "cat"]}'},
    "model_weights": {"plain": save(TENSORS)},
    "weights": {
        "safetensors": save(TENSORS, metadata={"step": "1", "config": "{}"}),
        "pickle": pickled(TENSORS),
    },
    "tar": {"pax": packed(tarfile.PAX_FORMAT), "gnu": packed(tarfile.GNU_FORMAT)},
    "shard_json": {
        "index": json.dumps(INDEX).encode(),
        "manifest": json.dumps(MANIFEST).encode(),
        # Once escaped: int(inf) is an OverflowError.
        "escaped-index-infinite": json.dumps({**INDEX, "bytes": float("inf")}).encode(),
        "escaped-manifest-infinite": json.dumps(MANIFEST).replace("10240", "Infinity").encode(),
    },
    "photo": {
        **{form.lower(): picture(form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "TGA")},
        **{f"png-{mode}": picture("PNG", mode) for mode in ("L", "LA", "RGBA", "P", "1")},
        **{"jpeg-cmyk": picture("JPEG", "CMYK"), "jpeg-exif": rotated()},
        **{"png-16": deep(), "gif": animated(), "jpeg2000": picture("JPEG2000")},
    },
}


def main() -> None:
    for target, files in FILES.items():
        (SEEDS / target).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (SEEDS / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
