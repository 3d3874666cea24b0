"""Nothing is lost: what a run has done so far is on disk, and resuming is exact.

A run works in OUT.part, which becomes OUT at its end. Every --save-every steps the training scripts
write OUT.part/state/STEP:

    tensors.safetensors   weights, Adam's moments, the value head
    state.json            step, arguments, fingerprints of what was read, length of metrics.jsonl
    manifest.json         SHA-256 of both; a folder whose files differ from it is not used

A state is written under another name, synced to disk and renamed; only then older states are
removed. It holds no random state: every step draws from generators seeded with (seed, step), so a
resumed run equals one that was never stopped. `build_data.py` keeps finished parts of its work as
files in state/ (`parts`).
"""
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanoverify.support.files import (
    WINDOWS,
    InputError,
    json_line,
    read_json,
    write_json,
    writing,
)

# flags that may differ when a run is resumed
FREE = ("out", "resume", "steps", "save_every", "overwrite", "allow_changes")


class Learner(NamedTuple):
    """All that a step of training changes."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    value_head: torch.nn.Module | None = None


@dataclass(frozen=True)
class Saving:
    """When states are saved."""
    last: int  # the last step; it is saved in any case
    every: int  # steps between two states


def fingerprint(path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(file.read()).hexdigest()  # Python 3.10


def sync(path: Path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if WINDOWS and path.is_dir():
        return  # Windows opens no folders, and records renames by itself
    # Windows syncs only what may be written
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- the state of a training run ---------------------------------------------------------------

def save_state(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict):
    """Write folder/STEP as a whole, then remove all other states.

    InputError: the disk is full or fails; the older states stay.
    """
    target, temporary = folder / f"{step:08}", folder / f"{step:08}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        on_cpu = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
        save_file(on_cpu, temporary / "tensors.safetensors")
        write_json(temporary / "state.json", {"step": step, **state})
        names = ("tensors.safetensors", "state.json")
        manifest = {name: fingerprint(temporary / name) for name in names}
        write_json(temporary / "manifest.json", manifest)
        for name in (*names, "manifest.json"):
            sync(temporary / name)
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        temporary.rename(target)
        sync(folder)
    except (OSError, SafetensorError, InputError) as error:
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{target}: the state cannot be saved ({error}); it needs "
                         f"{need / 1e6:.0f} MB; make room, then continue with --resume")
    for other in saved_steps(folder):  # older ones, and later ones that are damaged
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def saved_steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """(tensors, state) of the newest undamaged state; None if there are no states.

    Damaged ones are named on stderr. InputError: all are damaged.
    """
    states = saved_steps(folder)
    for path in reversed(states):
        try:
            manifest = read_json(path / "manifest.json")
            for name in ("tensors.safetensors", "state.json"):
                if manifest.get(name) != fingerprint(path / name):
                    raise InputError(f"{path / name}: its checksum is not that of manifest.json")
            # copies, because Windows neither renames nor removes what is still mapped
            mapped = load_file(path / "tensors.safetensors")
            tensors = {name: tensor.clone() for name, tensor in mapped.items()}
            return tensors, read_json(path / "state.json")
        except (InputError, OSError, SafetensorError) as error:
            print(f"damaged, not used: {error}", file=sys.stderr)
    if states:
        raise InputError(f"{folder}: every saved state is damaged; start again with --overwrite")
    return None


def training_tensors(model, optimizer, value_head=None) -> dict[str, torch.Tensor]:
    """Everything a step changes, by name.

    `model.` parameters, `optimizer.` moments by parameter number, `value.` parameters.
    """
    tensors = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    if value_head:
        tensors |= {f"value.{name}": x for name, x in value_head.named_parameters()}
    return tensors


def restore(tensors: dict[str, torch.Tensor], model, optimizer, value_head=None):
    """Put what `training_tensors` gave back in place."""
    with torch.no_grad():
        for prefix, module in (("model.", model), ("value.", value_head)):
            for name, parameter in module.named_parameters() if module else ():
                parameter.copy_(tensors[prefix + name])
    moments = {}
    for name in tensors:
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensors[name]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def go_on(folder: Path, run: dict, learner: Learner, allow_changes: bool) -> dict:
    """The state from which a run continues; {"step": 0} for a new run.

    The tensors are back in place, and metrics.jsonl ends where it did when the state was saved.
    run: what must be the same as then (`identity`).
    """
    saved = load_state(folder / "state")
    if not saved:
        with writing(folder / "metrics.jsonl"):
            (folder / "metrics.jsonl").write_bytes(b"")
        return {"step": 0}
    tensors, state = saved
    print(f"resuming after step {state['step']}")
    refuse_changes(state["run"], run, allow_changes)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes()[:state["metrics_bytes"]] if log.exists() else b""
    if len(lines) < state["metrics_bytes"] and not allow_changes:
        raise InputError(f"{log}: is missing or was cut since the state was saved; put it back "
                         "(--allow-changes continues without those lines)")
    try:
        restore(tensors, *learner)
    except (KeyError, ValueError, RuntimeError) as error:  # another model or --advantage
        raise InputError(f"{folder / 'state'}: its tensors do not fit this model: {error}")
    with writing(log):
        log.touch()
        os.truncate(log, lines.rfind(b"\n") + 1)
    return state


def save_step(folder: Path, line: dict, state: dict, learner: Learner, saving: Saving,
              caught: list):
    """Append the line of a step to metrics.jsonl, and save the state if it is time.

    After a signal, `caught` holds its number: the state is saved, and the process ends with exit
    code 128 + that number (130 for Ctrl-C, 143 for SIGTERM).
    """
    step, path = line["step"], folder / "metrics.jsonl"
    text, then = json_line(line), "make room, then continue with --resume"
    with writing(path, len(text), then), open(path, "a", encoding="utf-8") as log:
        log.write(text)
    if step % saving.every == 0 or step == saving.last or caught:
        with writing(path, len(text), then):
            sync(path)
        state = {**state, "metrics_bytes": path.stat().st_size}
        tensors = training_tensors(*learner)
        refuse_infinite(tensors, step)
        save_state(folder / "state", step, tensors, state)
    if caught:
        print(f"stopped after step {step}; continue with --resume", file=sys.stderr)
        raise SystemExit(128 + caught[0])


def refuse_infinite(tensors: dict[str, torch.Tensor], step: int):
    """InputError: a weight or a moment is NaN or infinite. Such a model is not saved."""
    largest = torch.stack([tensor.abs().max().float() for tensor in tensors.values()])
    if not largest.isfinite().all():
        raise InputError(f"step {step}: the weights are not finite any more; lower --lr, and "
                         "continue from the last saved state with --resume --allow-changes")


def state_bytes(model) -> int:
    """Room on disk for a state, the next one being written, and the trained model.

    A state holds weights and two moments; all are in fp32.
    """
    return 4 * sum(parameter.numel() for parameter in model.parameters()) * (3 + 3 + 1)


def identity(args, *files) -> dict:
    """What makes two runs the same: flags, and the content of `files` and of question files.

    Threads count, too: sums in another order round differently.
    """
    files += (*(args.questions or ()), *(args.test_questions or ()))
    flags = {key: value for key, value in vars(args).items() if key not in FREE}
    prints = {str(path): fingerprint(path) for path in files}
    return {**flags, "threads": torch.get_num_threads(), **prints}


def refuse_changes(saved: dict, now: dict, allowed: bool):
    """InputError: arguments or fingerprints of a saved run and of this one differ; which ones."""
    keys = sorted(saved.keys() | now.keys())
    changes = [f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
               for key in keys if saved.get(key) != now.get(key)]
    if changes and not allowed:
        raise InputError(f"--resume: not the same run: {'; '.join(changes)} "
                         "(--allow-changes continues anyway)")


@contextlib.contextmanager
def signals():
    """A list that gets the number of the first SIGINT, SIGTERM or, on Windows, Ctrl-Break; a second
    one ends the process at once."""
    caught = []

    def note(number, frame):
        if caught:
            os._exit(128 + number)
        caught.append(number)
        print("\nFinishing this step. Press Ctrl-C again to stop now.", file=sys.stderr)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- parts of a long list ----------------------------------------------------------------------

def same_run(folder: Path, run: dict, allowed: bool):
    """Note in `folder` what this run is.

    InputError: another run began there, and changes are not `allowed`.
    """
    with writing(folder / "run.json"):
        folder.mkdir(exist_ok=True)
        if (folder / "run.json").exists():
            refuse_changes(read_json(folder / "run.json"), run, allowed)
        write_json(folder / "run.tmp", run)
        (folder / "run.tmp").replace(folder / "run.json")


def parts(folder: Path, name: str, items: list, size: int, work):
    """[work(number, slice) for slices of `size` items], joined.

    Each result is a list of JSON values. It is kept in folder/NAME-NUMBER.json and not computed
    again. The file also holds a checksum of items and result: one that is damaged, or of other
    items, is named on stderr and computed again.
    """
    joined = []
    for number, start in enumerate(range(0, len(items), size)):
        path, part = folder / f"{name}-{number:05}.json", items[start: start + size]
        rows = read_part(path, part) if path.exists() else None
        if rows is None:
            rows = work(number, part)
            write_part(path, part, rows)
        joined += rows
    return joined


def part_checksum(part: list, text: bytes) -> bytes:
    return hashlib.sha256(repr(part).encode() + text).hexdigest().encode()


def read_part(path: Path, part: list) -> list | None:
    """The saved result for these items; None if the file cannot be used."""
    checksum, _, text = path.read_bytes().partition(b"\n")
    if part_checksum(part, text) == checksum:
        return json.loads(text)
    print(f"damaged or of other questions, computed again: {path}", file=sys.stderr)


def write_part(path: Path, part: list, rows: list):
    text = json.dumps(rows).encode()
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(part_checksum(part, text) + b"\n" + text)
        sync(temporary)
        path.unlink(missing_ok=True)  # a damaged one: Windows renames nothing over it
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be saved ({error}); it needs {len(text) / 1e6:.1f} MB; "
                         "make room, then continue with --resume")
