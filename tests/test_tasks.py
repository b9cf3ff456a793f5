import numpy as np
import pytest

from tfface import labels, tasks


def test_bins_of_the_poster():
    ages = [0, 5, 6, 12, 13, 19, 20, 26, 27, 34, 35, 42, 43, 49, 50, 61, 62, 116]
    assert labels.age_bin(ages).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert len(labels.ARG_AGES) == len(labels.ARG_AGE_STARTS) == 9


def test_63_classes():
    task = tasks.age_classes()
    assert task.width == len(task.classes) == 63
    assert task.targets[61].argmax() == 61
    assert task.targets[62].argmax() == task.targets[116].argmax() == 62
    assert task.years.tolist() == [*range(62), 76]  # the last, open class: the middle of 62 and 90


def test_a_bin_stands_for_its_middle():
    task = tasks.age_bins()
    assert task.years.tolist() == [2.5, 9.0, 16.0, 23.0, 30.5, 38.5, 46.0, 55.5, 76.0]


def test_distribution_is_centred_on_its_age():
    task = tasks.age_distribution()  # with a deviation of 2 years
    assert task.targets.shape == (117, 117)
    np.testing.assert_allclose(task.targets.sum(axis=1), 1, rtol=1e-6)
    row = task.targets[40]
    assert row @ task.years == pytest.approx(40, abs=1e-3)
    assert np.sqrt(row @ task.years**2 - (row @ task.years) ** 2) == pytest.approx(2.0, abs=1e-2)
    # exp(-1/8) between a year and its neighbour, at a deviation of 2
    assert row[41] / row[40] == pytest.approx(np.exp(-0.125), rel=1e-5)


def test_years_and_spread_by_hand():
    task = tasks.age_bins()
    output = np.zeros((1, 9), "float32")
    output[0, 3] = output[0, 4] = 0.5  # 23 and 30.5
    age, spread = tasks.years_of(task, output)
    assert age[0] == pytest.approx(26.75)
    assert spread[0] == pytest.approx(3.75)


def test_who_is_sure_has_no_spread():
    said = np.eye(117) + 1e-7 * np.eye(117, k=1)  # variances so small that rounding makes some of them negative
    age, spread = tasks.years_of(tasks.age_distribution(), said)
    np.testing.assert_allclose(age, np.arange(117), atol=1e-3)
    np.testing.assert_allclose(spread, 0, atol=0.15)


def test_years_of_a_plain_number():
    age, spread = tasks.years_of(tasks.age_exact(), np.array([[33.25]]))
    assert age[0] == pytest.approx(33.25)
    assert spread is None


@pytest.mark.parametrize(("years", "expected"), [(-3.0, 0), (5.4, 0), (5.6, 1), (61.4, 7), (61.6, 8)])
def test_bins_of_a_plain_number(years, expected):
    assert tasks.bins_of(tasks.age_exact(), np.array([[years]])).argmax() == expected


def test_bins_sum_a_finer_distribution():
    task = tasks.age_distribution()
    output = np.zeros((1, 117), "float32")
    output[0, [4, 5, 6, 70]] = 0.25
    np.testing.assert_allclose(tasks.bins_of(task, output)[0], [0.5, 0.25, 0, 0, 0, 0, 0, 0, 0.25])


@pytest.mark.parametrize("task", [tasks.age_bins(), tasks.age_classes(), tasks.age_distribution()])
def test_bins_keep_the_probability(task):
    output = np.random.default_rng(0).dirichlet(np.ones(task.width), 5).astype("float32")
    np.testing.assert_allclose(tasks.bins_of(task, output).sum(axis=1), 1, rtol=1e-5)


def test_losses_weigh_alike_but_for_years():
    made = [
        tasks.classification("gender", labels.GENDERS),
        tasks.identity(2, None),
        tasks.embedding(8),
        tasks.occlusion_pattern(4),
        tasks.age_bins(),
        tasks.age_classes(),
        tasks.age_distribution(),
        tasks.age_exact(),
    ]
    assert [task.weight for task in made] == [1, 1, 1, 1, 1, 1, 1, 0.1]
    assert [task.is_attribute for task in made] == [True, False, False, False, True, True, True, True]
    assert [task.is_age for task in made] == [False] * 4 + [True] * 4
