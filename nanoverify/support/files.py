"""Input and output of all stages: one-line errors, JSON and JSONL, and output folders that appear
complete or not at all.
"""
import contextlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MARK = ".nanoverify"  # an empty file in each working folder, so that no other one is removed
WINDOWS = os.name == "nt"

# How CUDA, cuBLAS, cuDNN, torch, C++ and Windows report a lack of memory
NO_MEMORY = re.compile(r"out of memory|STATUS_ALLOC_FAILED|can(?:'t|not) allocate memory"
                       r"|not enough memory|bad.alloc|paging file is too small", re.I)


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, line or flag and what to do."""


def run(main):
    """Call a script's main(). An InputError or a lack of memory becomes one line on stderr and exit
    code 2, Ctrl-C exit code 130.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        # a chat template can raise any text, with line ends and codes for the terminal
        message = "".join(c if c.isprintable() else " " for c in str(error))
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError, OSError) as error:  # no class of its own
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print("error: out of memory: lower --micro-tokens (training) or --batch-size (sampling), "
              f"set --recompute, or take a smaller --model: {reason}", file=sys.stderr)
        sys.exit(2)


def read_json(path) -> dict:
    """One JSON object from a file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


@contextlib.contextmanager
def writing(path, size: int = 0, then: str = "make room"):
    """A full or failing disk while `path` is written becomes an InputError.

    size: bytes to write, 0 if unknown; then: what the user can do.
    """
    try:
        yield
    except OSError as error:
        need = f"; it needs {size / 1e6:.2f} MB" if size else ""
        raise InputError(f"{path}: cannot be written: {error.strerror or error}{need}; {then}")


def write_json(path, content: dict):
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with writing(path, len(text)):
        Path(path).write_text(text, encoding="utf-8")


def json_line(record: dict) -> str:
    """One line for metrics.jsonl: floats with 6 significant digits, NaN and infinity as null."""
    return json.dumps({key: rounded(value) for key, value in record.items()}) + "\n"


def rounded(value):
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def refuse(reason: str, bad: list | None):
    """An unusable line: an InputError; or, if bad lines are skipped, an entry of `bad`."""
    if bad is None:
        raise InputError(reason)
    bad.append(reason)


def print_skipped(bad: list | None):
    if bad:
        print(f"--skip-bad-lines: {len(bad)} left out, the first: {bad[0]}", file=sys.stderr)


CONVERSIONS = {  # first bytes: (what the file is, Python that converts it to JSONL)
    b"PAR1": ("a Parquet file", "import pandas; pandas.read_parquet({old!r})"
                                ".to_json({new!r}, orient='records', lines=True)"),
    b"\x1f\x8b": ("a gzip file",
                  "import gzip; open({new!r}, 'wb').write(gzip.open({old!r}).read())"),
}


def refuse_other_formats(path, content: bytes):
    """InputError if the file has a known format that is not JSONL; it names the command to convert
    it.
    """
    for start, (kind, code) in CONVERSIONS.items():
        if content.startswith(start):
            code = code.format(old=str(path), new=f"{Path(path).stem}-converted.jsonl")
            raise InputError(f"{path}: is {kind}, not JSONL; convert it: python -c \"{code}\"")


def items_of(content: bytes) -> list[bytes]:
    """The items of a JSON array that holds objects, as lines of JSONL; [] for another file."""
    if not content.lstrip().startswith(b"["):
        return []
    try:
        items = json.loads(content)
    except (ValueError, RecursionError):
        return []
    objects = any(isinstance(item, dict) for item in items)
    return [json.dumps(item).encode() for item in items] if objects else []


def read_jsonl(path, growing: bool = False, bad: list | None = None):
    """Yield (line number, object) for each line that is not blank; of a JSON array each object.

    growing: the file may be incomplete, so text after its last line end is ignored.
    bad: the reasons of unusable lines; None: the first one is an InputError "file:line: reason".
    """
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        ours = Path(path).name == "trajectories.jsonl"
        todo = "; run build_data.py first, it makes this file" if ours else ""
        raise InputError(f"{path}: cannot be read: {error.strerror}{todo}")
    refuse_other_formats(path, content)
    lines = items_of(content) or content.split(b"\n")
    for number, line in enumerate(lines[:-1] if growing else lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # "\ud800" is valid JSON
        except UnicodeError:
            refuse(f"{path}:{number}: not valid UTF-8", bad)
        except (ValueError, RecursionError) as error:
            refuse(f"{path}:{number}: not valid JSON: {error}", bad)
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                refuse(f"{path}:{number}: expected a JSON object, found {type(row).__name__}", bad)


def write_jsonl(path, rows):
    """rows: dicts, one a line."""
    with writing(path), open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def holds_state(folder: Path) -> bool:
    """Whether a run can be resumed from this folder. run.json without a state only says which run
    began.
    """
    return any(path.name != "run.json" for path in (folder / "state").glob("*"))


@contextlib.contextmanager
def locked(folder: Path, refusal: str = ""):
    """Hold the system's lock of `folder` while the block runs. Others wait, or raise `refusal`.

    The lock leaves nothing on disk and ends with the process, even if that is killed. Without the
    folder, or on a system without such locks, nothing is locked.
    """
    handle = None
    try:
        if fcntl and folder.is_dir():
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
    except BlockingIOError:
        os.close(handle)
        raise InputError(refusal)
    except OSError:
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def output_folder(path, resume: bool = False, overwrite: bool = False, need: int = 0):
    """The working folder `path`.part; it is renamed to `path` when the block ends without an error.

    After an error it is removed, unless it holds the state of a run (`state/`). `resume` continues
    from that state, or from that of a finished run. `overwrite` replaces an earlier output, which
    is a folder with arguments.json.

    InputError, before any work: `path` exists, it cannot be written, another run is working in it,
    or the disk has less than `need` free bytes.
    """
    shown = Path(path)
    if shown.exists() and not shown.is_dir():
        raise InputError(f"--out {shown}: is a file, not a folder")
    path = shown.resolve()  # a link to a folder is followed
    temporary = path.with_name(path.name + ".part")
    refusal = (f"--out {shown}.part: another run works in it; "
               "wait for its end or choose another --out")

    with contextlib.ExitStack() as lock:  # of the working folder, until its last rename
        # 1. make the working folder; one run at a time
        with no_os_error(shown):
            temporary.parent.mkdir(parents=True, exist_ok=True)
        with locked(temporary.parent):
            with locked(temporary, refusal):
                pass  # only a check: a running one must not lose its files
            if (temporary / "replaced").is_dir() and not path.exists():
                (temporary / "replaced").rename(path)  # a run died between its last two renames
            # looked at only now: another run may have finished while this one waited
            occupied = path.is_dir() and any(path.iterdir())
            if occupied and not (path / "arguments.json").exists():
                raise InputError(f"--out {shown}: holds other files; "
                                 "choose a folder that is new, empty or an earlier output")
            refuse_foreign(shown, temporary)
            begun, ended = holds_state(temporary), holds_state(path)
            refuse_choice(shown, occupied, begun, ended, resume, overwrite)
            with no_os_error(shown):
                free = start_folder(path, temporary, resume and begun, resume and ended)
            lock.enter_context(locked(temporary, refusal))

        # 2. work in it
        try:
            if free < need:
                raise InputError(f"--out {shown}: {need / 1e9:.1f} GB are needed, "
                                 f"{free / 1e9:.1f} GB are free")
            yield temporary
        except BaseException:
            if resume and ended and not begun and not path.exists():
                (temporary / MARK).unlink(missing_ok=True)
                temporary.rename(path)  # a finished run that got no further keeps its place
            elif not holds_state(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
            raise

        # 3. give it its name
        with writing(path, then=f"the finished output is in {temporary}"):
            share_weights(temporary)
            replace_folder(path, temporary)
        shutil.rmtree(path / "replaced", ignore_errors=True)
        (path / MARK).unlink(missing_ok=True)


def refuse_foreign(shown: Path, temporary: Path):
    """InputError: what stands where the run would work was not made by a run."""
    if not os.path.lexists(temporary):
        return
    ours = temporary.is_dir() and ((temporary / MARK).exists() or holds_state(temporary)
                                   or not any(temporary.iterdir()))
    if not ours:
        raise InputError(f"--out {shown}: the run would work in {shown}.part, which holds other "
                         "files; move it away, or choose another --out")


def share_weights(folder: Path):
    """Give weights, which safetensors saves for their owner only, other files' permissions."""
    neighbour = folder / "arguments.json"
    if neighbour.exists():
        for file in folder.glob("*.safetensors"):
            file.chmod(neighbour.stat().st_mode)


@contextlib.contextmanager
def no_os_error(shown: Path):
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {shown}: cannot be written: {error.strerror}")


def refuse_choice(shown: Path, occupied: bool, begun: bool, ended: bool, resume: bool,
                  overwrite: bool):
    """InputError if the flags do not fit the folders.

    occupied: there is a finished output. begun, ended: the working folder, the finished output
    holds a state.
    """
    if resume and not begun and not ended:
        if occupied:
            raise InputError(f"--resume: {shown} is finished and has no state to continue from")
        print(f"--resume: no saved state in {shown}.part, so this is a new run", file=sys.stderr)
    if not resume and not overwrite and (occupied or begun):
        name = shown if occupied else f"{shown}.part"
        choices = "--resume continues it, " * (begun or ended) + "--overwrite replaces it"
        raise InputError(f"--out {name}: exists; {choices}")


def start_folder(path: Path, temporary: Path, keep: bool, take_finished: bool) -> int:
    """Make the working folder and return the free bytes of its disk.

    keep: it is there, continue in it. take_finished: else rename the finished output to it.
    """
    if not keep:
        shutil.rmtree(temporary, ignore_errors=True)
        if take_finished:
            path.rename(temporary)
        else:
            temporary.mkdir()
    (temporary / MARK).touch()
    free = shutil.disk_usage(temporary).free
    (temporary / "writable").touch()
    (temporary / "writable").unlink()
    return free


def replace_folder(path: Path, temporary: Path):
    """Rename `temporary` to `path`. An earlier output is renamed first: if the second rename fails,
    it is still complete. Removing it first could stop halfway.
    """
    shutil.rmtree(temporary / "replaced", ignore_errors=True)
    if path.is_dir():
        path.rename(temporary / "replaced")
    try:
        temporary.rename(path)
    except OSError:
        if (temporary / "replaced").is_dir():
            (temporary / "replaced").rename(path)
        raise
