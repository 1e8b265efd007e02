"""Run notebooks and store their outputs with a record of where they come from: the only writer of stored outputs.

    python tools/execute.py notebooks/04_first_gpt.ipynb --profile full
    python tools/execute.py notebooks/*.ipynb --keep

Every cell is run, in the notebook's own folder, by the Python that runs this tool. A notebook that fails is left as it
was; with --out, what it did get done goes to DIR/NAME.failed.ipynb, so that an hour of training is not lost to a typing
error in the last cell. Run `ruff format` first: formatting changes the hashes.

--keep stores new outputs only from the first changed cell on. A kernel starts with nothing, so the cells above it are
run as well, with MINAR_KEEP=1 in their environment: a training cell may then load the checkpoint that it made earlier.
Their stored outputs stay as they are. MINAR_KEEP is gone when the first changed cell begins. Exercises carry no hash,
so their outputs are always the new ones; where nothing but exercises changed, the notebook keeps its record.
"""

import argparse
import copy
import datetime
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout with nothing installed will do

from minar.lab.notebook import code_hashes, first_stale, is_code, is_hashed, source, tags  # noqa: E402

CELL_METADATA = {"tags", "minar", "nbgrader", "jupyter"}  # all else is the diary of an editor

WHERE = """
import json, platform, torch
print(json.dumps({
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    "torch": torch.__version__,
    "python": platform.python_version(),
}))
"""


class CellFailed(Exception):
    """A cell raised, took too long, or its kernel died. The message names the cell and holds the traceback."""


class TooLate(CellFailed):
    """The limit was over before the cell was."""


def main(argv: list[str] | None = None) -> int:
    """Execute every notebook named; 1 if any of them failed, else 0."""
    args = read_arguments(argv)
    failed = 0
    for path in args.notebooks:
        try:
            print(f"{path}: {execute(path, args.profile, args.keep, args.out, args.limit)}", flush=True)
        except CellFailed as error:
            failed += 1
            print(f"{path}: {error}\n{path}: not written", file=sys.stderr, flush=True)
    return 1 if failed else 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--profile", choices=["smoke", "lab", "full"], default="full")
    parser.add_argument("--keep", action="store_true", help="keep outputs above the first changed cell")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there instead of in place")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of a whole notebook; then it counts as failed")
    args = parser.parse_args(argv)
    for path in args.notebooks:
        if not path.is_file():
            parser.error(f"{path} is not a file")
    return args


def execute(path: Path, profile: str, keep: bool = False, out: Path | None = None, limit: float | None = None) -> str:
    """Execute one notebook and write it, in place or into the folder `out`. Returns what was done, in a line.

    Raises CellFailed where a cell raises or the limit of seconds is over; the notebook itself is then left alone.
    """
    old = nbformat.read(path, as_version=4)
    last = len(old.cells)
    first = first_new(old, profile) if keep else 0
    if first == last and all(is_hashed(cell) for cell in old.cells if is_code(cell)):
        return "up to date"

    new, record, failure = run(old, path, profile, first, limit)
    if failure:
        if out:
            clean(new, record)
            write(new, out / f"{path.stem}.failed.ipynb")
        raise failure
    for i, cell in enumerate(old.cells[:first]):
        if is_hashed(cell):
            new.cells[i] = cell

    if first == last:
        record = old.metadata.minar
    elif first > 0:
        record["kept"] = {"before_cell": first, **old.metadata.minar}
    clean(new, record)
    write(new, (out or path.parent) / path.name)
    return f"{profile}, from cell {first} of {last}, {record['seconds']} s on {record['device']}"


def first_new(nb: nbformat.NotebookNode, profile: str) -> int:
    """Index of the first cell that needs a new output; the number of cells if none does."""
    if nb.metadata.get("minar", {}).get("profile") != profile:
        return 0  # its outputs are of another size
    stale = first_stale(nb)
    return len(nb.cells) if stale is None else stale


def run(
    old: nbformat.NotebookNode, path: Path, profile: str, first: int, limit: float | None
) -> tuple[nbformat.NotebookNode, dict, CellFailed | None]:
    """Run a copy of the notebook to the end. Returns it, the record of where and how long, and the first failure."""
    nb = copy.deepcopy(old)
    n = len(nb.cells)  # notes of our own to the kernel go behind the last cell and are dropped
    client = NotebookClient(
        nb,
        kernel_name="python3",
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        force_raise_errors=True,
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    start, count, failure, failed = time.perf_counter(), 0, None, None
    with client.setup_kernel(env=environment(profile, kept=first > 0)):
        for i in range(n):
            if i == first > 0:
                tell(client, "import os; os.environ.pop('MINAR_KEEP', None)")
            count += is_code(nb.cells[i])
            client.timeout = None if limit is None else max(1, int(limit - (time.perf_counter() - start)))
            failed = run_cell(client, i, count)
            failure = failure or failed
            if isinstance(failed, TooLate):
                break  # its kernel is still busy
        where = {} if isinstance(failed, TooLate) else json.loads(tell(client, WHERE))
    del nb.cells[n:]

    seconds = round(time.perf_counter() - start, 1)
    record = {"profile": profile, **where, "seconds": seconds, "date": datetime.date.today().isoformat()}
    return nb, record, failure


def environment(profile: str, kept: bool) -> dict[str, str]:
    env = {**os.environ, "MINAR_PROFILE": profile, "MINAR_KEEP": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env.pop("MPLBACKEND", None)  # the kernel's own draws into the notebook
    env.pop("NBGRADER_EXECUTION", None)
    if not kept:
        del env["MINAR_KEEP"]
    return env


def run_cell(client: NotebookClient, i: int, count: int) -> CellFailed | None:
    """Run one cell; cells that take their time say so on stderr. Returns what went wrong, raises if the kernel died."""
    cell, start = client.nb.cells[i], time.perf_counter()
    try:
        client.execute_cell(cell, i, execution_count=count)
    except CellExecutionError as error:
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)  # colours, which a log cannot show
        return CellFailed(f"cell {i} failed\n{traceback}")
    except CellTimeoutError:
        return TooLate(f"cell {i} was still running when the limit was over")
    except DeadKernelError as error:
        line = next(iter(source(cell).splitlines()), "")
        raise CellFailed(f"cell {i} ended its kernel (out of memory?): {line}\n{error}") from None
    seconds = time.perf_counter() - start
    if seconds > 2:
        print(f"  cell {i}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return None


def tell(client: NotebookClient, code: str) -> str:
    """Run a line of our own in the kernel, outside its history. Returns what it printed."""
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1, store_history=False)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def clean(nb: nbformat.NotebookNode, record: dict) -> None:
    """Leave only what a reader or a test needs, so that two runs of the same notebook differ as little as they can."""
    for cell, code_hash in zip(nb.cells, code_hashes(nb)):
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in CELL_METADATA}
        cell.metadata.pop("minar", None)
        if code_hash:
            cell.metadata["minar"] = {"hash": code_hash}
        if is_code(cell):
            cell.outputs = [shown_anywhere(output) for output in cell.outputs]
        if "colab" in tags(cell):  # it has nothing to say, and is not counted: it may be changed without a run
            cell.outputs, cell.execution_count = [], None
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
        "minar": record,
    }


def shown_anywhere(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A warning names the file that it comes from: a reader wants the library, not the folders of this machine."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\s\"']*[/\\]site-packages[/\\]", "", output.text)
    return output


def write(nb: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".ipynb.part")  # a crash while writing must not cost the old outputs
    half.write_text(nbformat.writes(nbformat.from_dict(nb)) + "\n", encoding="utf-8")
    half.replace(path)


if __name__ == "__main__":
    sys.exit(main())
