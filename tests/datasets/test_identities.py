"""The builders of CelebA and CASIA-WebFace on drawn pictures, whole and spoilt."""

import shutil
from collections import Counter

import pytest
import tensorflow_datasets as tfds
from casia_webface import casia_webface_dataset_builder as casia_webface
from celeba_identities import celeba_identities_dataset_builder as celeba_identities

from tfface.data import identities as module
from tfface.data.aligned import aligned_config
from tfface.errors import UserError

DUMMY = {
    module.Builder: module.Builder.code_path.parent / "dummy_data" for module in (casia_webface, celeba_identities)
}


@pytest.fixture
def celeba(tmp_path):
    """A copy of CelebA's dummy data that a test may break."""
    return shutil.copytree(DUMMY[celeba_identities.Builder], tmp_path / "CelebA")


@pytest.fixture
def casia(tmp_path):
    return shutil.copytree(DUMMY[casia_webface.Builder], tmp_path / "casia") / "CASIA-WebFace"


def build(module, manual_dir, data_dir, config="images"):
    builder = module.Builder(data_dir=data_dir / "data", config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def examples(builder, split):
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


def identities(builder, split):
    """Identity -> number of images."""
    feature = builder.info.features["identity"]
    return Counter(feature.int2str(example["identity"]) for example in examples(builder, split))


def test_the_list_says_who_is_who(celeba, tmp_path, caplog, capsys):
    builder = build(celeba_identities, celeba, tmp_path)
    train, validation = (identities(builder, split) for split in ("train", "validation"))
    assert sorted(train.values()) == [1, *9 * [3]]
    assert sorted(validation.values()) == [3, 3]
    assert not train.keys() & validation.keys()
    metadata = builder.info.metadata
    assert metadata["train_identities"] == 10
    assert {example["identity"] for example in examples(builder, "train")} == set(range(10))  # a head without idle rows
    assert {example["identity"] for example in examples(builder, "validation")} == {10, 11}
    assert metadata["one_image"] == ["2880"]
    assert metadata["absent"] == 1
    assert metadata["left_out"]["unlisted"] == ["000099.jpg"]
    assert "1 people with one image, in train and in no pair: 2880" in caplog.text
    printed = capsys.readouterr().out
    assert "train 28 images of 10 people" in printed
    assert "1 images of the list are not there: 000" in printed
    keys = {example["key"].decode(): example["identity"] for example in examples(builder, "train")}
    assert builder.info.features["identity"].int2str(keys["000001.jpg"]) == "2880"


def test_the_official_folders_and_a_header_are_read(celeba, tmp_path):
    for folder, name in (("Anno", "identity_CelebA.txt"), ("Img", "img_celeba")):
        (celeba / folder).mkdir()
        (celeba / name).rename(celeba / folder / name)
    path = celeba / "Anno" / "identity_CelebA.txt"
    path.write_text("\nimage identity\n\n" + path.read_text() + "\n \n")  # blank lines are skipped
    builder = build(celeba_identities, celeba, tmp_path)
    assert builder.info.splits["train"].num_examples == 28
    assert builder.info.metadata["absent"] == 1


def test_folders_say_who_is_who_and_what_is_broken_is_named(casia, tmp_path):
    broken = casia / "0000045" / "001.jpg"
    broken.write_bytes(b"no image")
    builder = build(casia_webface, casia, tmp_path)
    assert builder.info.metadata["left_out"]["undecodable"] == ["0000045/001.jpg", "0000048/004.jpg"]
    assert builder.info.metadata["one_image"] == ["0000050"]
    assert sum(split.num_examples for split in builder.info.splits.values()) == 33
    assert (identities(builder, "train") + identities(builder, "validation"))["0000045"] == 2


def test_files_beside_the_folders_and_links_to_nothing_are_named(casia, tmp_path):
    shutil.copy(casia / "0000045" / "001.jpg", casia / "stray.jpg")
    (casia / "0000045" / "link.jpg").symlink_to("nowhere.jpg")
    left_out = build(casia_webface, casia, tmp_path).info.metadata["left_out"]
    assert left_out["of_nobody"] == ["stray.jpg"]
    assert left_out["undecodable"] == ["0000045/link.jpg", "0000048/004.jpg"]


def test_a_list_of_a_cleaned_set_says_what_is_taken(casia, tmp_path):
    names = [f"{45 + person:07}/{number:03}.jpg {person}" for person in (0, 1, 2) for number in (1, 2)]
    (casia / "list.txt").write_text("\n".join(names))
    builder = build(casia_webface, casia, tmp_path)
    assert identities(builder, "train") + identities(builder, "validation") == {"0": 2, "1": 2, "2": 2}
    assert len(builder.info.metadata["left_out"]["unlisted"]) == 29


def test_people_of_a_test_set_are_left_out_by_name(casia, tmp_path, caplog):
    (casia / "names.txt").write_text("0000046 Ann Example\n0000047\tBob de la Example\n")
    (casia / "exclude.txt").write_text("Ann_Example\t3\nbob_de_la_example\t1\nDi_Example\t1\n0000049\n")
    builder = build(casia_webface, casia, tmp_path)
    gone = ["0000046", "0000047", "0000049"]
    assert builder.info.metadata["left_out"]["excluded_identities"] == gone
    assert not set(gone) & set(builder.info.features["identity"].names)
    assert len(builder.info.features["identity"].names) == 9
    assert "left out as excluded identities" in caplog.text
    (casia / "names.txt").write_bytes("0000046 Zoë Example\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.txt is no UTF-8 text: expected lines 'IDENTITY NAME'; save it anew"):
        build(casia_webface, casia, tmp_path / "again")


def test_names_are_told_from_counts_however_they_are_divided(casia, tmp_path, capsys):
    (casia / "names.txt").write_text("0000045, Cy Example\n0000046,Ann Example\n0000047   Person 12\n0000048\tPerson\n")
    (casia / "exclude.txt").write_text("Cy_Example 1\nAnn_Example,3\nPerson 12\n0000049\n0000051 2\n\n")
    builder = build(casia_webface, casia, tmp_path)
    gone = ["0000045", "0000046", "0000047", "0000049", "0000051"]
    assert builder.info.metadata["left_out"]["excluded_identities"] == gone
    assert "5 people left out, whom exclude.txt names" in capsys.readouterr().out


def test_names_that_match_nobody_are_told(casia, tmp_path, caplog):
    (casia / "exclude.txt").write_text("Ann_Example 3\nBob_Example\t1\n")
    builder = build(casia_webface, casia, tmp_path)
    assert builder.info.metadata["left_out"]["excluded_identities"] == []
    assert "2 names in " in caplog.text
    assert "match nobody, and nobody is left out: expected identities, such as 0000045, or names.txt" in caplog.text
    assert "found Ann_Example 3" in caplog.text


def test_pairs_are_of_validation_and_seeded(celeba, tmp_path):
    images = build(celeba_identities, celeba, tmp_path)
    owner = {
        example["key"]: example["identity"] for split in ("train", "validation") for example in examples(images, split)
    }
    held_out = {example["key"] for example in examples(images, "validation")}
    pairs = examples(build(celeba_identities, celeba, tmp_path, "pairs"), "validation")
    names = [(pair["first_key"], pair["second_key"]) for pair in pairs]
    assert len({frozenset(pair) for pair in names}) == len(names) == 12
    assert all({first, second} <= held_out for first, second in names)
    assert [bool(pair["same"]) for pair in pairs] == [owner[first] == owner[second] for first, second in names]
    again = examples(build(celeba_identities, celeba, tmp_path / "again", "pairs"), "validation")
    assert [(pair["first_key"], pair["second_key"]) for pair in again] == names


def test_pairs_are_drawn_without_repeats_and_nobody_stands_in_two_folds():
    people = {f"p{number}": [f"p{number}/{shot}" for shot in range(2 + number % 4)] for number in range(40)}
    config = module.IdentityConfig(name="pairs", folds=4, pairs=16)
    pairs = list(module.draw_pairs(people, config))
    assert [(pair["fold"], pair["same"]) for pair in pairs] == [
        (fold, same) for fold in range(4) for same in (True, False) for _ in range(16)
    ]
    both = [(pair["first_key"], pair["second_key"]) for pair in pairs]
    assert len({frozenset(pair) for pair in both if len(set(pair)) == 2}) == len(pairs)
    owners = [tuple(key.partition("/")[0] for key in pair) for pair in both]
    assert [first == second for first, second in owners] == [pair["same"] for pair in pairs]
    folds = [{owner for pair, own in zip(pairs, owners, strict=True) if pair["fold"] == fold for owner in own}
             for fold in range(4)]  # fmt: skip
    assert sum(map(len, folds)) == len(set().union(*folds))
    assert list(module.draw_pairs(people, config)) == pairs
    other = module.IdentityConfig(name="pairs", folds=4, pairs=16, seed=1)
    assert list(module.draw_pairs(people, other)) != pairs
    # Of so few there are no more: each pair of one person, and none is waited for in vain.
    few = list(module.draw_pairs({name: people[name] for name in ("p0", "p4")}, config))
    assert [pair["same"] for pair in few] == [True, True, False, False]


def test_people_for_validation_are_drawn_by_the_seed_from_those_with_a_pair():
    people = {f"p{number}": 1 + number % 2 for number in range(100)}
    drawn = module.divide(people, 0.2, 0)
    assert len(drawn) == 20
    assert all(people[name] == 2 for name in drawn)
    assert drawn == module.divide(dict(reversed(people.items())), 0.2, 0) != module.divide(people, 0.2, 1)


def test_pairs_are_not_aligned(celeba, tmp_path):
    pairs = celeba_identities.Builder(data_dir=tmp_path, config="pairs")
    builder = celeba_identities.Builder(data_dir=tmp_path, config=aligned_config(pairs, "five-point"))
    config = tfds.download.DownloadConfig(manual_dir=celeba)
    with pytest.raises(UserError, match="align celeba_identities/images"):
        builder.download_and_prepare(download_config=config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000001.jpg", "line 36: expected 'FILE IDENTITY', received '000001.jpg'"),
        ("\n000001.jpg", "line 37: expected 'FILE IDENTITY', received '000001.jpg'"),
        ("000001.jpg 7", r"line 36: 000001\.jpg is 7 here and 2880 further up"),
    ],
)
def test_a_spoilt_list_is_one_clear_line(celeba, tmp_path, line, message):
    with (celeba / "identity_CelebA.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=message) as error:
        build(celeba_identities, celeba, tmp_path)
    assert "\n" not in str(error.value)
    (celeba / "identity_CelebA.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(UserError, match="no UTF-8 text"):
        build(celeba_identities, celeba, tmp_path)
    (celeba / "identity_CelebA.txt").unlink()
    (celeba / "identity_CelebA.txt").mkdir()
    with pytest.raises(UserError, match="no UTF-8 text"):
        build(celeba_identities, celeba, tmp_path)


def test_a_wrong_folder_is_one_clear_line(celeba, casia, tmp_path):
    def message(module, folder):
        with pytest.raises(UserError) as error:
            build(module, folder, tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    (celeba / "img_celeba").rename(celeba / "pictures")
    assert "none of the 35 files" in message(celeba_identities, celeba)
    (celeba / "identity_CelebA.txt").unlink()
    assert "without identity_CelebA.txt each folder is a person" in message(celeba_identities, celeba)
    assert "expected a folder of images for each person, found 001.jpg" in message(casia_webface, casia / "0000045")
    for part in ("train", "val", "test"):  # as VGGFace2 comes: three parts, which are no three people
        shutil.copytree(casia, tmp_path / "divided" / part)
    assert "expected a folder of images for each person, found test and train and val with" in message(
        casia_webface, tmp_path / "divided"
    )
    for path in sorted(casia.iterdir())[:-2]:
        shutil.rmtree(path)
    for path in casia.glob("0000056/00[23].jpg"):
        path.unlink()
    assert "found 1, and 1 with one" in message(casia_webface, casia)
