"""Face verification on pairs: LFW's View 2, ten folds, the threshold of each fold chosen on the nine others."""

from __future__ import annotations

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of the angle between the embeddings of each pair.

    Args:
        first, second: `(pairs, width)` embeddings, not zero.

    Returns:
        `(pairs,)` float64 in [-1, 1].

    Raises:
        ValueError: an embedding that is zero or not finite.
    """
    first, second = (np.asarray(values, "float64") for values in (first, second))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("Embeddings must be finite and not zero. Received some that are not.")
    return np.clip((first * second).sum(axis=1) / norms, -1, 1)


def centred_similarity(first: np.ndarray, second: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Cosines about the mean embedding, which is that of the nine other folds for each fold.

    Embeddings of a network are not spread evenly about zero; what all faces share says nothing of who they are.
    The authors of these weights measure so (davidsandberg/facenet, src/validate_on_lfw.py: --subtract_mean).

    Args:
        first, second: `(pairs, width)` embeddings.
        fold: `(pairs,)` int.

    Returns:
        `(folds, pairs)` float64, for `verify_folds`: a row for each fold, in order of number.
    """
    rows = []
    for number in np.unique(fold):
        mean = np.concatenate([side[fold != number] for side in (first, second)]).mean(axis=0, dtype="float64")
        rows.append(cosine_similarity(first - mean, second - mean))
    return np.stack(rows)


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold of highest accuracy, similarity >= threshold meaning the same person.

    It lies halfway between two neighbouring values; among equals the lowest is taken.

    Args:
        similarity: `(pairs,)`, finite.
        same: `(pairs,)` bool.

    Raises:
        ValueError: a similarity that is not finite.
    """
    similarity = np.asarray(similarity, "float64")  # in half precision what lies halfway would be rounded away
    if not np.isfinite(similarity).all():
        raise ValueError("Similarities must be finite. Received some that are not.")
    order = np.argsort(similarity, kind="stable")
    values, truth = similarity[order], np.asarray(same, bool)[order]
    # right[k]: pairs judged right when the k lowest are called different.
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    # A cut between equal values cannot be made.
    right[1:-1] = np.where(values[1:] > values[:-1], right[1:-1], -1)
    cut = int(np.argmax(right))
    edges = np.concatenate([[values[0] - 1e-6], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    return float(edges[cut])


def shortest_threshold(threshold: float, similarity: np.ndarray) -> float:
    """A threshold in as few decimals, three at least, as judge these similarities as it does: to be read and typed.

    Args:
        threshold: similarity >= threshold means the same person.
        similarity: of any shape.
    """
    accepted = similarity >= threshold
    for digits in range(3, 17):
        rounded = round(float(threshold), digits)
        if np.array_equal(similarity >= rounded, accepted):
            return rounded
    return float(threshold)


def verify_folds(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> dict:
    """LFW's protocol: accuracy of each fold at the threshold that was best on the others; ROC over all pairs.

    Reference: Huang et al., Labeled Faces in the Wild (2007), View 2. With 3,000 pairs of different people a false
    accept rate below 1e-3 rests on fewer than three pairs: the rates are given only where at least ten negatives
    stand behind them, with 95 % intervals, as if pairs were independent, and the lowest threshold that keeps to them
    (written short, see `shortest_threshold`).

    Args:
        similarity: `(pairs,)`, higher is more alike; or `(folds, pairs)`, a row for each fold, see
            `centred_similarity`: the ROC then takes each pair from the row of its own fold.
        same: `(pairs,)` bool.
        fold: `(pairs,)` int, the fold of each pair.

    Returns:
        `{"n", "accuracy", "deviation", "folds": [{"accuracy", "threshold", "n"}], "auc", "tar": {far: {"value",
        "interval", "threshold", "far_interval"}}, "roc"}`. The accuracy is the share of all pairs judged right, as
        is the mean over folds where they are of one size; deviation is the standard deviation over folds.

    Raises:
        ValueError: one fold, or pairs of one kind only.
    """
    similarity, same, fold = np.asarray(similarity, "float64"), np.asarray(same, bool), np.asarray(fold)
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError(f"`fold` must name at least two folds. Received: {numbers}")
    if same.all() or not same.any():
        raise ValueError(f"Pairs of both kinds are needed. Received: {same.sum()} of {len(same)} of the same person")
    folds, right = [], 0
    rows = np.broadcast_to(similarity, (len(numbers), len(same)))
    similarity = np.empty(len(same))
    for number, row in zip(numbers, rows, strict=True):
        held = fold == number
        threshold = best_threshold(row[~held], same[~held])
        similarity[held] = row[held]
        judged = (row[held] >= threshold) == same[held]
        right += int(judged.sum())
        folds.append({"accuracy": float(judged.mean()), "threshold": threshold, "n": int(held.sum())})
    # Every point for the rates: of what lies on one line, as equal scores do, scikit-learn leaves out the middle.
    false_accepts, true_accepts, thresholds = roc_curve(same, similarity, drop_intermediate=False)
    thresholds[0] = similarity.max() + 1e-6  # infinite: nobody is accepted
    negatives, positives = int((~same).sum()), int(same.sum())
    tar = {}
    for far in (0.1, 0.01, 0.001, 1e-4):
        if far * negatives < 10:
            continue
        at = np.searchsorted(false_accepts, far, side="right") - 1
        tar[f"{far:g}"] = {
            "value": float(true_accepts[at]),
            "interval": _interval(true_accepts[at], positives),
            "threshold": shortest_threshold(thresholds[at], similarity),
            "far_interval": _interval(false_accepts[at], negatives),
        }
    curve = roc_curve(same, similarity)[:2]
    return {
        "n": len(same),
        "accuracy": right / len(same),
        "deviation": float(np.std([row["accuracy"] for row in folds])),
        "folds": folds,
        "auc": float(roc_auc_score(same, similarity)),
        "tar": tar,
        "roc": [[float(x), float(y)] for x, y in zip(*curve, strict=True)],
    }


def _interval(share: float, count: int) -> list[float]:
    low, high = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return [float(low), float(high)]
