"""What all stages share with the outside: one-line errors, JSONL, and output folders that appear whole or not at all."""
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


WINDOWS = os.name == "nt"

# How CUDA, cuBLAS and cuDNN, torch on Linux and on Windows, C++ and Windows tell a lack of memory
NO_MEMORY = re.compile(r"out of memory|STATUS_ALLOC_FAILED|can(?:'t|not) allocate memory"
                       r"|not enough memory|bad.alloc|paging file is too small", re.I)


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, line or flag and what to do."""


def run(main):
    """Call a script's main(); an InputError or a lack of memory becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        # parts of a message come from files: a chat template can raise any text, with line ends and codes for the terminal
        print("error: " + "".join(c if c.isprintable() else " " for c in str(error)), file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError, OSError) as error:  # no common class; most are RuntimeErrors
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        print("error: out of memory: lower --micro-tokens (training) or --batch-size (sampling), set --recompute, or take a smaller --model: "
              + (str(error).strip() or type(error).__name__).splitlines()[0], file=sys.stderr)
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
    """A disk that is full or fails while `path` is written, `size` bytes as far as they are known, becomes an InputError."""
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
    tidy = lambda value: value if not isinstance(value, float) else float(f"{value:.6g}") if math.isfinite(value) else None
    return json.dumps({key: tidy(value) for key, value in record.items()}) + "\n"


def refuse(reason: str, bad: list | None):
    """A line that cannot be used: an InputError, or one more entry of `bad` where bad lines are to be skipped."""
    if bad is None:
        raise InputError(reason)
    bad.append(reason)


def print_skipped(bad: list | None):
    if bad:
        print(f"--skip-bad-lines: {len(bad)} left out, the first: {bad[0]}", file=sys.stderr)


CONVERSIONS = {  # first bytes -> what the file is, Python that makes JSONL of it
    b"PAR1": ("a Parquet file", "import pandas; pandas.read_parquet({old!r})"
                                ".to_json({new!r}, orient='records', lines=True)"),
    b"\x1f\x8b": ("a gzip file",
                  "import gzip; open({new!r}, 'wb').write(gzip.open({old!r}).read())"),
}


def refuse_other_formats(path, content: bytes):
    """InputError: the file has a known format that is not JSONL; with the command to convert it."""
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
    """Yield (line number, object) for each line that is not blank. InputError: file:line: reason; or `bad` gets the reasons.
    A JSON array of objects is read likewise, each item as a line.
    growing: the file is perhaps being written, and what stands behind its last line end is left out."""
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
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # "\ud800" is valid JSON but no text
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
    """rows: dicts, one line each."""
    with writing(path), open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def holds_state(folder: Path) -> bool:
    """Is there work of a run in it that can be taken up? run.json alone only says which run began."""
    return any(path.name != "run.json" for path in (folder / "state").glob("*"))


@contextlib.contextmanager
def locked(folder: Path, refusal: str = ""):
    """Nobody else holds the lock of `folder` while the block runs: others wait for it, or get the `refusal`. The system's lock on the folder
    itself leaves nothing on disk and ends with the process, however that ends. No lock where there is no such folder, or no such locks."""
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
    """The working folder `path`.part, which takes the name `path` when the block ends well. When it does not, it is removed,
    unless it holds the state of a run (`state/`), with which `resume` goes on; `resume` also takes a finished run up again.

    InputError, before any work: `path` exists (`overwrite` replaces it if it is an earlier output, that is, holds
    arguments.json), cannot be written, or its disk has less than `need` bytes of room.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path}: is a file, not a folder")
    occupied = path.is_dir() and any(path.iterdir())
    if occupied and not (path / "arguments.json").exists():
        raise InputError(f"--out {path}: holds other files; choose a folder that is new, empty or an earlier output")
    shown, path = path, path.resolve()  # a link to a folder is followed
    temporary = path.with_name(path.name + ".part")
    refusal = f"--out {shown}.part: another run works in it; wait for its end or choose another --out"
    with contextlib.ExitStack() as held:  # the lock of the working folder, from here to its last rename
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {shown}: cannot be written: {error.strerror}")
        with locked(temporary.parent):  # one run at a time looks and begins
            with locked(temporary, refusal):
                pass  # before anything of a running one is removed
            if (temporary / "replaced").is_dir() and not path.exists():
                (temporary / "replaced").rename(path)  # a run died between its last two renames
                occupied = True
            begun, ended = holds_state(temporary), holds_state(path)
            if resume and not begun and not ended:
                if occupied:
                    raise InputError(f"--resume: {shown} is finished and keeps no state to go on from")
                print(f"--resume: no saved state in {shown}.part, so this is a new run", file=sys.stderr)
            if not resume and not overwrite and (occupied or begun):
                raise InputError(f"--out {shown}{'' if occupied else '.part'}: exists; " + "--resume goes on with it, " * (begun or ended)
                                 + "--overwrite replaces it")
            try:
                if not (resume and begun):
                    shutil.rmtree(temporary, ignore_errors=True)
                    path.rename(temporary) if resume and ended else temporary.mkdir()
                room = shutil.disk_usage(temporary).free
                (temporary / "writable").touch()
                (temporary / "writable").unlink()
            except OSError as error:
                raise InputError(f"--out {shown}: cannot be written: {error.strerror}")
            held.enter_context(locked(temporary, refusal))
        try:
            if room < need:
                raise InputError(f"--out {shown}: {need / 1e9:.1f} GB are needed, {room / 1e9:.1f} GB are free")
            yield temporary
        except BaseException:
            if resume and ended and not begun and not path.exists():
                temporary.rename(path)  # a finished run that did not get further keeps its place
            elif not holds_state(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        with writing(path, then=f"the finished output is in {temporary}"):
            shutil.rmtree(temporary / "replaced", ignore_errors=True)
            if path.is_dir():  # two renames: one that fails leaves the earlier output whole, where removing it first could stop halfway
                path.rename(temporary / "replaced")
            try:
                temporary.rename(path)
            except OSError:
                if (temporary / "replaced").is_dir():
                    (temporary / "replaced").rename(path)
                raise
        shutil.rmtree(path / "replaced", ignore_errors=True)
