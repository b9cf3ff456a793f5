"""tfface: train, verify, shrink and serve face-analysis models with Keras 3 and TensorFlow."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def pins():
    """The lines of requirements.txt above '# development', comments dropped."""
    text = (HERE / "requirements.txt").read_text().split("# development")[0]
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line.replace("==", ">=") for line in lines if line]


README = HERE / "README.md"

setup(
    name="tfface",
    version="0.1.0",
    description=__doc__.split(": ", 1)[1].strip(),
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tfface", "tfface.*"]),
    package_data={"tfface": ["assets/**/*", "evaluation/*.html", "py.typed"]},
    install_requires=pins(),
    entry_points={"console_scripts": ["tfface = tfface.cli:main"]},
)
