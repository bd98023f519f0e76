"""SBD, the Semantic Boundaries Dataset: where its lists, photos and masks lie.

Hariharan, Arbelaez, Bourdev, Maji, Malik: "Semantic Contours from Inverse Detectors", ICCV 2011. It adds
masks of VOC's 20 classes to photos of PASCAL VOC 2011. The archive unpacks to `benchmark_RELEASE/dataset`,
with `cls/ID.mat` (masks; read by `milseg.data.image.open_mask`), `img/ID.jpg`, `train.txt` and `val.txt`.
"""

from __future__ import annotations

from pathlib import Path

from milseg.data.sources.tag_file import read_ids
from milseg.errors import UserError

# Where SBD lies below the folder that holds VOC.
PLACES = (
    *("SBD", "sbd", "SBD/dataset", "sbd/dataset", "benchmark_RELEASE/dataset"),
    *("SBD/benchmark_RELEASE/dataset", "sbd/benchmark_RELEASE/dataset"),
)
LAYOUT = "cls/*.mat, img/*.jpg, train.txt and val.txt"


def _is_sbd(folder: Path) -> bool:
    return (folder / "cls").is_dir() and (folder / "train.txt").is_file()


def find_sbd(root: Path, sbd: Path | None = None) -> Path | None:
    """The folder that holds SBD's `cls`, `img`, `train.txt` and `val.txt`; None if none is below `root`.

    Args:
        root: the folder that holds VOC; looked through where `sbd` is None.
        sbd: that folder itself, or one above it: `benchmark_RELEASE`, or the folder that holds that.

    Raises:
        UserError: `sbd` is given and holds no SBD.
    """
    if sbd is None:
        return next((root / place for place in PLACES if _is_sbd(root / place)), None)
    for folder in (sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"):
        if _is_sbd(folder):
            return folder
    what = "holds no SBD" if sbd.is_dir() else "no such folder"
    raise UserError(f"{sbd}: {what}; expected SBD's benchmark_RELEASE/dataset, which holds {LAYOUT}")


def require_sbd(root: Path, sbd: Path | None, wanted_for: str) -> Path:
    """As `find_sbd`, for a set that cannot do without.

    Raises:
        UserError: saying what to download and where to put it.
    """
    folder = find_sbd(root, sbd)
    if folder is None:
        raise UserError(
            f"{root}: the set {wanted_for!r} needs SBD beside VOC, and there is none. Download the "
            "Semantic Boundaries Dataset (Hariharan et al. 2011; the archive is benchmark.tgz) and unpack "
            f"it there, so that "
            f"{root / 'benchmark_RELEASE' / 'dataset'} holds {LAYOUT}; or name its folder (sbd)"
        )
    return folder


def sbd_ids(folder: Path, name: str) -> tuple[str, ...]:
    """SBD's own list `name` ("train": 8,498 photos, "val": 2,857)."""
    return read_ids(folder / f"{name}.txt")
