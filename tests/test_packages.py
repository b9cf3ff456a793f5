"""The version of what is installed, by whatever name it came."""

from tfface import packages


def test_a_version_is_found_by_the_package_or_by_its_module(monkeypatch):
    assert packages.installed_version("keras").startswith("3.")
    assert packages.installed_version("no-such-package") is None
    # tensorflow-cpu brings the module tensorflow without the package tensorflow.
    monkeypatch.setattr(packages, "packages_distributions", lambda: {"tensor_flow": ["tensor-flow-cpu", "keras"]})
    assert packages.installed_version("tensor-flow") == packages.installed_version("keras")
