"""Connect a running `milseg serve` to a running Label Studio, fetch predictions there, and compare; see run.sh."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np

import milseg
from milseg.annotations.label_studio import LabelStudioWriter

# Label Studio's own decoder, in its own environment: bytes in, RGBA values out.
DECODE = (
    "import json, sys; from label_studio_sdk.converter.brush import decode_rle; "
    "print(json.dumps([decode_rle(r).tolist() for r in json.load(sys.stdin)]))"
)


class Studio:
    """Label Studio's API."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Token {token}"}

    def ask(
        self, path: str, data: Any = None, *, body: bytes | None = None, kind: str = "application/json"
    ) -> Any:
        content = json.dumps(data).encode() if body is None and data is not None else body
        headers = self.headers | ({"Content-Type": kind} if content is not None else {})
        request = urllib.request.Request(self.url + path, content, headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read() or b"null")

    def upload(self, project: int, photo: Path) -> None:
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{photo.name}"; filename="{photo.name}"\r\n'
        body = (
            f"{head}Content-Type: image/png\r\n\r\n".encode()
            + photo.read_bytes()
            + f"\r\n--{mark}--\r\n".encode()
        )
        self.ask(f"/api/projects/{project}/import", body=body, kind=f"multipart/form-data; boundary={mark}")


def config_of(classes: tuple[str, ...], folder: Path) -> str:
    """The writer's labeling configuration, with image tags beside the brush."""
    with LabelStudioWriter(folder, classes) as writer:
        brush = writer.config()
    choices = "".join(f'<Choice value="{name}"/>' for name in classes[1:])
    tags = f'  <Choices name="tags" toName="image" choice="multiple" showInline="true">{choices}</Choices>\n'
    return brush.replace("</View>", f"{tags}</View>")


def decoded(python: str, prediction: dict[str, Any], classes: tuple[str, ...]) -> np.ndarray:
    """A prediction's regions as a mask of class numbers, by Label Studio's decoder."""
    regions = prediction["result"]
    sent = json.dumps([region["value"]["rle"] for region in regions])
    done = subprocess.run([python, "-c", DECODE], input=sent, capture_output=True, text=True, check=True)
    height, width = regions[0]["original_height"], regions[0]["original_width"]
    mask = np.zeros((height, width), np.uint8)
    for region, values in zip(regions, json.loads(done.stdout), strict=True):
        inside = np.array(values, np.uint8).reshape(height, width, 4)[..., 3] > 0
        assert not mask[inside].any(), "two regions share a pixel"
        mask[inside] = classes.index(region["value"]["brushlabels"][0])
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("label-studio", "backend", "decoder"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("token-file", "model", "photos"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--email", help="for the picture")
    parser.add_argument("--picture", type=Path, help="draw the last task as Label Studio shows it")
    options = parser.parse_args()
    token = options.token_file.read_text().strip()
    studio, model = Studio(options.label_studio, token), milseg.load(options.model)
    photos = sorted(p for p in options.photos.iterdir() if p.suffix in (".png", ".jpg"))[:4]
    folder = options.token_file.parent / f"config-{uuid.uuid4().hex}"
    project = studio.ask(
        "/api/projects", {"title": "milseg", "label_config": config_of(model.classes, folder)}
    )["id"]
    for photo in photos:
        studio.upload(project, photo)
    tasks = sorted(studio.ask(f"/api/tasks?project={project}")["tasks"], key=lambda task: task["id"])
    assert len(tasks) == len(photos)
    # Somebody has ticked one tag of the last photo: the others are ruled out there.
    known = [model.segment(photos[-1]).tags[-1][0]]
    ticked = {"type": "choices", "from_name": "tags", "to_name": "image", "value": {"choices": known}}
    studio.ask(f"/api/tasks/{tasks[-1]['id']}/annotations", {"result": [ticked]})

    backend = studio.ask("/api/ml", {"project": project, "url": options.backend, "title": "milseg"})
    assert backend["state"] == "CO", backend  # connected
    chosen = {"selectedItems": {"all": False, "included": [task["id"] for task in tasks]}}
    studio.ask(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", chosen)

    compared = []
    for task, photo in zip(tasks, photos, strict=True):
        until = time.monotonic() + 120
        while not (found := studio.ask(f"/api/predictions?task={task['id']}")) and time.monotonic() < until:
            time.sleep(1)
        (prediction,) = found
        tags = known if task is tasks[-1] else None
        expected = model.segment(photo, tags=tags).mask
        mask = decoded(options.decoder, prediction, model.classes)
        compared.append(
            {
                "photo": photo.name,
                "tags_known": tags,
                "labels": [region["value"]["brushlabels"][0] for region in prediction["result"]],
                "pixels": int(mask.size),
                "masked": int((mask > 0).sum()),
                "different": int((mask != expected).sum()),
                "model_version": prediction["model_version"],
            }
        )
        print(json.dumps(compared[-1]))
    if options.picture:
        draw(options.label_studio, options.email, token, project, tasks[0]["id"], options.picture)
    different = sum(row["different"] for row in compared)
    print(
        json.dumps(
            {
                "label_studio": studio.ask("/api/version")["release"],
                "tasks": len(tasks),
                "different": different,
            }
        )
    )
    raise SystemExit(1 if different else 0)


def draw(url: str, email: str, password: str, project: int, task: int, path: Path) -> None:
    """Label Studio's own page of a task, with its prediction chosen."""
    import shutil

    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"], timeout=300_000
        )
        page = browser.new_page(viewport={"width": 1280, "height": 760})
        page.set_default_timeout(300_000)
        page.goto(f"{url}/user/login/")
        page.fill("input[name=email]", email)
        page.fill("input[name=password]", password)
        page.press("input[name=password]", "Enter")
        page.wait_for_url(lambda address: "login" not in address)
        page.goto(f"{url}/projects/{project}/data?task={task}")
        page.wait_for_selector("canvas")
        page.wait_for_timeout(8000)
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
