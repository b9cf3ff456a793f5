"""Which version of a package is installed."""

from importlib.metadata import PackageNotFoundError, packages_distributions, version


def installed_version(package: str) -> str | None:
    """Version of an installed package, such as "tensorflow", or None.

    TensorFlow goes by other names, too, such as tensorflow-cpu: the packages that bring a module of its name count.
    """
    try:
        return version(package)
    except PackageNotFoundError:  # who brings what is read from every package's list of files: a second
        others = packages_distributions().get(package.replace("-", "_"), ())
    for name in others:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
