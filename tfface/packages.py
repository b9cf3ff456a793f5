"""Which version of a package is installed."""

from importlib.metadata import PackageNotFoundError, packages_distributions, version


def installed_version(package: str) -> str | None:
    """Version of an installed package, such as "tensorflow", or None.

    TensorFlow goes by other names, too, such as tensorflow-cpu: the packages that bring a module of its name count.
    """
    for name in (package, *packages_distributions().get(package.replace("-", "_"), ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
