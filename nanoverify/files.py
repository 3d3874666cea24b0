"""What all stages share with the outside: one-line errors, JSONL, and output folders that appear whole or not at all."""
import contextlib
import json
import shutil
import sys
from pathlib import Path


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, line or flag and what to do."""


def run(main):
    """Call a script's main(); an InputError or a lack of memory becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU has no class of its own
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print("error: out of memory: lower --micro-tokens (training) or --batch-size (sampling), set --recompute, or take a smaller --model: "
              + str(error).splitlines()[0], file=sys.stderr)
        sys.exit(2)


def read_json(path) -> dict:
    """One JSON object from a file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}")
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_json(path, content: dict):
    Path(path).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_jsonl(path, growing: bool = False):
    """Yield (line number, object) for each line that is not blank. InputError: file:line: reason.
    growing: the file is perhaps being written, and what stands behind its last line end is left out."""
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}")
    for number, line in enumerate(lines[:-1] if growing else lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # "\ud800" is valid JSON but no text
        except UnicodeError:
            raise InputError(f"{path}:{number}: not valid UTF-8")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not valid JSON: {error}")
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def write_jsonl(path, rows):
    """rows: dicts, one line each."""
    try:
        file = open(path, "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}")
    with file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def output_folder(path):
    """A temporary folder beside `path`, which takes its name when the block ends well and is removed when it does not.

    An existing `path` is replaced only if it is an earlier output (it holds arguments.json) or empty.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path}: is a file, not a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / "arguments.json").exists():
        raise InputError(f"--out {path}: holds other files; choose a folder that is new, empty or an earlier output")
    path = path.resolve()  # a link to a folder is followed
    temporary = path.with_name(path.name + ".part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}")
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
