import numpy as np
import pytest

from tfface.evaluation.verification import (
    best_threshold,
    centred_similarity,
    cosine_similarity,
    shortest_threshold,
    verify_folds,
)
from tfface.faces.crops import main_face
from tfface.faces.detect import Faces


def test_cosine_by_hand():
    first = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    second = np.array([[4.0, 3.0], [0.0, 2.0], [-5.0, 0.0]])
    np.testing.assert_allclose(cosine_similarity(first, second), [24 / 25, 0.0, -1.0])
    with pytest.raises(ValueError, match="not zero"):
        cosine_similarity(np.zeros((1, 2)), np.ones((1, 2)))


@pytest.mark.parametrize(
    ("similarity", "same", "threshold"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.1, 0.6, 0.5, 0.9], [0, 0, 1, 1], 0.3),  # one error either way: the lower cut
        ([0.5, 0.5, 0.5, 0.9], [0, 0, 1, 1], 0.7),  # no cut between equals
        ([0.1, 0.9], [0, 1], 0.5),
        ([0.1, 0.9], [1, 0], 0.099999),  # one error either way: all are accepted
        ([0.1, 0.9], [0, 0], 0.900001),  # nobody is
    ],
)
def test_best_threshold_by_hand(similarity, same, threshold):
    assert best_threshold(np.array(similarity), np.array(same)) == pytest.approx(threshold)


def test_thresholds_of_half_precision_lie_between_the_values():
    similarity = np.array([0.5, 0.5004883, 0.9], np.float16)  # neighbours in float16
    threshold = best_threshold(similarity, np.array([0, 1, 1]))
    assert (similarity.astype("float64") >= threshold).tolist() == [False, True, True]


def test_folds_use_the_threshold_of_the_others():
    # Fold 1's pairs lie 0.5 higher than those of folds 0 and 2: at their threshold of 0.5 all of them look the same.
    similarity = np.array([0.2, 0.8, 0.7, 1.3, 0.2, 0.8])
    same = np.array([0, 1, 0, 1, 0, 1])
    result = verify_folds(similarity, same, np.array([0, 0, 1, 1, 2, 2]))
    assert result["folds"][1]["threshold"] == pytest.approx(0.5)
    assert result["folds"][1]["accuracy"] == 0.5
    assert [fold["n"] for fold in result["folds"]] == [2, 2, 2]
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(np.mean([fold["accuracy"] for fold in result["folds"]]))


def test_the_mean_of_the_other_folds_is_subtracted():
    first, second = np.array([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]]), np.array([[1.0, 2.0], [3.0, 0.0], [7.0, 6.0]])
    similarity = centred_similarity(first, second, np.array([4, 4, 7]))
    # Fold 4 is judged about the mean of fold 7, (6, 4): the third pair lies opposite each other there. Fold 7 about
    # that of fold 4, (2, 1.5).
    assert similarity.shape == (2, 3)
    np.testing.assert_allclose(similarity[0, 2], -1.0)
    one, other = np.array([3.0, 0.5]), np.array([5.0, 4.5])
    np.testing.assert_allclose(similarity[1, 2], one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_each_fold_may_be_judged_by_similarities_of_its_own():
    same = np.array([0, 1, 0, 1])
    rows = np.array([[0.9, 0.1, 0.2, 0.8], [0.3, 0.7, 0.4, 0.6]])
    result = verify_folds(rows, same, np.array([0, 0, 1, 1]))
    # The first row's own fold is the wrong way round at the threshold of its other half; the second row's is right.
    assert [fold["accuracy"] for fold in result["folds"]] == [0.0, 1.0]
    assert [fold["threshold"] for fold in result["folds"]] == pytest.approx([0.5, 0.5])
    assert result["auc"] == 0.25  # 0.1 and 0.6 of the same against 0.9 and 0.4 of others: one of four is right


def test_each_pair_counts_alike_where_folds_are_of_other_sizes():
    same = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    result = verify_folds(np.array([0.9] * 4 + [0.1] * 5 + [0.9]), same, np.repeat([0, 1], [8, 2]))
    assert [fold["accuracy"] for fold in result["folds"]] == [0.5, 0.0]
    assert result["accuracy"] == 0.4
    assert result["deviation"] == 0.25  # of 0.5 and 0


def test_a_pair_at_the_threshold_is_accepted():
    result = verify_folds(np.array([0.25, 0.75, 0.5, 0.1]), np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]))
    assert result["folds"][1] == {"accuracy": 1.0, "threshold": 0.5, "n": 2}


def test_rates_are_given_only_where_negatives_allow_them():
    rng = np.random.default_rng(0)
    same = np.repeat([0, 1], 3000)
    similarity = rng.normal(size=6000) + 6 * same
    result = verify_folds(similarity, same, np.arange(6000) % 10)
    assert set(result["tar"]) == {"0.1", "0.01"}  # 0.001 of 3,000 is three pairs
    at = result["tar"]["0.01"]
    assert at["value"] > 0.99
    accepted = np.mean(similarity[same == 0] >= at["threshold"])
    assert 0.0095 < accepted <= 0.01
    low, high = at["far_interval"]
    assert 0.006 < low < accepted < high < 0.015
    assert result["auc"] > 0.999
    assert result["accuracy"] > 0.99


def test_thresholds_are_as_short_as_they_judge_alike():
    similarity = np.array([0.41, 0.42246, 0.42247, 0.7])
    assert shortest_threshold(0.5123456, similarity) == 0.512
    assert shortest_threshold(0.42247, similarity) == 0.42247  # one of the pairs itself: 0.4225 would refuse it
    assert shortest_threshold(0.422463, similarity) == 0.422463  # 0.42246 would accept the pair below
    assert shortest_threshold(similarity[3] + 1e-6, similarity) == 0.700001  # nobody is accepted
    rng = np.random.default_rng(0)
    same = np.repeat([0, 1], 3000)
    similarity = rng.uniform(size=6000) / 100 + same / 200
    at = verify_folds(similarity, same, np.arange(6000) % 10)["tar"]["0.01"]
    assert len(str(at["threshold"])) < 10
    assert np.mean(similarity[same == 1] >= at["threshold"]) == pytest.approx(at["value"], abs=1e-9)


def test_where_all_are_alike_no_threshold_keeps_to_a_rate():
    same = np.repeat([0, 1], [100, 300])  # a tenth of 100 is just enough
    result = verify_folds(np.full(400, 0.5), same, np.arange(400) % 2)
    assert set(result["tar"]) == {"0.1"}
    assert result["tar"]["0.1"]["value"] == 0
    assert 0.5 < result["tar"]["0.1"]["threshold"] < 0.501
    # Wilson, 0 of 300 and 0 of 100: z^2 / (n + z^2), z = 1.96
    assert result["tar"]["0.1"]["interval"] == pytest.approx([0, 3.8415 / 303.8415], abs=1e-5)
    assert result["tar"]["0.1"]["far_interval"] == pytest.approx([0, 3.8415 / 103.8415], abs=1e-5)
    alike = np.repeat([0.1, 0.9, 0.5], [80, 20, 300])  # others are the most alike
    assert 0.9 < verify_folds(alike, same, np.arange(400) % 2)["tar"]["0.1"]["threshold"] < 0.901


def test_the_rates_that_many_negatives_allow():
    same = np.arange(100_010) < 10
    assert list(verify_folds(same * 1.0, same, np.arange(100_010) % 2)["tar"]) == ["0.1", "0.01", "0.001", "0.0001"]


def test_the_central_face_is_chosen():
    boxes = np.array([[0, 0, 40, 40], [90, 90, 160, 160], [200, 200, 245, 245]], "float32")
    assert main_face(Faces(boxes, np.ones(3)), (250, 250, 3)) == 1


def test_facenet_tells_real_people_apart(facenet, samples):
    """48 pairs of LFW's first fold, centre crop: a wrong tensor of the trunk would end near 0.5."""
    import cv2

    from tfface.models import inception_resnet_v1

    lines = (samples / "lfw" / "pairs.txt").read_text().splitlines()[1:601]
    rows = [line.split("\t") for line in [*lines[:24], *lines[300:324]]]

    def crop(name, number):
        path = samples / "lfw" / "lfw-deepfunneled" / name / f"{name}_{int(number):04d}.jpg"
        image = cv2.imread(str(path))[50:200, 50:200, ::-1]
        return cv2.resize(image, (160, 160), interpolation=cv2.INTER_LINEAR).astype("float32")

    first = np.stack([crop(row[0], row[1]) for row in rows])
    second = np.stack([crop(row[0] if len(row) == 3 else row[2], row[-1]) for row in rows])
    model = inception_resnet_v1(weights="facenet")
    one, other = (model.predict(images, batch_size=40, verbose=0) for images in (first, second))
    similarity, same = cosine_similarity(one, other), np.array([len(row) == 3 for row in rows])
    assert np.mean((similarity >= best_threshold(similarity, same)) == same) > 0.96


def test_rates_of_equal_scores_are_exact():
    """Of points on one line scikit-learn leaves out the middle ones: the rate at 0.1 would be that of fewer pairs."""
    random = np.random.default_rng(15)
    same = np.repeat([True, False], 1000)
    similarity = np.round(random.normal(np.where(same, 0.5, 0.0), 0.5), 1)
    given = verify_folds(similarity, same, np.tile(np.arange(10), 200))["tar"]["0.1"]["value"]
    allowed = [t for t in np.unique(similarity) if np.mean(similarity[~same] >= t) <= 0.1]
    assert given == pytest.approx(np.mean(similarity[same] >= min(allowed)))


def test_pairs_of_one_kind_are_refused():
    with pytest.raises(ValueError, match="both kinds"):
        verify_folds(np.arange(4.0), np.ones(4, bool), np.arange(4) % 2)
