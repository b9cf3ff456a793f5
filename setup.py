"""tfface: train, verify, shrink and serve face-analysis models with Keras 3 and TensorFlow."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tfface" / "__init__.py").read_text())[1]


PRIVATE_PARTS = ("keras", "tensorflow", "tensorflow-model-optimization")


def pins():
    """The lines of requirements.txt above '# development', comments dropped."""
    text = (HERE / "requirements.txt").read_text().split("# development")[0]
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    # What tfface stands on private parts of stays within its minor version.
    return [line.replace("==", "~=" if line.split("==")[0] in PRIVATE_PARTS else ">=") for line in lines if line]


class WithBuilders(build_py):
    """A wheel holds the TFDS builders as tfface/datasets: `tfface build` needs no checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:  # it finds those of the checkout
            target = Path(self.build_lib) / "tfface" / "datasets"
            shutil.rmtree(target, ignore_errors=True)
            leave = shutil.ignore_patterns("__pycache__", "dummy_data", "*_test.py")
            shutil.copytree(HERE / "datasets", target, ignore=leave)


README = HERE / "README.md"

setup(
    name="tfface",
    version=VERSION,
    description=__doc__.split(": ", 1)[1].strip(),
    long_description=README.read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author="The tfface contributors",
    keywords=["face analysis", "age estimation", "face recognition", "keras", "tensorflow", "pruning", "fairness"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["tfface", "tfface.*"]),
    package_data={"tfface": ["assets/**/*", "**/*.html", "py.typed"]},
    install_requires=pins(),
    cmdclass={"build_py": WithBuilders},
    entry_points={"console_scripts": ["tfface = tfface.cli:main"]},
)
