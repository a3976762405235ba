import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3d_det2.evaluation.bootstrap import ResampledFroc, paired_p_value, percentile_interval, resample_patients
from a3d_det2.evaluation.froc import froc_curve, froc_sensitivities
from a3d_det2.evaluation.matching import Matches, MatchRule, match_per_image

LEVELS = [0, 0.1, 0.5, 1, 2, 16]


def test_resamples_draw_as_many_patients_as_there_are():
    weights = resample_patients(5, 2000, seed=3)
    assert weights.shape == (2000, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)
    assert np.array_equal(weights, resample_patients(5, 2000, seed=3))
    assert not np.array_equal(weights, resample_patients(5, 2000, seed=4))
    assert resample_patients(0, 7).shape == (7, 0)


def random_split(rng, images, distinct_scores):
    detections, lesions = [], []
    for _ in range(images):
        count = rng.integers(0, 8)
        corner = rng.integers(0, 6, (count, 2))
        scores = rng.permutation(count)[:, None] + rng.random((count, 1)) if distinct_scores else np.ones((count, 1))
        detections.append(np.concatenate([corner, corner + rng.integers(3, 8, (count, 2)), scores], axis=1))
        corner = rng.integers(0, 6, (rng.integers(0, 3), 2))
        lesions.append(np.concatenate([corner, corner + rng.integers(3, 8, corner.shape)], axis=1).astype(float))
    return detections, lesions


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["ignored", "false_positive"]), st.booleans())
def test_equals_scoring_the_patients_again_as_often_as_they_were_drawn(seed, repeat_hits, by_image):
    rng = np.random.default_rng(seed)
    images, patients = rng.integers(1, 8), rng.integers(1, 4)
    detections, lesions = random_split(rng, images, distinct_scores=True)
    patient = rng.integers(0, patients, images)
    rule = MatchRule(repeat_hits=repeat_hits)
    matches = match_per_image(detections, lesions, rule)
    weights = resample_patients(patients, 5, seed)
    chosen_images = rng.random(images) < 0.7 if by_image else None
    chosen_lesions = rng.random(matches.num_lesions) < 0.7
    ours = ResampledFroc(matches, patient, weights, LEVELS).sensitivities(chosen_images, chosen_lesions)
    for row, drawn in zip(ours, weights, strict=True):
        again = np.repeat(np.arange(images), drawn[patient])
        repeated = match_per_image([detections[i] for i in again], [lesions[i] for i in again], rule)
        of_image = [chosen_lesions[matches.lesion_image == i] for i in again]
        curve = froc_curve(
            repeated,
            None if chosen_images is None else chosen_images[again],
            np.concatenate([np.zeros(0, dtype=bool), *of_image]),
        )
        np.testing.assert_array_equal(row, curve.at(LEVELS))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_every_patient_once_is_the_curve_itself(seed, distinct_scores):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 30)
    detections, lesions = random_split(rng, images, distinct_scores)
    levels = [*LEVELS, *rng.integers(0, 40, 5) / images]  # exactly at points of the curve
    matches = match_per_image(detections, lesions)
    ours = ResampledFroc(matches, np.zeros(images, dtype=int), np.ones((1, 1), dtype=int), levels).sensitivities()
    np.testing.assert_array_equal(ours[0], froc_sensitivities(detections, lesions, levels))


def test_nothing_at_all():
    matches = match_per_image([], [])
    sampled = ResampledFroc(matches, np.zeros(0, dtype=int), resample_patients(0, 4), LEVELS).sensitivities()
    assert sampled.shape == (4, 6)
    assert np.isnan(sampled).all()


def test_percentile_interval():
    values = np.stack([np.arange(101.0), np.full(101, 3.0), np.full(101, np.nan)], axis=1)
    interval = percentile_interval(values, 0.9)
    assert interval[0].tolist() == pytest.approx([5, 95])
    assert np.isnan(interval[1:]).all()  # what does not vary, and what is not known
    values[50:, 0] = np.nan
    assert percentile_interval(values, 0.5)[0].tolist() == [12.25, 36.75]
    assert percentile_interval(np.zeros((0, 2))).shape == (2, 2)


def test_paired_p_value():
    assert paired_p_value(np.ones(999)) == 2 / 1000
    assert paired_p_value(-np.ones(999)) == 2 / 1000
    assert paired_p_value(np.zeros(999)) == 1
    assert paired_p_value(np.array([1.0] * 90 + [-1.0] * 9)) == pytest.approx(2 * 10 / 100)
    assert paired_p_value(np.array([1.0] * 90 + [-1.0] * 9 + [np.nan] * 100)) == pytest.approx(2 * 10 / 100)
    assert np.isnan(paired_p_value(np.array([np.nan])))


def simulate(rng, patients=80):
    """Patients with 1 to 14 images (7.2 on average in the test split of DeepLesion) of one lesion each.

    A lesion is found with the patient's probability p ~ Beta(4, 2); found, its score is uniform in [0, 1]. False
    positives: Poisson with the patient's own mean (6 on average) per image, scores uniform in [0, 1]. In the
    population, one false positive per image leaves scores above 1 - 1/6, and the sensitivity there is 2/3 * 1/6; with
    three of them 2/3 * 1/2.
    """
    images_of = rng.integers(1, 15, patients)
    patient = np.repeat(np.arange(patients), images_of)
    images = len(patient)
    found = np.flatnonzero(rng.random(images) < rng.beta(4, 2, patients)[patient])
    fps = rng.poisson(rng.gamma(3, 2, patients)[patient])
    image = np.concatenate([found, np.repeat(np.arange(images), fps)])
    score = rng.random(len(image))
    order = np.argsort(-score)
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    hit_by = np.full(images, len(order))
    hit_by[found] = rank[: len(found)]
    false_positive = np.concatenate([np.zeros(len(found), dtype=bool), np.ones(fps.sum(), dtype=bool)])[order]
    return Matches(images, order, score[order], image[order], false_positive, np.arange(images), hit_by), patient


def coverage(trials, draw, resamples=200, patients=80):
    """How often the 95 % interval holds the sensitivity of the population, at 1 and at 3 FPs per image."""
    truth = np.array([2 / 3 / 6, 2 / 3 / 2])
    covered = np.zeros(2)
    for trial in range(trials):
        matches, patient = simulate(np.random.default_rng(trial), patients)
        units = patient if draw == "patients" else np.arange(matches.num_images)
        weights = resample_patients(units.max() + 1, resamples, seed=trial)
        interval = percentile_interval(ResampledFroc(matches, units, weights, [1, 3]).sensitivities())
        covered += (interval[:, 0] <= truth) & (truth <= interval[:, 1])
    return covered / trials


def test_the_interval_covers_the_sensitivity_of_the_population():
    rates = coverage(1000, "patients")
    assert ((rates >= 0.93) & (rates <= 0.97)).all(), rates


def test_drawing_images_instead_of_patients_covers_too_rarely():
    assert (coverage(300, "images") < 0.93).all()


def rate_of_significance(trials, better=0.0):
    """How often two models differ with p < 0.05, on the same patients and images with independent scores.

    The scores of the lesions that the second one finds are raised by a share ``better`` of what they lack to 1.
    """
    significant = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        first, patient = simulate(rng)
        score = rng.random(len(first.score))
        score[~first.false_positive] += better * (1 - score[~first.false_positive])
        order = np.argsort(-score)
        rank = np.append(np.argsort(order), len(order))
        second = Matches(
            first.num_images,
            order,
            score[order],
            first.image[order],
            first.false_positive[order],
            first.lesion_image,
            rank[first.hit_by],
        )
        weights = resample_patients(patient.max() + 1, 200, seed=trial)
        a, b = (ResampledFroc(m, patient, weights, [3]).sensitivities()[:, 0] for m in (first, second))
        significant += paired_p_value(a - b) < 0.05
    return significant / trials


def test_models_alike_differ_significantly_as_rarely_as_they_should():
    assert 0.02 <= rate_of_significance(500) <= 0.07


def test_a_better_model_is_significantly_better():
    assert rate_of_significance(50, better=0.3) > 0.9
