"""What a network is worth: figures, groups of people, calibration, pairs, comparisons, pages."""
