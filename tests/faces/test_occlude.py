"""Occluders: what is hidden, where, how much, and that it is the same bytes again."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tfface.errors import UserError
from tfface.faces.align import FIVE_POINTS_112x96
from tfface.faces.head import FACE_POINTS, Head
from tfface.faces.occlude import (
    cover_area,
    generator,
    occlude_training,
    pattern,
    pattern_boxes,
    random_occlusion,
    wear,
    wear_mask,
)
from tfface.faces.occluders import OURS, Occluder, load_occluders

NAMES = ["book", "cup", "hand", "phone", "scarf", "sunglasses", "surgical_mask"]


@pytest.fixture(scope="module")
def ours():
    return {occluder.name: occluder for occluder in load_occluders()}


def crop(seed=0, size=(112, 96)):
    return np.random.default_rng(seed).integers(60, 200, (*size, 3), np.uint8)


def landmarks(yaw=0.0, roll=0.0, eyes=60.0, at=(150, 110)):
    """Landmarks of an average head, orthographic, angles in degrees; the nose points right where yaw > 0."""
    yaw, roll = np.deg2rad([yaw, roll])
    x, y, z = FACE_POINTS.T
    seen = np.stack([x * np.cos(yaw) + z * np.sin(yaw), y], axis=-1) * eyes
    return seen @ np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]]) + at


def solid(width=40, height=20):
    return Occluder("solid", np.full((height, width, 4), 255, np.uint8))


def test_ships_seven_drawn_occluders_within_300_kb(ours):
    assert list(ours) == NAMES
    assert {name for name, occluder in ours.items() if occluder.kind == "mask"} == {"surgical_mask"}
    assert all(occluder.anchors is not None for occluder in ours.values())
    assert sum(path.stat().st_size for path in OURS.iterdir()) < 300_000
    for occluder in ours.values():
        alpha = occluder.image[..., 3]
        assert ((alpha > 0) & (alpha < 255)).any(), "edges are smooth"
        assert np.mean(alpha == 0) > 0.001, "the ground is transparent"


# ---------------------------------------------------------------------------------------------------- reproducibility


def digest(keys):
    pool, parts = load_occluders(), {}
    mask = next(occluder for occluder in pool if occluder.kind == "mask")
    for key in keys:
        image = crop(sum(key.encode()))
        trained = occlude_training(image, key, 3, 7, pool)
        covered = cover_area(image, 0.4, pool, generator(key, 7))
        masked = wear_mask(image, FIVE_POINTS_112x96, mask, generator(key, 7))
        parts[key] = b"".join(one.image.tobytes() + one.box.tobytes() for one in (trained, covered, masked))
    return hashlib.sha256(b"".join(parts[key] for key in sorted(parts))).hexdigest()


def test_same_bytes_in_another_order_and_another_process():
    keys = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "ü/3.jpg"]
    here = digest(keys)
    assert digest(keys[::-1]) == here
    code = "import sys, runpy; m = runpy.run_path(sys.argv[1]); print(m['digest'](sys.argv[2:]))"
    there = subprocess.run(
        [sys.executable, "-c", code, __file__, *keys[::-1]], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_generator_depends_on_key_seed_and_epoch():
    first = generator("a", 1, 2).random(4)
    assert (generator("a", 1, 2).random(4) == first).all()
    others = [generator(*key).random() for key in (("b", 1, 2), ("a", 2, 2), ("a", 1, 3), ("a", 12), ("2\na", 1))]
    assert len({first[0], *others}) == 6


# ------------------------------------------------------------------------------------------------------------- random


def test_training_wears_masks_where_they_belong(ours):
    pool, image = list(ours.values()), crop()
    landmarks = np.array([[31, 52], [66, 52], [48, 72], [34, 93], [63, 93]], float)
    worn = [occlude_training(image, str(k), 0, 0, pool, 0, worn_masks=1, landmarks=landmarks) for k in range(30)]
    x0, y0, x1, y1 = np.transpose([one.box for one in worn])
    assert (y0 > 52).all()  # below the eyes
    assert (y1 > 93).all()  # the mouth is hidden
    assert ((x0 < 34) & (x1 > 63)).all()
    assert len({one.image.tobytes() for one in worn}) == 30  # each face wears it a little otherwise
    some = [occlude_training(image, str(k), 0, 0, pool, 0, worn_masks=0.5, landmarks=landmarks) for k in range(200)]
    anywhere = [occlude_training(image, str(k), 0, 0, pool, 0) for k in range(200)]
    assert len({one.box[1] > 52 for one in anywhere}) == 2
    assert sum(one.box[1] > 52 for one in some) > sum(one.box[1] > 52 for one in anywhere)
    for options in ({"worn_masks": 2}, {"worn_masks": 0.5}):
        with pytest.raises(UserError, match="worn_masks"):
            occlude_training(image, "x", 0, 0, pool, **options)


def test_training_leaves_one_third_clean_and_redraws_each_epoch(ours):
    pool, image = list(ours.values()), crop()
    occluded = [occlude_training(image, f"{key}.jpg", 0, 0, pool) for key in range(600)]
    clean = [one for one in occluded if (one.image == image).all() and not one.box.any()]
    # Clean ones, and the few whose occluder met the picture with a transparent corner: 1/3 of 600 with 3 deviations.
    assert 165 <= len(clean) <= 240
    labels = {pattern(one.box, image.shape[:2]) for one in occluded}
    assert len(labels) > 60
    again = [occlude_training(image, f"{key}.jpg", 1, 0, pool).alpha for key in range(20)]
    assert sum((one.alpha != other).any() for one, other in zip(occluded, again, strict=False)) > 10
    assert occlude_training(image, "x", 0, 0, pool, clean=1).share == 0
    assert all(occlude_training(image, str(key), 0, 0, [solid()], clean=0).share > 0 for key in range(50))


def test_random_occlusion_follows_scale_and_position():
    image = crop()
    whole = Occluder("whole", np.full((112, 96, 4), 255, np.uint8))
    centres, sides = [], []
    for key in range(300):
        one = random_occlusion(image, whole, generator(str(key)), scale=(1, 1))
        x0, y0, x1, y1 = one.box
        centres.append(((x0 + x1) / 2, (y0 + y1) / 2))
        if x0 > 0 and x1 < 96:
            sides.append(x1 - x0)
    # Scale 1 is a fifth of the picture: 19.2 x 22.4. Centres are uniform, but for what hangs over.
    assert np.mean(sides) == pytest.approx(19.2, abs=0.3)
    assert np.mean(centres, axis=0) == pytest.approx((48, 56), abs=4.5)
    assert np.ptp(centres, axis=0) == pytest.approx((96 - 9.6, 112 - 11.2), abs=4)
    assert max(random_occlusion(image, whole, generator(str(key)), (5, 5)).share for key in range(40)) > 0.8


def test_box_is_the_extent_of_alpha_and_outside_nothing_changes(ours):
    image = crop()
    for key in range(40):
        occluder = ours[NAMES[key % 7]]
        one = random_occlusion(image, occluder, generator(str(key)))
        rows, columns = np.nonzero(one.alpha >= 128)
        if len(rows):
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert one.box.tolist() == list(map(float, expected))
        else:
            assert not one.box.any()
        assert one.box.dtype == np.float32
        assert (one.image[one.alpha == 0] == image[one.alpha == 0]).all()
        assert one.image is not image
        assert one.image.dtype == one.alpha.dtype == np.uint8


def test_a_solid_rectangle_lands_to_the_pixel():
    image = np.full((100, 100, 3), 128, np.uint8)
    red = Occluder("red", np.full((20, 40, 4), (255, 0, 0, 255), np.uint8))

    class Middle:
        def random(self, count):
            return np.full(count, 0.5)

    # Scale 1 of a 2:1 rectangle over 100 x 100: area 400, so 28.28 x 14.14 about (50, 50).
    one = random_occlusion(image, red, Middle(), (1, 1))
    assert one.box.tolist() == [36, 43, 64, 57]
    assert one.alpha.sum() / 255 == pytest.approx(400, rel=0.01)
    assert one.image[50, 50].tolist() == [255, 0, 0]


def test_brightness_follows_what_is_hidden():
    grey = Occluder("grey", np.full((30, 30, 4), (120, 120, 120, 255), np.uint8))
    shades = []
    for level in (0, 32, 128, 255):
        image = np.full((60, 60, 3), level, np.uint8)
        one = cover_area(image, 0.5, [grey], generator("x"))
        x0, y0, x1, y1 = one.box
        shades.append(int(one.image[int(y0 + y1) // 2, int(x0 + x1) // 2, 0]))
    # 120 times sqrt(level / 128), in [0.55, 1.25].
    assert shades == [66, 66, 120, 150]


@pytest.mark.parametrize(("size", "share"), [((112, 96), 0.4), ((112, 112), 0.1), ((250, 250), 0.4), ((64, 48), 0.75)])
def test_cover_area_hides_the_share(ours, size, share):
    pool = list(ours.values())
    for key in range(8):
        one = cover_area(crop(size=size), share, pool, generator(f"{key}"))
        assert one.alpha.mean() / 255 == pytest.approx(share, abs=0.005)
        assert one.share == pytest.approx(share, abs=0.005)


def test_cover_area_takes_what_has_no_transparent_ground():
    for key in range(8):
        one = cover_area(crop(), 0.4, [solid()], generator(str(key)), tries=1)
        assert one.share == pytest.approx(0.4, abs=0.005)


def test_cover_area_says_when_it_cannot():
    sliver = np.zeros((40, 40, 4), np.uint8)
    sliver[:, 20] = 255
    with pytest.raises(UserError, match="5 tries hid no 99%"):
        cover_area(crop(), 0.99, [Occluder("sliver", sliver)], generator("x"), tries=5)


# --------------------------------------------------------------------------------------------------------------- worn


@pytest.mark.parametrize("roll", [-25, 0, 40])
@pytest.mark.parametrize("yaw", [-50, -25, 0, 25, 50])
def test_mask_covers_nose_mouth_and_chin_and_leaves_the_eyes_free(ours, yaw, roll):
    image = crop(size=(300, 300))
    points = landmarks(yaw, roll)
    one = wear_mask(image, points, ours["surgical_mask"])
    head = Head.from_landmarks(points)
    assert head.turn == pytest.approx([np.tan(np.deg2rad(yaw)), 0], abs=1e-9)

    def hidden(*at):
        column, row = np.rint(head.project(np.array(at))).astype(int)
        return int(one.alpha[row, column])

    left_eye, right_eye, nose, *mouth = (hidden(*point) for point in FACE_POINTS)
    assert left_eye == right_eye == 0
    assert nose == 255
    assert mouth == [255, 255]
    assert hidden(0, 0.35, 0.35) == 255, "bridge of the nose"
    assert hidden(0, 1.75, 0.1) == 255, "chin"
    assert hidden(0, 2.25, -0.4) == 0, "neck"
    assert hidden(0, -0.6, 0.1) == 0, "forehead"
    for side in (-1, 1):
        if side * yaw <= 25:
            assert hidden(side * 0.75, 0.85, -0.1) > 250, "cheek on a side that is seen"


def test_mask_on_a_mirrored_face_is_mirrored(ours):
    image = np.full((220, 301, 3), 128, np.uint8)
    points = landmarks(35, 10, at=(150, 80))
    mirrored = (np.array([300, 0]) + points * (-1, 1))[[1, 0, 2, 4, 3]]
    one, other = (wear_mask(image, at, ours["surgical_mask"]).alpha.astype(int) for at in (points, mirrored))
    assert np.abs(one - other[:, ::-1]).mean() < 0.5


def test_mask_sits_alike_at_every_size(ours):
    mask = ours["surgical_mask"]
    small = wear_mask(crop(size=(112, 96)), FIVE_POINTS_112x96, mask)
    large = wear_mask(crop(size=(1120, 960)), (FIVE_POINTS_112x96 + 0.5) * 10 - 0.5, mask)
    huge = wear_mask(crop(size=(2240, 1920)), (FIVE_POINTS_112x96 + 0.5) * 20 - 0.5, mask)
    assert small.share == pytest.approx(large.share, abs=0.005)
    assert huge.share == pytest.approx(large.share, abs=0.001)
    assert large.box / 10 == pytest.approx(small.box, abs=1.5)


def test_mask_varies_a_little_with_chance(ours):
    image, mask = crop(), ours["surgical_mask"]
    still = wear_mask(image, FIVE_POINTS_112x96, mask).alpha
    assert (wear_mask(image, FIVE_POINTS_112x96, mask).alpha == still).all()
    shares = {wear_mask(image, FIVE_POINTS_112x96, mask, generator(str(key))).share for key in range(6)}
    assert len(shares) == 6
    assert max(shares) - min(shares) < 0.06


def test_objects_are_worn_where_their_anchors_say(ours):
    image, points = crop(size=(300, 300)), landmarks(0)
    eyes, mouth = np.rint(points[:2]).astype(int), np.rint(points[3:].mean(axis=0)).astype(int)
    glasses = wear(image, points, ours["sunglasses"])
    assert all(glasses.alpha[y, x] > 200 for x, y in eyes)
    assert glasses.alpha[mouth[1], mouth[0]] == 0
    for name in ("scarf", "cup", "book", "hand", "phone"):
        assert wear(image, points, ours[name]).alpha[mouth[1], mouth[0]] == 255, name
    for name in ("scarf", "cup", "book"):
        one = wear(image, points, ours[name])
        assert not any(one.alpha[y, x] for x, y in eyes), name
    assert (
        wear(image, points, ours["surgical_mask"]).alpha == wear_mask(image, points, ours["surgical_mask"]).alpha
    ).all()
    # A turned head's glasses are narrower: by the cosine.
    narrow = np.ptp(wear(image, landmarks(40), ours["sunglasses"]).box[[0, 2]])
    assert narrow / np.ptp(glasses.box[[0, 2]]) == pytest.approx(np.cos(np.deg2rad(40)), abs=0.02)


def test_a_face_outside_the_picture_hides_nothing(ours):
    image, away = crop(), FIVE_POINTS_112x96 + 1e5
    for name in ("surgical_mask", "cup"):
        one = wear(image, away, ours[name])
        assert one.share == 0
        assert not one.box.any()
        assert (one.image == image).all()
    assert wear(crop(size=(1, 1)), FIVE_POINTS_112x96, ours["surgical_mask"]).alpha.shape == (1, 1)


# ----------------------------------------------------------------------------------------------------------- patterns


def test_patterns_by_hand():
    assert len(pattern_boxes((112, 96), 4)) == 101
    assert len(pattern_boxes((112, 96), 5)) == 226
    # A grid of 2 over 40 x 20 (height x width): 'none' and nine rectangles, by top, left, bottom, right.
    expected = [(0, 0, 0, 0), (0, 0, 10, 20), (0, 0, 20, 20), (0, 0, 10, 40), (0, 0, 20, 40), (10, 0, 20, 20)]
    expected += [(10, 0, 20, 40), (0, 20, 10, 40), (0, 20, 20, 40), (10, 20, 20, 40)]
    assert pattern_boxes((40, 20), 2).tolist() == [list(map(float, box)) for box in expected]
    size = (40, 20)
    assert pattern((0, 0, 0, 0), size, 2) == 0
    assert pattern((1, 1, 10, 19), size, 2) == 1
    assert pattern((0, 20, 20, 40), size, 2) == 8
    # 12 x 20 over the left half: with one cell IoU 200 / 240, with two across 240 / 400.
    assert pattern((0, 0, 12, 20), size, 2) == 1
    # 16 x 20: with one cell 200 / 320, with two 320 / 400.
    assert pattern((0, 0, 16, 20), size, 2) == 2
    # Three quarters of everything from the top: with the upper half 400 / 600, with all 600 / 800.
    assert pattern((0, 0, 20, 30), size, 2) == 4
    assert pattern((5, 10, 15, 30), size, 1) == 1


@pytest.mark.parametrize("grid", [4, 5])
def test_each_pattern_is_its_own_label(grid):
    size = (112, 96)
    assert [pattern(box, size, grid) for box in pattern_boxes(size, grid)] == list(
        range(len(pattern_boxes(size, grid)))
    )


# ----------------------------------------------------------------------------------------------------- user's pictures


def save(path, array):
    Image.fromarray(array).save(path)


def test_reads_a_users_folder(tmp_path):
    picture = np.zeros((600, 1000, 4), np.uint8)
    picture[100:500, 200:800] = (200, 10, 10, 255)
    save(tmp_path / "big.png", picture)
    save(tmp_path / "small.png", picture[::20, ::20])
    Image.fromarray(picture[::20, ::20]).quantize(4).save(tmp_path / "palette.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    points = [[300, 200], [700, 200], [500, 300], [350, 400], [650, 400]]
    (tmp_path / "anchors.json").write_text(json.dumps({"big": points}))
    big, palette, small = load_occluders(tmp_path)
    assert (big.name, palette.name, small.name) == ("big", "palette", "small")
    assert big.image.shape == (307, 512, 4)
    assert big.anchors[0] == pytest.approx((153.4, 102.2), abs=0.2)
    assert small.anchors is None
    assert palette.image.shape == small.image.shape == (30, 50, 4)
    assert (small.image == picture[::20, ::20]).all()
    assert big.image[150, 256].tolist() == [200, 10, 10, 255]
    one = wear(crop(size=(300, 300)), landmarks(), big)
    assert one.alpha[110, 150] == 255
    with pytest.raises(UserError, match="'small' has no anchors"):
        wear(crop(), FIVE_POINTS_112x96, small)
    with pytest.raises(UserError, match="'big' is an object, not a mask"):
        wear_mask(crop(), FIVE_POINTS_112x96, big)


def test_bad_folders_have_a_clear_word(tmp_path):
    with pytest.raises(UserError, match="which is none"):
        load_occluders(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no occluder"):
        load_occluders(tmp_path)
    cases = {
        "no alpha": lambda path: save(path, np.zeros((4, 4, 3), np.uint8)),
        "transparent everywhere": lambda path: save(path, np.zeros((4, 4, 4), np.uint8)),
        "cannot be read as a PNG": lambda path: path.write_bytes(b"\x89PNG nothing"),
    }
    for words, write in cases.items():
        write(tmp_path / "bad.png")
        with pytest.raises(UserError, match=words) as caught:
            load_occluders(tmp_path)
        assert "bad" in str(caught.value)
        assert "\n" not in str(caught.value)
    save(tmp_path / "bad.png", np.full((4, 4, 4), 255, np.uint8))
    for anchors in ({"other": []}, ["bad"]):
        (tmp_path / "anchors.json").write_text(json.dumps(anchors))
        with pytest.raises(UserError, match="mend the names"):
            load_occluders(tmp_path)
    for points in ([[1, 2]], 5, "left", [[1, 2], [3]], [[float("nan"), 0]] * 5):
        (tmp_path / "anchors.json").write_text(json.dumps({"bad": points}))
        with pytest.raises(UserError, match="anchors"):
            load_occluders(tmp_path)


def test_bad_arrays_have_a_clear_word(ours):
    cup, mask, rng = ours["cup"], ours["surgical_mask"], generator("x")
    for image in (crop()[..., 0], crop().astype(np.float32), [[1]], np.zeros((0, 5, 3), np.uint8)):
        for call in (
            lambda image: random_occlusion(image, cup, rng),
            lambda image: cover_area(image, 0.4, [cup], rng),
            lambda image: wear(image, FIVE_POINTS_112x96, cup),
            lambda image: wear_mask(image, FIVE_POINTS_112x96, mask),
            lambda image: occlude_training(image, "x", 0, 0, [cup]),
        ):
            with pytest.raises(UserError, match="a picture"):
                call(image)
    upside = FIVE_POINTS_112x96[[1, 0, 2, 4, 3]]
    for points in (
        upside,
        FIVE_POINTS_112x96[:4],
        FIVE_POINTS_112x96 * np.nan,
        np.zeros((5, 2)),
        np.ones((5, 2)) * 1e9,
    ):
        with pytest.raises(UserError, match="landmarks"):
            wear_mask(crop(), points, mask)
    for scale in ((0, 1), (2, 1), (1, np.inf), (np.nan, 1)):
        with pytest.raises(UserError, match="scale"):
            random_occlusion(crop(), cup, rng, scale)
    for share in (0, 1, 40, np.nan):
        with pytest.raises(UserError, match="share"):
            cover_area(crop(), share, [cup], rng)
    with pytest.raises(UserError, match="at least one occluder"):
        cover_area(crop(), 0.4, [], rng)
    with pytest.raises(UserError, match="clean"):
        occlude_training(crop(), "x", 0, 0, [cup], clean=2)
    with pytest.raises(UserError, match="grid"):
        pattern((0, 0, 1, 1), (10, 10), 0)
    with pytest.raises(UserError, match="four finite numbers"):
        pattern((0, 0, np.nan, 1), (10, 10))
    with pytest.raises(UserError, match="kind 'hat'"):
        Occluder("x", cup.image, None, "hat")
    with pytest.raises(UserError, match="takes finite anchors"):
        Occluder("x", cup.image, None, "mask")


def test_reads_masks_cfg_of_the_samples(samples):
    folder = samples / "occluders" / "masks"
    with pytest.warns(UserWarning, match="21 side views or absent files left out: surgical_left") as caught:
        masks = load_occluders(folder)
    assert "gas" in str(caught[0].message)
    assert [mask.name for mask in masks] == ["KN95", "N95", "cloth", "surgical", "surgical_blue", "surgical_green"]
    surgical = masks[3]
    assert surgical.kind == "mask"
    # 594 pixels wide, stored at 512: mask_b is 307, 22.
    assert surgical.anchors[1] == pytest.approx((307 * 512 / 594, 22 * 512 / 594), abs=0.2)
    image = crop()
    nose, mouth = FIVE_POINTS_112x96[2], FIVE_POINTS_112x96[3:].mean(axis=0)
    for mask in masks:
        alpha = wear_mask(image, FIVE_POINTS_112x96, mask).alpha
        assert all(alpha[round(float(y)), round(float(x))] > 200 for x, y in (nose, mouth)), mask.name
        assert not any(alpha[round(float(y)), round(float(x))] for x, y in FIVE_POINTS_112x96[:2]), mask.name
    assert [one.anchors for one in load_occluders(samples / "occluders" / "objects")] == [None] * 4


def test_broken_masks_cfg_names_the_section(tmp_path):
    save(tmp_path / "m.png", np.full((4, 4, 4), 255, np.uint8))
    (tmp_path / "masks.cfg").write_text("[m]\nmask_a: 1, 2\n")
    with pytest.raises(UserError, match=r"\[m\]: expected mask_a to mask_f"):
        load_occluders(tmp_path)
    (tmp_path / "masks.cfg").write_text("no section")
    with pytest.raises(UserError, match="not in MaskTheFace's format"):
        load_occluders(tmp_path)
