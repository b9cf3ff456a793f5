"""Run notebooks from top to bottom and write their outputs into them: what `make notebooks` does.

    python scripts/run_notebooks.py notebooks/paper3_gender.ipynb

A cell that fails ends it with its traceback, and leaves the notebook as it was.
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tfface.files import written_aside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            resources={"metadata": {"path": path.parent}},
            record_timing=False,  # would change the file at each run
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],  # start-up words of C++ libraries stay outside
        )
        client.execute()
        drop_bars(notebook)
        with written_aside(path) as aside:
            nbformat.write(notebook, aside)
        print(f"{path}: {time.monotonic() - started:.0f} s", flush=True)


def drop_bars(notebook: nbformat.NotebookNode) -> None:
    """Take out what progress bars wrote over and over: in a file it stands line by line."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" or not (output.text.startswith("\r") or not output.text.strip())
            ]


if __name__ == "__main__":
    main()
