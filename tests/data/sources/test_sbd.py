from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from milseg.data.image import open_mask
from milseg.data.mat_file import read_segmentation
from milseg.data.sources.sbd import find_sbd, require_sbd, sbd_ids
from milseg.errors import UserError

from .conftest import Tree

MASK = np.array([[0, 1, 2], [15, 20, 0]], dtype=np.uint8)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("mask", [MASK, MASK[:1], MASK[:, :1], np.tile(MASK, (40, 30))])
def test_mask_as_scipy_reads_it(tree: Tree, compress: bool, mask: np.ndarray) -> None:
    path = tree.mat(tree.root, "x", mask, compress=compress)
    values = open_mask(path)
    assert values.dtype == np.uint8
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, mask)
    np.testing.assert_array_equal(values, scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0])


def test_big_endian() -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">2I", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    def matrix(kind: int, shape: tuple[int, int], name: bytes, *content: bytes) -> bytes:
        head = (
            element(6, struct.pack(">2I", kind, 0)),
            element(5, struct.pack(">2i", *shape)),
            element(1, name),
        )
        return element(14, b"".join([*head, *content]))

    field = matrix(9, (2, 3), b"", element(2, MASK.T.tobytes()))
    names = struct.pack(">2Hi", 4, 5, 16), element(1, b"Segmentation".ljust(16, b"\0"))
    data = b"MATLAB".ljust(124) + b"\x01\x00MI" + matrix(2, (1, 1), b"GTcls", *names, field)
    np.testing.assert_array_equal(read_segmentation(data), MASK)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other": np.eye(2)}, "no struct GTcls"),
        ({"GTcls": np.eye(2)}, "no struct GTcls"),
        ({"GTcls": {"Boundaries": np.eye(2)}}, "no field Segmentation"),
        ({"GTcls": {"Segmentation": np.eye(2)}}, "no two-dimensional uint8 matrix"),
        ({"GTcls": {"Segmentation": np.zeros((2, 2, 2), dtype=np.uint8)}}, "no two-dimensional uint8 matrix"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: dict[str, object], words: str) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=words) as error:
        open_mask(path)
    assert str(error.value).startswith(f"{path}: damaged, or not an SBD mask")


def test_missing_empty_and_oversized(tree: Tree) -> None:
    with pytest.raises(UserError, match="no such mask"):
        open_mask(tree.root / "none.mat")
    with pytest.raises(UserError, match="no MATLAB 5 header"):
        open_mask(tree.write("x.mat"))
    with pytest.raises(UserError, match="limit 5"):
        open_mask(tree.mat(tree.root, "x", MASK), max_pixels=5)


def test_a_compressed_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(2**27), 9)
    data = b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 15, len(bomb)) + bomb
    with pytest.raises(ValueError, match="too large"):
        read_segmentation(data, max_pixels=1000)


@pytest.mark.parametrize("compress", [True, False])
def test_damaged_files_end_in_the_documented_error(tree: Tree, compress: bool) -> None:
    path = tree.mat(tree.root, "x", MASK, compress=compress)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for cut in (0, 100, 127, 128, 130, 140, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"x\.mat"):
            open_mask(path)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            open_mask(path)
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("home", ["benchmark_RELEASE/dataset", "SBD", "sbd/benchmark_RELEASE/dataset"])
def test_found_below_the_root(tree: Tree, home: str) -> None:
    folder = tree.sbd({"train": ["a", "b"], "val": ["c"]}, home=home)
    assert find_sbd(tree.root) == folder
    assert sbd_ids(folder, "train") == ("a", "b")
    assert sbd_ids(folder, "val") == ("c",)


def test_given_by_any_of_its_folders(tree: Tree) -> None:
    folder = tree.sbd({"train": ["a"], "val": []}, home="elsewhere/benchmark_RELEASE/dataset")
    assert find_sbd(tree.root) is None
    for given in (folder, folder.parent, folder.parent.parent):
        assert find_sbd(tree.root, given) == folder
    with pytest.raises(UserError, match="holds no SBD"):
        find_sbd(tree.root, tree.root)
    with pytest.raises(UserError, match="no such folder"):
        find_sbd(tree.root, tree.root / "none")


def test_missing_says_what_to_download_and_where(tree: Tree) -> None:
    with pytest.raises(UserError) as error:
        require_sbd(tree.root, None, "paper-train")
    where = str(tree.root / "benchmark_RELEASE" / "dataset")
    for word in ("'paper-train'", "Semantic Boundaries Dataset", where, "cls/*.mat"):
        assert word in str(error.value)
