from __future__ import annotations

import math
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import milseg
from milseg.config import InferenceConfig
from milseg.data.image import open_photo, resize_photo
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.prior import Prior, apply_prior
from milseg.inference.score_map import ScoreMap, upsample
from milseg.inference.segmenter import Segmenter, load, segment
from milseg.inference.tta import tta_score_map
from milseg.models.backbones import build_fcn
from milseg.models.fuse import fused
from milseg.refine.crf import dense_crf

CLASSES = ("background", "cat", "cow", "dog")


def network(classes: tuple[str, ...] = CLASSES) -> torch.nn.Module:
    """A tiny network whose random rows are large enough for every class to win somewhere."""
    torch.manual_seed(5)
    model = build_fcn("tiny", len(classes)).eval()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    return model


def segmenter(classes: tuple[str, ...] = CLASSES, *, class_bias: dict[str, float] | None = None) -> Segmenter:
    spec = ModelSpec(backbone="tiny", classes=classes, longest_side=48)
    return Segmenter(network(classes), spec, class_bias=class_bias)


@pytest.fixture
def photo() -> np.ndarray:
    blocks = np.random.default_rng(3).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((10, 8, 1), dtype=np.uint8))[:57, :70]


def test_the_result_is_of_the_photos_own_size(photo: np.ndarray) -> None:
    found = segmenter().segment(photo)
    assert found.mask.shape == photo.shape[:2] == (57, 70)
    assert found.mask.dtype == np.uint8
    assert len(np.unique(found.mask)) >= 3, (
        "the network must tell something apart for these tests to mean much"
    )
    assert found.overlay().shape == photo.shape
    assert found.overlay(alpha=0.0).tolist() == photo.tolist()
    assert found.input_size == (39, 48)  # made smaller to longest_side, as in training
    assert not found.tags_given


def test_views_prior_and_refiner_each_take_part(photo: np.ndarray) -> None:
    """Each setting's mask is the one worked out from its parts."""
    size = (57, 70)
    prior = Prior(
        slope=(0.0, *[0.7] * (len(CLASSES) - 1)), intercept=(math.inf, *[-3.0] * (len(CLASSES) - 1))
    )
    spec = ModelSpec(backbone="tiny", classes=CLASSES, longest_side=48, prior=prior)
    model = network()
    plain = Segmenter(model, spec).segment(photo).mask

    views = InferenceConfig(scales=(1.0, 1.5), flip=True)
    found = tta_score_map(fused(model), photo, longest_side=48, scales=(1.0, 1.5), flip=True)
    mask = Segmenter(model, spec, inference=views).segment(photo).mask
    assert np.array_equal(mask, found.argmax_mask(size))
    assert not np.array_equal(mask, plain)

    both = InferenceConfig(scales=(1.0, 1.5), flip=True, prior=2.0)
    mask = Segmenter(model, spec, inference=both).segment(photo).mask
    assert np.array_equal(mask, found.map(lambda scores: apply_prior(scores, prior, 2.0)).argmax_mask(size))
    assert not np.array_equal(mask, plain)

    small = (41, 50)  # the refiner sees the photo at its own limit, and its probabilities are interpolated
    refined = InferenceConfig(refine="crf(iterations=2)", refine_side=50)
    one = tta_score_map(fused(model), photo, longest_side=48)
    p = upsample(one.scores, small, stride=4, offset=0.0, input_size=one.input_size).softmax(dim=0)
    p = dense_crf(resize_photo(photo, small), p, iterations=2)
    expected = ScoreMap(scores=p, stride=1, offset=0.0, input_size=small).argmax_mask(size)
    mask = Segmenter(model, spec, inference=refined).segment(photo).mask
    assert np.array_equal(mask, expected)
    assert not np.array_equal(mask, plain)


def test_known_tags_leave_the_prior_nothing_to_say(photo: np.ndarray) -> None:
    prior = Prior(
        slope=(0.0, *[1.0] * (len(CLASSES) - 1)), intercept=(math.inf, *[-9.0] * (len(CLASSES) - 1))
    )
    spec = ModelSpec(backbone="tiny", classes=CLASSES, longest_side=48, prior=prior)
    strong = Segmenter(network(), spec, inference=InferenceConfig(prior=5.0))
    tags = CLASSES[1:3]
    assert np.array_equal(
        strong.segment(photo, tags=tags).mask, Segmenter(network(), spec).segment(photo, tags=tags).mask
    )


def test_a_prior_that_was_never_fitted_is_the_users_mistake() -> None:
    spec = ModelSpec(backbone="tiny", classes=CLASSES)
    with pytest.raises(UserError, match="saved without a calibrated prior"):
        Segmenter(network(), spec, inference=InferenceConfig(prior=1.0))


def test_the_mask_is_that_of_the_plain_function(photo: np.ndarray) -> None:
    expected = segment(network(), photo, longest_side=48)
    assert np.array_equal(segmenter().segment(photo).mask, expected)


def test_files_arrays_and_pillow_images_agree(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    model = segmenter()
    masks = [model.segment(each).mask for each in (photo, path, str(path), Image.open(path))]
    for mask in masks[1:]:
        assert np.array_equal(mask, masks[0])
    grey = Image.fromarray(photo).convert("L")
    assert np.array_equal(
        model.segment(grey).mask, model.segment(np.repeat(np.asarray(grey)[..., None], 3, 2)).mask
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_stands_as_the_photo_is_shown(photo: np.ndarray, tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(path, exif=exif)
    found = segmenter().segment(path)
    upright = open_photo(path)
    assert upright.shape[:2] == ((57, 70) if orientation < 5 else (70, 57))
    assert np.array_equal(found.photo, upright)
    assert np.array_equal(found.mask, segmenter().segment(upright).mask)
    assert np.array_equal(found.mask, segmenter().segment(Image.open(path)).mask)


def test_shares_confidences_and_tags(photo: np.ndarray) -> None:
    found = segmenter().segment(photo)
    assert sum(found.areas.values()) == pytest.approx(1.0)
    for name, share in found.areas.items():
        assert share == np.mean(found.mask == CLASSES.index(name))
    assert 1 / len(CLASSES) <= found.confidence <= 1
    assert {name for name, _ in found.tags} == set(found.areas) - {"background"}
    confidences = [confidence for _, confidence in found.tags]
    assert confidences == sorted(confidences, reverse=True)
    scores = torch.from_numpy(found.scores).softmax(0).flatten(1).amax(1)
    assert dict(found.tags) == pytest.approx(
        {name: float(scores[CLASSES.index(name)]) for name in dict(found.tags)}
    )


@pytest.mark.parametrize("tags", [None, ["dog"], ["cat", "dog"], []])
def test_probabilities_sum_to_one_and_their_top_is_the_mask(
    photo: np.ndarray, tags: list[str] | None
) -> None:
    found = segmenter().segment(photo, tags=tags)
    p = found.probabilities()
    assert p.shape == (4, 57, 70)
    assert p.dtype == np.float32
    assert p.sum(0) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(p.argmax(0), found.mask)


def test_known_tags_rule_out_the_other_classes(photo: np.ndarray) -> None:
    model = segmenter()
    free = model.segment(photo)
    assert len(free.tags) >= 2
    for name, _ in free.tags:
        found = model.segment(photo, tags=[name])
        assert set(found.areas) <= {"background", name}
        assert found.tags_given
        others = [i for i, other in enumerate(CLASSES) if other not in ("background", name)]
        assert np.isneginf(found.scores[others]).all()
        assert np.isfinite(found.probabilities()).all()
        assert found.probabilities()[others].max() == 0
        # Where an allowed class won freely it still wins.
        kept = np.isin(free.mask, [0, CLASSES.index(name)])
        assert np.array_equal(found.mask[kept], free.mask[kept])
    assert model.segment(photo, tags=CLASSES).mask.tolist() == free.mask.tolist()
    assert set(model.segment(photo, tags=[]).areas) == {"background"}


def test_an_unknown_tag_is_told_with_the_nearest(photo: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"unknown tag 'dgo'; did you mean 'dog'\?"):
        segmenter().segment(photo, tags=["cat", "dgo"])


def test_without_a_background_some_tag_must_be_known(photo: np.ndarray) -> None:
    model = segmenter(("sky", "sea"))
    assert set(model.segment(photo, tags=["sea"]).areas) == {"sea"}
    with pytest.raises(UserError, match="no tag is known, and the model has no background"):
        model.segment(photo, tags=[])


@pytest.mark.parametrize("name", CLASSES)
def test_adjusting_a_class_gives_more_or_less_of_it(photo: np.ndarray, name: str) -> None:
    amounts = [-100.0, -1.0, -0.3, 0.0, 0.3, 1.0, 100.0]
    areas = [segmenter(class_bias={name: amount}).segment(photo).areas.get(name, 0.0) for amount in amounts]
    assert areas == sorted(areas)
    assert areas[0] == 0.0
    assert areas[-1] == 1.0
    assert len(set(areas)) > 3


def test_adjusting_by_one_makes_a_class_e_times_as_likely(photo: np.ndarray) -> None:
    def odds(class_bias: dict[str, float]) -> np.ndarray:
        scores = torch.from_numpy(segmenter(class_bias=class_bias).segment(photo).scores)
        p = scores.softmax(0).numpy()
        return p[1] / p[0]

    assert odds({"cat": 1.0}) / odds({}) == pytest.approx(math.e, rel=1e-4)


def test_adjusting_what_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UserError, match="unknown class 'cta'; did you mean 'cat'"):
        segmenter(class_bias={"cta": 1.0})
    with pytest.raises(UserError, match=r"adjustment of cat: nan; expected a finite number"):
        segmenter(class_bias={"cat": math.nan})


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match=re.escape("expected uint8 [H, W, 3], RGB")):
        segmenter().segment(wrong)


def test_photos_that_cannot_be_read_are_the_users_mistake(photo: np.ndarray, tmp_path: Path) -> None:
    data = BytesIO()
    Image.fromarray(photo).save(data, "JPEG")
    cut = data.getvalue()[:-300]
    (tmp_path / "cut.jpg").write_bytes(cut)
    model = segmenter()
    with pytest.raises(UserError, match=r"cut\.jpg: damaged or cut short"):
        model.segment(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match="Pillow image that cannot be decoded"):
        model.segment(Image.open(BytesIO(cut)))
    with pytest.raises(UserError, match="no such photo"):
        model.segment(tmp_path / "none.jpg")
    Image.fromarray(photo).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than the limit of 3,000"):
        model.segment(tmp_path / "a.png", max_pixels=3_000)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (129, 31)])
def test_any_size_works(size: tuple[int, int]) -> None:
    found = segmenter().segment(np.full((*size, 3), 99, np.uint8))
    assert found.mask.shape == size
    assert found.probabilities().shape == (4, *size)


def test_load_reads_a_model_folder(photo: np.ndarray, tmp_path: Path) -> None:
    save_model(tmp_path, network(), ModelSpec(backbone="tiny", classes=CLASSES, longest_side=48))
    expected = segmenter().segment(photo)
    for model in (load(tmp_path), load(str(tmp_path), device="cpu"), milseg.load(tmp_path)):
        found = model.segment(photo)
        assert np.array_equal(found.mask, expected.mask)
        assert found.classes == CLASSES
        assert not model.model.training
    more = load(tmp_path, class_bias={"dog": 100.0}).segment(photo)
    assert set(more.areas) == {"dog"}
    with pytest.raises(UserError, match=r"none: no such folder, and a model folder holds config\.yaml"):
        load(tmp_path / "none")
