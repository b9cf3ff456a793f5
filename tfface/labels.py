"""Class names and encodings of every data set, as strings.

Age, gender and race are *perceived* labels: what annotators saw in a picture. Integers are used only inside the
pipelines; the order of a tuple here is the meaning of its integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GENDERS = ("Male", "Female")
"""UTKFace and FairFace: 0 male, 1 female. Other sets use the reverse: convert at their builder."""

UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Others")
"""UTKFace's file names: 0 to 4."""

FAIRFACE_RACES = (
    "White",
    "Black",
    "Latino_Hispanic",
    "East Asian",
    "Southeast Asian",
    "Indian",
    "Middle Eastern",
)
"""FairFace, in the order of its paper and code."""

GROUPINGS = {
    "four_races": (
        "race",
        {
            "White": ("White", "Caucasian"),
            "Black": ("Black", "African"),
            "Asian": ("Asian", "East Asian", "Southeast Asian"),
            "Indian": ("Indian",),
        },
    ),
}
"""Name -> (label, group -> the classes that count as it). The four races of paper 1 out of those of BUPT-Balancedface,
UTKFace and FairFace; what is in no group (Others, Latino_Hispanic, Middle Eastern) is left out."""

FAIRFACE_TO_UTKFACE = (0, 1, 4, 2, 2, 3, 4)
"""UTKFace's class of each of FairFace's: both Asians are one, Latino_Hispanic and Middle Eastern are its Others."""

FAIRFACE_AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
"""FairFace's nine age groups."""

FAIRFACE_AGE_STARTS = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""First age (years) of each of FairFace's groups."""

ARG_AGE_STARTS = (0, 6, 13, 20, 27, 35, 43, 50, 62)
"""First age (years) of each of the nine bins of the ARG poster: 0-5, 6-12, ..., 50-61, 62+."""

ARG_AGES = ("0-5", "6-12", "13-19", "20-26", "27-34", "35-42", "43-49", "50-61", "62+")
"""Names of the nine age bins of the ARG poster."""

OLDEST = 116
"""Greatest age in UTKFace, years."""

ARG_63_AGES = (*(str(age) for age in range(62)), "62+")
"""63 classes: one a year up to 61, then 62+, the poster's last bin. The poster gives the number 63 but not the
classes; this reading shares its last bin with the nine and gives exactly 63."""


def age_bin(years: float | np.ndarray, starts: Sequence[int] = ARG_AGE_STARTS) -> np.integer | np.ndarray:
    """Index of the bin that holds an age.

    Args:
        years: age in years, a number or an array, >= 0.
        starts: first age of each bin, ascending, the first 0.

    Returns:
        Index or integer array of the same shape, in [0, len(starts)).
    """
    return np.searchsorted(np.asarray(starts), np.asarray(years), side="right") - 1
