"""Tar shards as a source: where photos lie, what is refused, what the tags are, and shards that are elsewhere."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import milseg.data.shards.cache
import milseg.data.shards.index
import milseg.data.shards.read
import milseg.utils.watch
from milseg.config.source import ShardReading
from milseg.data.bags import load_photo
from milseg.data.shards.cache import Shard
from milseg.data.shards.index import key_of, name_of, scan_shard
from milseg.data.shards.read import TarPhoto, open_shards
from milseg.data.shards.tar_index import tar_members
from milseg.data.sources.open import open_source
from milseg.data.types import following
from milseg.errors import UserError


def photo(value: int, *, orientation: int | None = None) -> bytes:
    """A PNG of 3 x 2 pixels whose first has the given red."""
    image = Image.fromarray(np.full((2, 3, 3), (value, 9, 9), np.uint8))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, value: int, **about: Any) -> dict[str, bytes]:
    return {f"{key}.png": photo(value), f"{key}.json": json.dumps(about).encode()}


@pytest.fixture
def reading(tmp_path: Path) -> ShardReading:
    return ShardReading(cache=tmp_path / "cache")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two shards as img2dataset writes them, the captions beside the tags."""
    for number, rows in enumerate([[("00", ["cat"]), ("01", ["cat", "dog"])], [("10", ["dog"])]]):
        files: dict[str, bytes] = {}
        for key, tags in rows:
            files |= {
                f"00000{key}.txt": b"a bird on a tree",
                **sample(f"00000{key}", int(key), tags=tags, url="u"),
            }
        write_tar(tmp_path / "two" / f"0000{number}.tar", files)
        (tmp_path / "two" / f"0000{number}.parquet").write_bytes(b"")
    return tmp_path / "two"


names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\:"), min_size=1, max_size=150
).filter(lambda text: text.strip(".") != "")


@settings(max_examples=60)
@given(
    parts=st.lists(st.lists(names, min_size=1, max_size=3), min_size=1, max_size=6, unique_by=tuple),
    sizes=st.lists(st.integers(0, 1500), min_size=6, max_size=6),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_where_the_standard_library_finds_them(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], sizes: list[int], format: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    files = {"/".join(part): bytes([i]) * sizes[i] for i, part in enumerate(parts)}
    write_tar(path, files, format)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    found = [tuple(member) for member in tar_members(path, "a.tar")]
    assert found == expected
    assert [name for name, _, _ in found] == list(files)
    data = path.read_bytes()
    assert [data[offset : offset + length] for _, offset, length in found] == list(files.values())


@given(names, names)
def test_keys_have_no_dots_and_give_the_name_back(folder: str, last: str) -> None:
    for name in (last, f"{folder}/{last}"):
        assert "." not in key_of(name).rpartition("/")[2]
        assert name_of(key_of(name)) == name
    assert name_of("%2E%2E") == "%2E%2E"  # never a step upwards


def test_old_headers_folders_and_dots_in_front(tmp_path: Path) -> None:
    deep = "d" * 90 + "/" + "n" * 90 + ".jpg"  # ustar keeps the folder in a field of its own
    path = write_tar(tmp_path / "a.tar", {deep: b"1", "./b.jpg": b"22"}, tarfile.USTAR_FORMAT)
    assert [tuple(m) for m in tar_members(path, "a")] == [(deep, 512, 1), ("b.jpg", 1536, 2)]
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("in")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("in/a.jpg"), io.BytesIO())
    assert [m.name for m in tar_members(path, "a")] == ["in/a.jpg"]


@pytest.mark.parametrize("name", ["../a.jpg", "b/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "..\\a.jpg"])
def test_names_that_lead_out_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "bad.tar", {"ok.jpg": b"", name: b"x"})
    with pytest.raises(UserError, match=re.escape(f"bad.tar: the member {name!r} leads out of its folder")):
        scan_shard(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "no plain file"),
    ],
)
def test_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes, what: str) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(UserError, match=f"bad.tar: the member 'a.jpg' is {what}"):
        scan_shard(path)


def test_huge_members_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", sample("big", 1, tags=["cat"]))
    monkeypatch.setattr(milseg.data.shards.index, "MAX_PHOTO", 10)
    with pytest.raises(UserError, match=r"a.tar: the member 'big.png' has \d+ bytes, over the limit of 10"):
        scan_shard(path)
    member = tarfile.TarInfo("a.jpg")
    member.size = 2**40
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match=r"a.tar: the tar is cut short after 2,560 bytes"):
        scan_shard(path)
    header = tarfile.TarInfo("././@PaxHeader")
    header.size, header.type = 2**33, tarfile.XHDTYPE
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="a header of 8,589,934,592 bytes"):
        scan_shard(path)


@pytest.mark.parametrize("at", [0, 100, 512, 700, 1024, 1500, 2048])
def test_a_tar_cut_short_anywhere_says_so_and_which(tmp_path: Path, at: int) -> None:
    path = write_tar(tmp_path / "part.tar", {"a.jpg": b"x" * 400, "b.json": b"{}"})
    assert [m.offset for m in tar_members(path, "")] == [512, 1536]
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(UserError, match=f"part.tar: the tar is cut short after {at:,} bytes"):
        scan_shard(path)


def test_what_is_no_tar_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(UserError, match=r"a.tar: compressed"):
        scan_shard(path)
    path.write_bytes(b"no tar at all " * 100)
    with pytest.raises(UserError, match=r"a.tar: not a tar file"):
        scan_shard(path)
    data = bytearray(write_tar(path, {"a.jpg": b"x", "b.jpg": b"y"}).read_bytes())
    data[1024 + 3] ^= 1  # the name of the second
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a.tar: damaged: no tar header at byte 1,024"):
        scan_shard(path)


def test_shards_of_img2dataset(two: Path, reading: ShardReading) -> None:
    bags = open_source(two, shards=reading)
    assert bags.classes == ("background", "cat", "dog")
    assert {bag.name: bag.tags for bag in bags.bags} == {
        "0000000": (1, 1, 0),
        "0000001": (1, 1, 1),
        "0000010": (1, 0, 1),
    }
    assert bags.groups == (2, 1)
    assert [int(load_photo(bag)[0, 0, 0]) for bag in bags.bags] == [0, 1, 10]
    assert list(following([bag.photo for bag in bags.bags])) == [0]
    for source in (two / "0000{0..1}.tar", two / "*.tar", two / "{00000,00001}.tar"):
        assert open_source(source, shards=reading).bags == bags.bags
    assert len(open_source(two / "00001.tar", shards=reading)) == 1
    with pytest.raises(UserError, match=r"00002.tar: no such shard"):
        open_source(two / "0000{0..2}.tar", shards=reading)


def test_tags_as_text_under_another_key_and_unknown(tmp_path: Path, reading: ShardReading) -> None:
    files = (
        sample("a", 1, labels="potted plant, cat") | sample("b", 2, labels=None) | sample("c", 3, labels="")
    )
    path = write_tar(tmp_path / "x.tar", files | {"d.png": photo(4)})
    with pytest.raises(UserError, match=r"no tags under the key 'tags'; the keys are labels. Name the key"):
        open_source(path, shards=reading)
    named = ShardReading(cache=reading.cache, tags_key="labels")
    bags = open_source(path, shards=named)
    assert bags.classes == ("background", "cat", "potted plant")
    assert [bag.tags for bag in bags.bags] == [(1, 1, 1), (1, -1, -1), (1, 0, 0), (1, -1, -1)]
    write_tar(path, sample("a", 1, labels=[3]))
    with pytest.raises(UserError, match=r"x.tar: a.json: labels: is \[3\]; expected a list of texts"):
        open_source(path, shards=named)


def test_a_file_of_tags_for_shards_without(tmp_path: Path, reading: ShardReading) -> None:
    for shard in ("0", "1"):
        write_tar(tmp_path / "s" / f"{shard}.tar", {f"{shard}{i}.png": photo(i) for i in b"ab"})
    (tmp_path / "tags.csv").write_text("image,tags\n197,cat\n097,dog\n198.png,cat\n")
    files = {f"{s}{i}.png" for s in "01" for i in (97, 98)}
    assert {name for name, _, _ in open_shards(tmp_path / "s", reading).samples()} == files
    bags = open_source(tmp_path / "s", tags=tmp_path / "tags.csv", shards=reading)
    # In the order of the shards, not of the table.
    assert [bag.name for bag in bags.bags] == ["097", "197", "198"]
    assert bags.groups == (1, 2)


def test_keys_that_come_again_in_each_shard(tmp_path: Path, reading: ShardReading) -> None:
    for shard, tag in (("x", "cat"), ("y", "dog")):
        write_tar(tmp_path / f"{shard}.tar", sample("0", 1, tags=[tag]))
    bags = open_source(tmp_path, shards=reading)
    assert [bag.name for bag in bags.bags] == ["x/0", "y/0"]
    assert "the key '0' is in several shards" in bags.notes[0]
    write_tar(tmp_path / "x.tar", {"0.jpg": b"", "./0.jpg": b""})
    with pytest.raises(UserError, match=r"two members are called '0.jpg'"):
        open_source(tmp_path, shards=reading)


def test_a_shard_is_looked_through_once(
    two: Path, reading: ShardReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_source(two, shards=reading)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("looked through again")

    with monkeypatch.context() as patch:
        patch.setattr(milseg.data.shards.read, "scan_shard", never)
        assert open_source(two, shards=reading) == first
    write_tar(two / "00001.tar", sample("0000011", 1, tags=["dog"]))
    os.utime(two / "00001.tar", (1, 1))
    assert open_source(two, shards=reading).bags[-1].name == "0000011"


def test_photos_are_checked_as_files_are(
    tmp_path: Path, reading: ShardReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"turned.png": photo(7, orientation=6), "cut.png": photo(7)[:45], "text.png": b"hello"}
    files |= {f"{key}.json": b'{"tags": ["cat"]}' for key in ("turned", "cut", "text")}
    path = write_tar(tmp_path / "s.tar", files)
    bags = {bag.name: bag for bag in open_source(path, shards=reading).bags}
    assert load_photo(bags["turned"]).shape == (3, 2, 3)
    with pytest.raises(UserError, match=re.escape(f"{path}: cut.png: damaged or cut short")):
        load_photo(bags["cut"])
    with pytest.raises(UserError, match=re.escape(f"{path}: text.png: a text file, not a photo")):
        load_photo(bags["text"])
    with pytest.raises(
        UserError, match=re.escape(f"{path}: turned.png: 3 x 2 = 6 pixels, more than the limit of 5")
    ):
        milseg.data.image.open_photo(bags["turned"].photo, max_pixels=5)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=re.escape(f"{path}: the shard is cut short")):
        load_photo(bags["text"])


@pytest.fixture
def server(two: Path) -> Iterator[tuple[str, list[str]]]:
    """The two shards over HTTP on this machine, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            if self.command == "GET":
                asked.append(self.path)

    handler = partial(Handler, directory=str(two))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def test_shards_over_http(two: Path, reading: ShardReading, server: tuple[str, list[str]]) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("fsspec")
    url, asked = server
    bags = open_source(Path(f"{url}/0000{{0..1}}.tar"), shards=reading)
    assert [bag.tags for bag in bags.bags] == [bag.tags for bag in open_source(two, shards=reading).bags]
    assert [int(load_photo(bag)[0, 0, 0]) for bag in bags.bags] == [0, 1, 10]
    assert sorted(asked) == ["/00000.tar", "/00001.tar"]
    with pytest.raises(UserError, match=f"{url}/nowhere.tar: nothing is there"):
        open_source(Path(f"{url}/nowhere.tar"), shards=reading)


def test_shards_of_a_store_in_memory(two: Path, reading: ShardReading) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for path in two.glob("*.tar"):
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    bags = open_source(Path("memory://bucket/*.tar"), shards=reading)
    assert [int(load_photo(bag)[0, 0, 0]) for bag in bags.bags] == [0, 1, 10]
    store.rm("/bucket", recursive=True)
    assert int(load_photo(bags.bags[2])[0, 0, 0]) == 10  # kept here


def remote(path: Path, reading: ShardReading, limit: int = 10**9) -> Shard:
    assert reading.cache is not None
    return Shard(place=path.resolve().as_uri(), cache=reading.cache, cache_size=limit)


def test_the_least_recently_used_shard_goes_first(tmp_path: Path, reading: ShardReading) -> None:
    pytest.importorskip("fsspec")
    shards = []
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 1000)
        shards.append(remote(tmp_path / f"{number}.tar", reading, 2500))
    for age, shard in ((200, shards[0]), (100, shards[1])):
        assert shard.read(10, 1) == bytes([shards.index(shard)])
        os.utime(shard.path, (10**9 - age, 10**9 - age))
    milseg.data.shards.cache._USED.clear()
    assert shards[0].read(0, 1) == b"\0"  # now the second is the one used longest ago
    assert shards[2].read(0, 1) == b"\2"
    assert [shard.path.exists() for shard in shards] == [True, False, True]
    assert shards[1].read(999, 1) == b"\1"  # fetched again
    with pytest.raises(UserError, match=r"0.tar: the shard is cut short"):
        shards[0].read(999, 2)
    small = remote(tmp_path / "0.tar", ShardReading(cache=tmp_path / "small"), 999)
    with pytest.raises(UserError, match=r"1,000 bytes, more than the limit of 999; .* --cache-size"):
        small.read(0, 1)
    assert not small.path.exists()


def test_readers_share_one_fetch_and_the_next_comes_ahead(
    tmp_path: Path, reading: ShardReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "a.tar").write_bytes(b"a" * 100)
    (tmp_path / "b.tar").write_bytes(b"b" * 100)
    fetched = []
    download = milseg.data.shards.cache.download

    def counting(address: str, path: Path, *, most: int | None) -> None:
        fetched.append(address.rpartition("/")[2])
        download(address, path, most=most)

    monkeypatch.setattr(milseg.data.shards.cache, "download", counting)
    first, second = remote(tmp_path / "a.tar", reading), remote(tmp_path / "b.tar", reading)
    TarPhoto(second, "k", ".jpg", 0, 1).soon()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: first.read(0, 3), range(16))) == {b"aaa"}
    milseg.data.shards.cache._AHEAD[second.place].result()
    assert sorted(fetched) == ["a.tar", "b.tar"]
    assert second.read(0, 1) == b"b"
    assert len(fetched) == 2
    assert not list(tmp_path.glob("cache/*.tmp*"))


def test_a_shard_that_is_not_what_its_manifest_says(tmp_path: Path, reading: ShardReading) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "a.tar").write_bytes(b"a" * 100)
    place = (tmp_path / "a.tar").resolve().as_uri()
    for more, words in (
        ({"length": 99}, "100 bytes; expected 99"),
        ({"sha256": "0" * 64}, "its SHA-256 is not"),
    ):
        shard = Shard(place=place, cache=tmp_path / "cache", cache_size=10**6, **more)
        with pytest.raises(UserError, match=words):
            shard.local()
        assert not shard.path.exists()


def test_without_fsspec_the_message_names_the_extra(
    reading: ShardReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"https://host/a.tar: .*pip install 'milseg\[shards\]'"):
        open_source(Path("https://host/a.tar"), shards=reading)


# names, manifests and servers that have no end


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a-{000..999999999999}.tar", "no range of shards, or of more than 100,000"),
        ("a-{0..99999}-{0..99999}.tar", "stands for more than 100,000 shards"),
        ("a" + "{0,1}" * 60 + ".tar", "stands for more than 100,000 shards"),
        ("a" + "{0..9}" * 2000 + ".tar", "stands for more than 100,000 shards"),
        ("a-{0.." + "9" * 5000 + "}.tar", "no range of shards"),
        ("a-{5..1}.tar", "no range of shards"),
        ("a" + "{" * 5000 + "}" * 5000 + ".tar", "no such shard"),
    ],
)
def test_patterns_that_stand_for_too_many_shards(name: str, words: str, reading: ShardReading) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_shards(name, reading)
    assert len(str(caught.value)) < 30_000


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"file": "../a.tar"}, "a shard called"),
        ({"file": "/a.tar"}, "a shard called"),
        ({"file": "a\\b.tar"}, "a shard called"),
        ({"file": "a.txt"}, "a shard called"),
        ({"file": 5}, "a shard called 5"),
        ({"file": "a" * 300 + ".tar"}, "a shard called"),
        ({"file": "a\nb.tar"}, "a shard called"),
        ({"bytes": -1}, "a.tar of -1 bytes"),
        ({"bytes": "5"}, "a.tar of '5' bytes"),
        ({"bytes": True}, "a.tar of true bytes"),
        ({"bytes": 10**400}, "a.tar of a whole number of more than 60 digits bytes"),
        ({"bytes": 1.5}, "a.tar of 1.5 bytes"),
        ({"sha256": "../../x"}, "a.tar with the SHA-256"),
        ({"sha256": None}, "a.tar with the SHA-256 none"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    tmp_path: Path, reading: ShardReading, row: dict[str, Any], words: str
) -> None:
    rows = [{"file": "a.tar", "bytes": 1, "sha256": "0" * 64} | row]
    record = {"milseg_shards": 1, "shards": rows, "classes": [], "notes": [], "tags_from": ""}
    (tmp_path / "shards.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=words):
        open_shards(tmp_path, reading)


def test_a_manifest_is_measured_before_it_is_read(tmp_path: Path, reading: ShardReading) -> None:
    with (tmp_path / "shards.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"shards.json: .* bytes, over the limit of 67,108,864"):
        open_shards(tmp_path, reading)


@pytest.fixture
def endless() -> Iterator[str]:
    """A server that sends without end, or a byte at a time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            piece = b"x" if "drip" in self.path else b"x" * 2**20
            with contextlib.suppress(OSError):
                while not stop.wait(0.2 if "drip" in self.path else 0):
                    self.wfile.write(piece)
                    self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None: ...

    stop = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        stop.set()
        running.shutdown()
        thread.join()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("endless.tar", "more than the limit of 20,000,000; not fetched"),
        ("endless/shards.json", "more than the limit of 67,108,864; not fetched"),
        ("drip.tar", "given up, the server sent"),
        ("drip/shards.json", "given up, the server sent"),
    ],
)
def test_servers_without_end(
    tmp_path: Path, endless: str, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("fsspec")
    monkeypatch.setattr(milseg.utils.watch, "PATIENCE", 3.0)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=words):
        open_shards(f"{endless}/{name}", ShardReading(cache=cache, cache_size=20_000_000))
    assert sum(path.stat().st_size for path in cache.rglob("*")) == 0 if cache.exists() else True


@pytest.mark.parametrize("kind", ["s3x", "nope", "git+ssh"])
def test_addresses_of_unknown_kinds(kind: str, reading: ShardReading) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match=f"{re.escape(kind)}://bucket/a.tar: no address that can be read"):
        open_shards(f"{kind}://bucket/a.tar", reading)


def test_an_address_that_leads_to_no_file(tmp_path: Path, reading: ShardReading) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="nothing is there"):
        open_shards(f"file://{tmp_path}/a.tar", reading)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    source = write_tar(tmp_path / "a.tar", sample("a", 0))
    (tmp_path / "file").touch()
    reading = ShardReading(cache=tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"file/cache: the cache of shards cannot be written .* --cache"):
        open_shards(source.as_uri(), reading)
    assert len(open_shards(source, reading).indexes) == 1  # on this machine it is not needed


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    source = write_tar(tmp_path / "a.tar", sample("a", 0))
    with pytest.raises(UserError, match="no home folder for the cache of shards; set HOME, or name a folder"):
        open_shards(source)
