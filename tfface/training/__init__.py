"""One training loop, and what goes with it: runs, cached features, teachers, learning rates, sweeps, soups."""
