"""The table of synsets, the mapping of one's own classes, and the rows taken over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VGG16_Weights

from milseg.errors import UserError
from milseg.models.backbones import build_fcn, make_classifier
from milseg.models.transfer import (
    SMALL,
    build_model,
    imagenet_wnids,
    mapping_for,
    read_mapping,
    rescaled_row,
    transfer_rows,
    transfer_score_layer,
    voc_synsets,
)
from milseg.models.weights import imagenet_categories

VOC = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
]
ILSVRC = imagenet_categories()

# The table


def test_table_has_the_voc_classes():
    assert list(voc_synsets()) == VOC


def test_wnids_are_the_sorted_thousand():
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert list(wnids) == sorted(set(wnids)), "torchvision numbers its classes in the order of their wnids"
    # Landmarks: the first, the last, and some in between.
    known = {0: "n01440764", 281: "n02123045", 404: "n02690373", 981: "n09835506", 999: "n15075141"}
    assert {i: wnids[i] for i in known} == known


def test_every_entry_agrees_with_torchvision():
    categories = VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    entries = [entry for rows in voc_synsets().values() for entry in rows]
    assert all(set(entry) == {"wnid", "index", "name"} for entry in entries)
    assert [e["name"] for e in entries] == [categories[e["index"]] for e in entries]
    assert [e["wnid"] for e in entries] == [imagenet_wnids()[e["index"]] for e in entries]


def test_wnids_ascend_with_the_index_and_serve_one_class():
    entries = sorted((e for rows in voc_synsets().values() for e in rows), key=lambda e: e["index"])
    assert len({e["index"] for e in entries}) == len(entries) == 242
    assert [e["wnid"] for e in entries] == sorted(e["wnid"] for e in entries)
    for rows in voc_synsets().values():
        assert [e["index"] for e in rows] == sorted(e["index"] for e in rows)


def test_known_ranges():
    indices = {name: [e["index"] for e in rows] for name, rows in voc_synsets().items()}
    assert indices["dog"] == list(range(151, 269))
    assert indices["cat"] == [281, 282, 283, 284, 285]
    assert (indices["horse"], indices["cow"], indices["sheep"]) == ([339], [345, 346], [348, 349])
    assert indices["person"] == [981, 982, 983]
    assert len(indices["bird"]) == 59
    assert 134 in indices["bird"]


# Mapping


def test_voc_names_use_the_table():
    mapping = mapping_for(["background", *VOC], ILSVRC)
    assert mapping["background"] == ()
    assert {n: rows for n, rows in mapping.items() if n != "background"} == {
        name: tuple(e["index"] for e in rows) for name, rows in voc_synsets().items()
    }


def test_other_names():
    names = [
        "Siamese_cat",
        "golden-retriever",
        "Motorcycle",
        "TV",
        "dining table",
        "crane",
        "Cardigan",
        "unicorn",
    ]
    found = mapping_for(names, ILSVRC)
    assert list(found.values()) == [(284,), (207,), (665, 670), (664, 782, 851), (532,), (517,), (264,), ()]


def test_a_name_of_two_categories_is_not_guessed():
    with pytest.raises(UserError, match=r"CARDIGAN: several categories .*264 'Cardigan', 474 'cardigan'"):
        mapping_for(["CARDIGAN"], ILSVRC)


def test_ones_own_categories():
    digits = [str(i) for i in range(10)]
    assert mapping_for(["background", "7", "0", "cat"], digits) == {
        "background": (),
        "7": (7,),
        "0": (0,),
        "cat": (),
    }


def test_ones_own_yaml(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("pet: [beagle, 281, n02123394, Beagle]\ndog: pug\ncardigan: 474\nunused: [tench]\n")
    assert mapping_for(["background", "Pet", "dog", "cardigan", "cow"], ILSVRC, path) == {
        "background": (),
        "Pet": (162, 281, 283),
        "dog": (254,),
        "cardigan": (474,),
        "cow": (345, 346),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog: [beegle]", "map.yaml: dog: the classifier has no category 'beegle'; the nearest is 'beagle'"),
        ("dog: [1000]", "map.yaml: dog: no row 1000; the classifier's rows are 0 to 999"),
        ("dog: [-1]", "no row -1"),
        ("dog: [n00000001]", "none of ILSVRC's 1000 synsets"),
        ("dog: [yes]", "True is no category"),
        ("dog:", "None is no category"),
        ("dog: [[pug]]", "is no category"),
        ("- dog", "holds list; expected lines such as"),
        ("", "holds NoneType"),
        ("dog: [", "cannot be read as YAML"),
        ("dog: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_the_yaml(tmp_path, text, message):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_mapping(path, ILSVRC)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_yaml(tmp_path):
    with pytest.raises(UserError, match="no such mapping file"):
        read_mapping(tmp_path / "none.yaml", ILSVRC)
    (tmp_path / "latin.yaml").write_bytes(b"dog: [caf\xe9]")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_mapping(tmp_path / "latin.yaml", ILSVRC)


# Rows


def test_rows_by_hand():
    weight = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, -1.0]])
    bias = torch.tensor([10.0, 20.0, 30.0])
    mapping = {"both": (0, 1), "last": (2,)}
    new_weight, new_bias, report = transfer_rows(
        weight, bias, ["background", "last", "both", "new"], mapping, categories=["a", "b", "c"]
    )
    assert new_weight[:3].tolist() == [[0, 0], [5, -1], [2, 4]]
    assert new_bias.tolist() == [0, 30, 15, 0]
    assert 0 < float(new_weight[3].abs().max()) < 5 * SMALL * float(weight.std())
    assert report.rows == {"background": (), "last": ((2, "c"),), "both": ((0, "a"), (1, "b")), "new": ()}
    assert report.without_rows == ("new",)
    assert str(report).splitlines() == [
        "background  zero",
        "last        1 row: 2 c",
        "both        2 rows: 0 a, 1 b",
        "new         none: starts small",
    ]


def test_rescaled_rows_are_as_long_as_their_members():
    rows = torch.tensor([[3.0, 0.0, 1.0], [0.0, 4.0, 3.0]])
    # Mean (1.5, 2), length 2.5; the members' lengths are 3 and 4.
    assert torch.allclose(rescaled_row(rows), torch.tensor([1.5, 2.0, 2.0]) * 3.5 / 2.5)
    assert bool(rescaled_row(torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])).isfinite().all())
    with pytest.raises(UserError, match="unknown way to combine rows 'mead'; did you mean 'mean'"):
        transfer_rows(rows[:, :2], rows[:, 2], ["x"], {}, combine="mead")


def test_small_rows_are_seeded_and_small():
    weight = torch.randn(10, 400, generator=torch.Generator().manual_seed(0))
    a, b, c = (transfer_rows(weight, torch.zeros(10), ["x", "y"], {}, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert float(a.std()) == pytest.approx(SMALL * float(weight.std()), rel=0.1)


def test_report_shortens_long_lists():
    mapping = mapping_for(["dog"], ILSVRC)
    report = transfer_rows(torch.zeros(1000, 2), torch.zeros(1000), ["dog"], mapping, categories=ILSVRC)[2]
    assert (
        str(report)
        == "dog  118 rows: 151 Chihuahua, 152 Japanese spaniel, 153 Maltese dog, ..., 268 Mexican hairless"
    )
    assert len(report.rows["dog"]) == 118


def test_scores_of_a_transferred_class_are_the_mean_of_its_categories():
    model = build_fcn("tiny", 10, seed=2)
    images = torch.randn(1, 3, 24, 24)
    before = model(images)
    report = transfer_score_layer(
        model, ["background", "odd", "3"], "0123456789", mapping={"odd": (1, 3, 5, 7, 9), "3": (3,)}
    )
    after = model(images)
    assert torch.equal(after[:, 0], torch.zeros_like(after[:, 0]))
    assert torch.allclose(after[:, 1], before[:, 1::2].mean(1), atol=1e-6)
    assert torch.allclose(after[:, 2], before[:, 3], atol=1e-6)
    assert report.rows["3"] == ((3, "3"),)


# From name to network


def test_build_model_from_a_file(tmp_path):
    state = make_classifier("squeezenet1_0", 1000, seed=1).state_dict()
    state["classifier.1.bias"] = torch.arange(1000.0)
    save_file(state, tmp_path / "net.safetensors")
    classes = ["background", "cat", "sheep", "unicorn"]
    model, report = build_model(
        "squeezenet1_0", classes, weights=tmp_path / "net.safetensors", output_stride=8
    )
    assert (model.stride, model.classes, model.training) == (8, 4, True)
    assert model.score_layer.bias.tolist() == [0, 283, 348.5, 0]
    assert torch.allclose(
        model.score_layer.weight[1, :, 0, 0],
        state["classifier.1.weight"][281:286, :, 0, 0].mean(0),
        atol=1e-7,
    )
    assert report.without_rows == ("unicorn",)
    assert model.score_layer.weight.requires_grad


def test_zero_and_random_starts():
    classes = ["background", "a", "b"]
    zero, report = build_model("tiny", classes, transfer="zero")
    assert not zero.score_layer.weight.any()
    assert not zero(torch.randn(1, 3, 9, 9)).any()
    assert str(report) == "background  zero\na           zero\nb           zero"
    random, report = build_model("tiny", classes, transfer="random", seed=3)
    assert not random.score_layer.weight[0].any()
    assert random.score_layer.weight[1:].all()
    assert str(report).splitlines()[1] == "a           small random start"
    again, _ = build_model("tiny", classes, transfer="random", seed=3)
    assert torch.equal(again.score_layer.weight, random.score_layer.weight)


def test_without_weights_nothing_is_transferred():
    model, report = build_model("tiny", ["background", "cat"])
    assert str(report) == "background  zero\ncat         none: starts small"
    assert model.classes == 2


def test_mistakes():
    with pytest.raises(UserError, match="transfer is 'rows'; expected True, 'zero' or 'random'"):
        build_model("tiny", ["a"], transfer="rows")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a class is named twice: a"):
        build_model("tiny", ["a", "b", "a"])
    with pytest.raises(UserError, match="unknown backbone 'tinny'; did you mean 'tiny'"):
        build_model("tinny", ["a"])
    with pytest.raises(UserError, match="no such weights file"):
        build_model("tiny", ["a"], weights=Path("none.pth"))
