"""Nothing is lost: what a run has done so far, on disk, and exact resume.

A run works in OUT.part, which becomes OUT at its end. Every --save-every steps the training scripts write OUT.part/state/STEP:

    tensors.safetensors   weights, Adam's moments, the value head
    state.json            step, arguments, fingerprints of what was read, length of metrics.jsonl
    manifest.json         SHA-256 of both; a folder without it, or that differs from it, is not used

It is written under another name, synced to disk and renamed; only then older ones go. There is no random state in it:
every step draws from generators seeded with (seed, step), so a run that goes on equals one that was never stopped.
`build_data.py` keeps finished parts of its work as files in state/ (`parts`).
"""
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanoverify.support.files import WINDOWS, InputError, json_line, read_json, write_json, writing

FREE = ("out", "resume", "steps", "save_every", "keep", "overwrite", "allow_changes")  # flags that may differ when a run goes on


def fingerprint(path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()


def sync(path: Path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if WINDOWS and path.is_dir():
        return  # it opens no folders, and notes renames by itself
    # Windows syncs only what may be written
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- the state of a training run -----------------------------------------------------------------------------------

def save_state(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict, keep: int):
    """Write folder/STEP whole, then remove all but the newest `keep`. InputError: the disk is full or fails; the older states stay."""
    target, temporary = folder / f"{step:08}", folder / f"{step:08}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}, temporary / "tensors.safetensors")
        write_json(temporary / "state.json", {"step": step, **state})
        names = ("tensors.safetensors", "state.json")
        write_json(temporary / "manifest.json", {name: fingerprint(temporary / name) for name in names})
        for name in (*names, "manifest.json"):
            sync(temporary / name)
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        temporary.rename(target)
        sync(folder)
    except (OSError, SafetensorError, InputError) as error:
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{target}: the state cannot be saved ({error}); it needs {need / 1e6:.0f} MB; make room, then go on with --resume")
    states = saved_steps(folder)
    later = states[states.index(target) + 1:]  # damaged ones, which the run did not go on from
    for old in states[:states.index(target) + 1][:-keep] + later:
        shutil.rmtree(old, ignore_errors=True)


def saved_steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """(tensors, state) of the newest undamaged state, or None where there is none at all. Damaged ones are named on stderr.

    InputError: all are damaged.
    """
    states = saved_steps(folder)
    for path in reversed(states):
        try:
            manifest = read_json(path / "manifest.json")
            for name in ("tensors.safetensors", "state.json"):
                if manifest.get(name) != fingerprint(path / name):
                    raise InputError(f"{path / name}: does not have the checksum of manifest.json")
            # copies: Windows renames no folder, and removes no file, whose content is still mapped
            mapped = load_file(path / "tensors.safetensors")
            tensors = {name: tensor.clone() for name, tensor in mapped.items()}
            return tensors, read_json(path / "state.json")
        except (InputError, OSError, SafetensorError) as error:
            print(f"damaged, not used: {error}", file=sys.stderr)
    if states:
        raise InputError(f"{folder}: every saved state is damaged; start anew with --overwrite")
    return None


def training_tensors(model, optimizer, value_head=None) -> dict[str, torch.Tensor]:
    """Everything a step changes: `model.` parameters, `optimizer.` moments by parameter number, `value.` parameters."""
    tensors = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    return tensors | ({f"value.{name}": parameter for name, parameter in value_head.named_parameters()} if value_head else {})


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


def go_on(folder: Path, run: dict, args, model, optimizer, value_head=None) -> dict:
    """The state from which a run goes on: its tensors are back in place and metrics.jsonl ends where it did. {"step": 0} for a new run.

    run: what must be the same as when the state was saved (`identity`).
    """
    found = load_state(folder / "state")
    if not found:
        with writing(folder / "metrics.jsonl"):
            (folder / "metrics.jsonl").write_bytes(b"")
        return {"step": 0}
    tensors, state = found
    print(f"going on behind step {state['step']}")
    refuse_changes(state["run"], run, args.allow_changes)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes()[:state["metrics_bytes"]] if log.exists() else b""
    if len(lines) < state["metrics_bytes"] and not args.allow_changes:
        raise InputError(f"{log}: is missing or was cut since the state was saved; put it back (--allow-changes goes on without those lines)")
    try:
        restore(tensors, model, optimizer, value_head)
    except (KeyError, ValueError, RuntimeError) as error:  # --allow-changes with another model or --advantage
        raise InputError(f"{folder / 'state'}: its tensors do not fit this model: {error}")
    with writing(log):
        log.touch()
        os.truncate(log, lines.rfind(b"\n") + 1)
    return state


def save_step(folder: Path, line: dict, last: int, state: dict, args, caught: list, model, optimizer, value_head=None):
    """Append the line of a step to metrics.jsonl. Every --save-every steps, at step `last` and after a signal save the state;
    after a signal end the process, with exit code 128 + its number (130 for Ctrl-C, 143 for SIGTERM)."""
    text, path, then = json_line(line), folder / "metrics.jsonl", "make room, then go on with --resume"
    with writing(path, len(text), then), open(path, "a", encoding="utf-8") as log:
        log.write(text)
    if line["step"] % args.save_every == 0 or line["step"] == last or caught:
        with writing(path, len(text), then):
            sync(path)
        save_state(folder / "state", line["step"], training_tensors(model, optimizer, value_head),
                   {**state, "metrics_bytes": path.stat().st_size}, args.keep)
    if caught:
        print(f"stopped behind step {line['step']}; --resume goes on", file=sys.stderr)
        raise SystemExit(128 + caught[0])


def state_bytes(model, keep: int) -> int:
    """Room for `keep` states and the one being written (weights, two moments) and for the trained model, in fp32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters()) * (3 * (keep + 1) + 1)


def identity(args, *files) -> dict:
    """What makes two runs the same: their flags and the content of `files` and of the question files."""
    files += (*(args.questions or ()), *(args.test_questions or ()))
    flags = {key: value for key, value in vars(args).items() if key not in FREE}
    return flags | {str(path): fingerprint(path) for path in files}


def refuse_changes(saved: dict, now: dict, allowed: bool):
    """InputError listing what differs between a saved run and this one, arguments and fingerprints alike."""
    changes = [f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if changes and not allowed:
        raise InputError(f"--resume: not the same run: {'; '.join(changes)} (--allow-changes goes on all the same)")


@contextlib.contextmanager
def signals():
    """A list that gets the number of the first SIGINT, SIGTERM or, on Windows, Ctrl-Break; a second
    one ends the process at once."""
    caught = []

    def note(number, frame):
        if caught:
            os._exit(128 + number)
        caught.append(number)
        print("\nstopping behind this step; once more to stop at once", file=sys.stderr)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- parts of a long list ------------------------------------------------------------------------------------------

def same_run(folder: Path, run: dict, allowed: bool):
    """Note in `folder` what this run is, or InputError if another one began there, unless changes are allowed."""
    with writing(folder / "run.json"):
        folder.mkdir(exist_ok=True)
        if (folder / "run.json").exists():
            refuse_changes(read_json(folder / "run.json"), run, allowed)
        write_json(folder / "run.tmp", run)
        (folder / "run.tmp").replace(folder / "run.json")


def parts(folder: Path, name: str, items: list, size: int, work):
    """[work(number, slice) for slices of `size` items], joined; each result, a list of JSON values, is kept in folder/NAME-NUMBER.json
    with the checksum of items and result, and is not computed again. A file that is damaged or of other items is named and done anew."""
    joined = []
    for number, start in enumerate(range(0, len(items), size)):
        path, part = folder / f"{name}-{number:05}.json", items[start: start + size]
        checksum_of = lambda text: hashlib.sha256(repr(part).encode() + text).hexdigest().encode()
        if path.exists():
            checksum, _, text = path.read_bytes().partition(b"\n")
            if checksum_of(text) == checksum:
                joined += json.loads(text)
                continue
            print(f"damaged or of other questions, done anew: {path}", file=sys.stderr)
        rows = work(number, part)
        text = json.dumps(rows).encode()
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(checksum_of(text) + b"\n" + text)
            sync(temporary)
            path.unlink(missing_ok=True)  # a damaged one: Windows renames nothing over it
            temporary.rename(path)
            sync(folder)
        except OSError as error:
            raise InputError(f"{path}: cannot be saved ({error}); it needs {len(text) / 1e6:.1f} MB; make room, then go on with --resume")
        joined += rows
    return joined
