"""Folders as people have them: recognised and announced, or refused with what was found; never read otherwise."""

import json
import os
import re

import pytest
import torch
from folder_forms import FORMS, TRAIN, VALIDATION, pairs, write_files, write_form
from stream_batches import batches

from scripts.cli.errors import UserError
from scripts.data.arguments import DatasetArguments
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.layouts import folder_layout
from scripts.data.samples import decode_sample


SIDE_BY_SIDE = ["a.jpg", "b.jpg", "a_mask.png", "b_mask.png"]
UNDERSTOOD = "understood are train/images + train/masks, images/train + masks/train, images + masks, or a.jpg"
ANNOUNCED = {
    "splits outside": (
        pairs("train/images", "train/masks") + pairs("val/images", "val/masks", "v1"),
        "train 3 pairs (train/images + train/masks); validation 1 pair (val/images + val/masks)",
    ),
    "splits inside, a test split without masks": (
        pairs("images/training", "annotations/training") + ["images/testing/t.jpg"],
        "train 3 pairs (images/training + annotations/training); test 1 image without masks (images/testing)",
    ),
    "one split": (pairs("Image", "LABELS"), "train 3 pairs (Image + LABELS)"),
    "years": (pairs("images/train2017", "labels/train2017"), "train 3 pairs (images/train2017 + labels/train2017)"),
    "side by side": (SIDE_BY_SIDE, "train 2 pairs (side by side in ., masks *_mask)"),
    "side by side, nested": (
        ["s/1.jpg", "s/1.gt.png", "t/1.jpg", "t/1.gt.png"],
        "train 2 pairs (side by side in ., masks *.gt)",
    ),
    "images beside a folder of masks": (pairs(".", "masks"), "train 3 pairs (. + masks)"),
    "nested folders": (pairs("images", "masks", "a/1 b/1"), "train 2 pairs (images + masks)"),
    "what is of no split": (
        [*pairs("images", "masks"), "previews/a.jpg", "sheet.png"],
        "train 3 pairs (images + masks); left out: previews (1 file), . (1 file)",
    ),
    "hidden copies": ([*pairs("images", "masks"), ".cache/a.png", "masks/.x/a.png"], "train 3 pairs (images + masks)"),
    "a card without configurations": ([*pairs("images", "masks"), "README.md"], "train 3 pairs (images + masks)"),
    "tables beside": ([*pairs("images", "masks"), "class_dict.csv"], "train 3 pairs (images + masks)"),
}
REFUSED = {
    "two folders of masks": (
        pairs("images", "masks") + pairs("images", "labels"),
        "masks in labels (3 files) and masks (3 files): name two folders by --train_images and --train_masks",
    ),
    "two forms at once": (
        pairs("images", "masks") + pairs("train/images", "train/masks"),
        "images in images (3 files) and train/images (3 files): name two folders by",
    ),
    "an image without a mask": (
        pairs("images", "masks")[:-1],
        "masks: nothing of the stem 'b1' of b1.jpg: images and maps are matched by their names without ending",
    ),
    "a mask without an image": (
        [*pairs("images", "masks"), "masks/c1.png"],
        "images: nothing of the stem 'c1' of c1.png",
    ),
    "equal stems in other folders": (
        ["images/a/1.jpg", "images/b/1.jpg", "masks/a/1.png", "masks/c/1.png"],
        "masks: nothing of the stem 'b/1' of 1.jpg",
    ),
    "two of one stem": (
        [*pairs("images", "masks"), "masks/a1.gif"],
        "masks: a1.gif and a1.png have one stem: remove one",
    ),
    "image and mask of one stem side by side": (
        ["a.jpg", "a.png"],
        "a.jpg and a.png have one stem: remove one, or keep label maps in a folder of their own",
    ),
    "a mask is missing side by side": (
        SIDE_BY_SIDE[:-1],
        "2 images and 1 label map *_mask: 'b' has no 'b_mask'; every image needs one label map",
    ),
    "two suffixes side by side": (
        ["a.jpg", "a_mask.png", "a_gt.png"],
        "of 3 files 1 end in _gt, 1 end in _mask: give one as --mask_suffix",
    ),
    "several masks of an image": (
        ["images/a.jpg", "masks/a_color.png", "masks/a_ids.png"],
        "there are maps with _color, _ids: give one as --mask_suffix",
    ),
    "masks as JPEG": (pairs("images", "masks", ending=".jpg"), "masks: no file ending in .png, .tif"),
    "masks alone": (["masks/a.png"], "masks: 1 label map of split 'train', but no images for them"),
    "images alone": (["images/a.jpg", "images/b.jpg"], f"2 images in images, but nothing that says .* {UNDERSTOOD}"),
    "a folder for each class": (["cat/a.jpg", "dog/b.jpg"], f"2 images in ., but nothing that says .* {UNDERSTOOD}"),
    "masks in a folder of another name": (
        pairs("images", "colours"),
        f"3 images in images, others in colours, but nothing .* {UNDERSTOOD}",
    ),
    "a site for each folder": (pairs("x/images", "x/masks") + pairs("y/images", "y/masks"), UNDERSTOOD),
    "polygons": (["a.jpg", "a.json"], UNDERSTOOD),
    "boxes": (["images/train/a.jpg", "labels/train/a.txt"], f"1 image in images/train, but .* {UNDERSTOOD}"),
}


def folder(tmp_path, files):
    return write_files(tmp_path / "own", files)


@pytest.mark.parametrize("case", ANNOUNCED)
def test_recognised_folders_are_announced(case, tmp_path, capsys):
    files, line = ANNOUNCED[case]
    own = folder(tmp_path, files)
    for _ in range(2):
        data = LabelledDataset(DatasetArguments(str(own)), "train")
        assert data.num_examples == len(list(data.stream))
    assert capsys.readouterr().err == f"--dataset_name {own}: {line}\n"


@pytest.mark.parametrize("case", REFUSED)
def test_other_folders_are_refused(case, tmp_path, capsys):
    files, message = REFUSED[case]
    own = folder(tmp_path, files)
    with pytest.raises(UserError) as error:
        LabelledDataset(DatasetArguments(str(own)), "train")
    text = str(error.value)
    assert text.startswith(f"--dataset_name {own}") and "\n" not in text and not capsys.readouterr().err
    assert all(part in text for part in message.split(" .* ")), text


# --------------------------------------------------------------------------------------------------- the same samples


def of_split(arguments, split):
    data = LabelledDataset(arguments, split)
    return [decode_sample(row, data.row_format, 3, index) for index, row in enumerate(data.stream)]


def assert_same(found, expected):
    assert [name for *_, name in found] == [name for *_, name in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    plain = write_form(tmp_path / "plain", "train/images + train/masks")
    flags = DatasetArguments(
        train_images=str(plain / "train/images"), train_masks=str(plain / "train/masks"),
        eval_images=str(plain / "val/images"), eval_masks=str(plain / "val/masks"),
    )  # fmt: skip
    own = DatasetArguments(str(write_form(tmp_path / "own", form)))
    for split, names in (("train", TRAIN), ("validation", VALIDATION), ("val", VALIDATION)):
        expected = of_split(flags, split)
        assert len(expected) == len(names)
        assert_same(of_split(own, split), expected)
    assert LabelledDataset(own, "train").id2label == {0: "a", 1: "b", 2: "c"}
    for found, expected in zip(batches(own, count=2), batches(flags, count=2), strict=True):
        assert found["names"] == expected["names"] and torch.equal(found["pixel_values"], expected["pixel_values"])


def test_workers_decode_the_same(tmp_path):
    own = DatasetArguments(str(write_form(tmp_path / "own", "Cityscapes")))
    for found, expected in zip(batches(own, workers=2, count=3), batches(own, count=3), strict=True):
        assert found["names"] == expected["names"] and torch.equal(found["pixel_values"], expected["pixel_values"])


# ------------------------------------------------------------------------------------------------------------- flags


def test_one_folder_for_both_flags(tmp_path, capsys):
    """It was read as if each image were its own label map."""
    own = write_files(tmp_path / "own", ["a.png", "b.png"])
    flags = DatasetArguments(train_images=str(own), train_masks=f"{own}/.")
    with pytest.raises(UserError, match=r"--train_masks .* are one folder, and no suffix tells its label maps"):
        LabelledDataset(flags, "train")
    write_files(own, ["a_x.png", "b_x.png"])
    flags.mask_suffix = "_x"
    assert LabelledDataset(flags, "train").num_examples == 2
    for stem in ("a", "b"):
        (own / f"{stem}_x.png").rename(own / f"{stem}_Mask.png")
    flags.mask_suffix = None
    data = LabelledDataset(flags, "train")
    assert [row["label"]["path"][-10:] for row in data.stream] == ["a_Mask.png", "b_Mask.png"]
    assert capsys.readouterr().err.endswith("2 pairs, masks *_Mask\n")


def test_a_further_suffix_beside_the_chosen_one_is_left_out_and_said(tmp_path, capsys):
    """`_edge` of every image, and what label maps are called; anything else stays an image that lacks its mask."""
    own = write_files(tmp_path / "own", [*SIDE_BY_SIDE, "a_edge.png", "b_edge.png", "a_gt.png"])
    flags = DatasetArguments(str(own), mask_suffix="_mask")
    for chosen in (flags, DatasetArguments(train_images=str(own), train_masks=str(own), mask_suffix="_mask")):
        data = LabelledDataset(chosen, "train")
        found = [row["image"]["path"].rpartition("/")[2] for row in data.stream]
        assert found == ["a.jpg", "b.jpg"]
    said = capsys.readouterr().err.splitlines()
    assert "masks *_mask); left out: . *_edge (2 files), . *_gt (1 file)" in said[0]
    assert said[1].endswith("2 pairs, masks *_mask; left out: *_edge (2 files), *_gt (1 file)")
    write_files(own, ["a_2.jpg"])
    with pytest.raises(UserError, match="3 images and 2 label maps \\*_mask: 'a_2' has no 'a_2_mask'"):
        LabelledDataset(flags, "train")


VOC = ["JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg", "JPEGImages/4.jpg", "JPEGImages/5.jpg"]
VOC += ["SegmentationClass/1.png", "SegmentationClass/2.png", "SegmentationClass/3.png", "SegmentationObject/1.png"]


@pytest.mark.parametrize("around", ["", "VOC2012/"])
def test_lists_of_pascal_voc_make_its_splits(around, tmp_path, capsys):
    own = write_files(tmp_path / "own", [around + name for name in VOC])
    lists = own / around / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", "3\n1\n"), ("val", "2"), ("trainval", "1\n2\n3\n"), ("test", "4\n")):
        (lists / f"{name}.txt").write_text(stems)
    flags = DatasetArguments(str(own))
    rows = {split: list(LabelledDataset(flags, split).stream) for split in ("train", "validation")}
    assert {split: [row["image_id"] for row in found] for split, found in rows.items()} == {
        "train": ["3", "1"],
        "validation": ["2"],
    }
    assert all(row["label"]["path"].endswith(f"SegmentationClass/{row['image_id']}.png") for row in rows["train"])
    place = f"{around}ImageSets/Segmentation"
    (said,) = capsys.readouterr().err.splitlines()
    folders = f"{around}JPEGImages + {around}SegmentationClass"
    assert f"train 2 pairs ({folders}, by {place}/train.txt); validation 1 pair ({folders}, by {place}/val" in said
    assert f"test 1 image without masks ({around}JPEGImages, by {place}/test.txt)" in said
    assert said.endswith(f"left out: {around}JPEGImages (1 file), {around}SegmentationObject (1 file)")
    for text, message in (("1 9", "names '9', but"), ("1 5", "names '5', but"), ("", "names no image")):
        (lists / "train.txt").write_text(text)
        with pytest.raises(UserError, match=f"{place}/train.txt: {message}"):
            LabelledDataset(flags, "train")


def test_a_suffix_chooses_among_masks(tmp_path):
    own = write_files(tmp_path, [f"{kind}.png" for kind in ("i/a", "i/b", "m/a_c", "m/b_c", "m/a_ids", "m/b_ids")])
    flags = DatasetArguments(train_images=f"{own}/i", train_masks=f"{own}/m", mask_suffix="_ids")
    assert [row["label"]["path"][-7:] for row in LabelledDataset(flags, "train").stream] == ["a_ids.png"[-7:]] + [
        "b_ids.png"[-7:]
    ]
    flags.mask_suffix = "_no"
    with pytest.raises(UserError, match=r"--train_masks .*m: no name ends in --mask_suffix _no, such as that of"):
        LabelledDataset(flags, "train")
    for wrong in ("", "m/_ids"):
        flags.mask_suffix = wrong
        with pytest.raises(UserError, match="give what stands at the end of names"):
            LabelledDataset(flags, "train")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_image_is_not_its_own_mask(link, tmp_path):
    own = write_files(tmp_path / "own", ["images/a.png", "images/b.png", "masks/a.png"])
    link(own / "images/b.png", own / "masks/b.png")
    flags = DatasetArguments(train_images=f"{own}/images", train_masks=f"{own}/masks")
    for arguments in (DatasetArguments(str(own)), flags):
        with pytest.raises(UserError, match=r"label map .*masks/b.png of image .*b.png: it is an image itself"):
            LabelledDataset(arguments, "train")


@pytest.mark.parametrize("evaluated", ["own/images", "own/images/some"])
def test_evaluating_on_training_images_is_said(evaluated, tmp_path, capsys):
    write_files(tmp_path / "own", pairs("images", "masks", "a some/b"))
    masks = evaluated.replace("images", "masks")
    flags = DatasetArguments(
        train_images=f"{tmp_path}/own/images", train_masks=f"{tmp_path}/own/masks",
        eval_images=f"{tmp_path}/{evaluated}", eval_masks=f"{tmp_path}/{masks}",
    )  # fmt: skip
    LabelledDataset(flags, "validation")
    assert re.fullmatch(
        r"warning: --eval_images .* --train_images .*: figures on images .*\n", capsys.readouterr().err
    )


def test_linked_splits_are_seen_through(tmp_path, capsys):
    own = write_files(tmp_path / "own", pairs("train/images", "train/masks"))
    (own / "val").symlink_to(own / "train")
    LabelledDataset(DatasetArguments(str(own)), "validation")
    assert "warning: 3 images of split 'validation' are images of the training split" in capsys.readouterr().err


def test_links_that_lead_out_of_the_folder(tmp_path):
    own = write_files(tmp_path / "own", ["masks/a.png"])
    write_files(tmp_path / "elsewhere", ["a.jpg"])
    (own / "images").symlink_to(tmp_path / "elsewhere")
    (own / "masks" / "loop").symlink_to(own)
    with pytest.raises(UserError, match="images is a link that leads out of it: give --allow_links"):
        LabelledDataset(DatasetArguments(str(own)), "train")
    assert LabelledDataset(DatasetArguments(str(own), allow_links=True), "train").num_examples == 1


# --------------------------------------------------------------------------------------------------- left to datasets


def test_tables_of_images_and_masks_are_read_as_before(tmp_path, capsys):
    own = write_files(tmp_path / "own", pairs("train", "train", ending="_m.png"))
    rows = [{"file_name": f"{name}.jpg", "label_file_name": f"{name}_m.png"} for name in ("a1", "a2", "b1")]
    (own / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(of_split(DatasetArguments(str(own)), "train")) == 3
    (own / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows)
    )
    with pytest.raises(UserError, match=r"no column 'label' in .*set --label_column_name"):
        LabelledDataset(DatasetArguments(str(own)), "train")
    assert not capsys.readouterr().err.count("pairs")


def test_classes_of_whole_images_are_no_label_maps(tmp_path):
    """`datasets` makes classes of the names of folders."""
    own = write_files(tmp_path / "own", ["train/images/a.jpg", "train/masks/a.png"])
    (own / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_dir: train\n---\n")
    with pytest.raises(
        UserError, match=r"'label' of .* holds a class for a whole image \(images, masks\), no label map"
    ):
        LabelledDataset(DatasetArguments(str(own)), "train")


def test_a_suffix_is_of_no_use_to_rows(shapes):
    with pytest.raises(UserError, match="--mask_suffix is for folders of image files"):
        LabelledDataset(DatasetArguments(str(shapes), mask_suffix="_mask"), "train")


def test_images_without_masks_can_be_predicted(tmp_path):
    own = write_files(tmp_path / "own", [*pairs("images/train", "masks/train"), "images/test/t.jpg"])
    test = LabelledDataset(DatasetArguments(str(own)), "test", with_labels=False)
    assert [row["image_id"] for row in test.stream] == ["t"]
    with pytest.raises(UserError, match="split 'test': 1 image in images/test, but no label maps"):
        LabelledDataset(DatasetArguments(str(own)), "test")
    with pytest.raises(UserError, match="split 'validation': the folder holds train, test"):
        LabelledDataset(DatasetArguments(str(own)), "validation")
    alone = write_files(tmp_path / "alone", ["a.jpg"])
    assert folder_layout(str(alone), with_labels=False) is None  # what `datasets` reads as before
