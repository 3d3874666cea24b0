"""Nothing is lost: states are whole or not used, a resumed run equals one never stopped,
faults leave the state before intact."""
import builtins
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_input import GOOD, SMALL, left_behind, refusal

import build_data
import train_rl
import train_sft
from nanoverify import checkpoint, ppo, pretrain
from nanoverify.bench import kill
from nanoverify.evaluate import respond
from nanoverify.study import arms
from nanoverify.support import files, state
from nanoverify.support.files import (
    InputError,
    output_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from nanoverify.support.stage import batch_of

pytestmark = pytest.mark.usefixtures("elsewhere")


def write(folder, step):
    state.save_state(folder, step, {"model.w": torch.full((3,), float(step))}, {"note": "ä"})


def write_both(folder, first, second):
    """Two states, as when a run was killed before the older one was removed."""
    write(folder, first)
    shutil.copytree(folder / f"{first:08}", folder.with_name("aside"))
    write(folder, second)
    folder.with_name("aside").rename(folder / f"{first:08}")


def test_states(tmp_path):
    """Bug: older states stay, the newest is not the one read, or a leftover of a killed save counts
    as a state."""
    assert state.load_state(tmp_path / "state") is None
    write(tmp_path / "state", 1)
    write_both(tmp_path / "state", 2, 10)
    (tmp_path / "state" / "00000011.tmp").mkdir()
    assert [path.name for path in state.saved_steps(tmp_path / "state")] == ["00000002", "00000010"]
    tensors, found = state.load_state(tmp_path / "state")
    assert tensors["model.w"].tolist() == [10.0] * 3 and found == {"step": 10, "note": "ä"}


def test_a_damaged_newer_state_gives_way(tmp_path):
    """Bug: a run that went on from an older state saves, and the save is removed in favour of the
    damaged one with a higher number."""
    write_both(tmp_path / "state", 10, 20)
    write(tmp_path / "state", 12)
    assert [path.name for path in state.saved_steps(tmp_path / "state")] == ["00000012"]


def test_damage_is_named(tmp_path, capsys):
    """Bug: a cut or flipped file is read as a state, or ends in a traceback, or the state before it
    is not used."""
    rng = random.Random(0)
    write_both(tmp_path / "state", 1, 2)
    newest = tmp_path / "state" / "00000002"
    for _ in range(200):
        path = newest / rng.choice(("tensors.safetensors", "state.json", "manifest.json"))
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] if rng.random() < 0.5 else whole[:at]
                         + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])
        tensors, found = state.load_state(tmp_path / "state")
        said = capsys.readouterr().err
        # white space and names of JSON may differ without harm; then the state is the same
        assert found["step"] == 1 and str(newest) in said or found == {
            "step": 2, "note": "ä"} and path.name == "manifest.json", (path.name, at)
        path.write_bytes(whole)
    for step in (1, 2):
        (tmp_path / "state" / f"{step:08}" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="every saved state is damaged"):
        state.load_state(tmp_path / "state")


def failing(real, nth: int, number: int):
    """`real`, except that the n-th call raises an OSError of this number."""
    count = [0]

    def faulty(*args, **kwargs):
        count[0] += 1
        if count[0] == nth:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)
    return faulty


@pytest.mark.parametrize("call", ["sync", "save_file", "write_json", "rename"])
@pytest.mark.parametrize("number", [28, 5])
def test_write_faults(tmp_path, monkeypatch, call, number):
    """Bug: a full or failing disk during a save loses the state before, or the message names
    neither path nor room."""
    write(tmp_path / "state", 1)
    for nth in range(1, 6):
        with monkeypatch.context() as patch:
            owner, name = (state.Path, "rename") if call == "rename" else (state, call)
            patch.setattr(owner, name, failing(getattr(owner, name), nth, number))
            if nth <= {"sync": 5, "save_file": 1, "write_json": 2, "rename": 1}[call]:
                with pytest.raises(InputError,
                                   match=rf"0000000[23].*{os.strerror(number)}.*needs 0 MB"):
                    write(tmp_path / "state", 2)
        tensors, found = state.load_state(tmp_path / "state")
        assert found["step"] in (1, 2) and tensors["model.w"].tolist() == [float(found["step"])] * 3
        assert not list((tmp_path / "state").glob("*.tmp"))


STRIDE = 7  # of the faults of a whole run; 1 tries all


class Disk:
    """Counts every call that changes the disk (open for writing, write, close, fsync, rename,
    truncate, unlink, rmdir, mkdir, the weights written by safetensors) and lets the one with number
    `fails` fail. A write that fails has written half of its text, as a full disk does."""

    def __init__(self, patch, number: int, fails: int):
        self.count, self.fails, self.number, self.failed = 0, fails, number, ""
        for name in ("fsync", "rename", "replace", "truncate", "ftruncate", "unlink", "remove",
                     "rmdir", "mkdir"):
            patch.setattr(os, name, self.faulty(getattr(os, name), name))
        for module in (state, checkpoint):
            patch.setattr(module, "save_file", self.faulty(module.save_file, "save_file"))
        real = io.open
        opened = self.faulty(real, "open")

        def open_(file, mode="r", *args, **kwargs):
            if not set(mode) & set("wax+"):
                return real(file, mode, *args, **kwargs)
            handle = opened(file, mode, *args, **kwargs)
            write, close = handle.write, handle.close
            handle.write = self.faulty(write, "write",
                                       half=lambda text: write(text[: len(text) // 2]))
            handle.close = lambda: None if handle.closed else self.faulty(close, "close",
                                                                          half=close)()
            return handle

        patch.setattr(io, "open", open_)
        patch.setattr(builtins, "open", open_)

    def faulty(self, real, name, half=lambda *args, **kwargs: None):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.fails:
                self.failed = name
                half(*args, **kwargs)
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)
        return call


def each_fault(monkeypatch, number, save, check):
    """save() again and again, its 1st, 2nd, ... change of the disk failing, until one passes
    without a fault; check() after each. -> what failed"""
    failed = []
    while True:
        with monkeypatch.context() as patch:
            disk, said = Disk(patch, number, len(failed) + 1), None
            try:
                save()
            except InputError as error:  # anything else is a traceback
                said = str(error)
        check(said)
        if not disk.failed:
            assert said is None
            return failed
        failed.append(disk.failed if said else f"{disk.failed} without harm")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_fault_of_a_step(tmp_path, monkeypatch, number):
    """Bug: a fault at any change of the disk loses the state before, leaves a log that cannot be
    gone on with, ends in a traceback, or is passed over without the new state being there."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    learner, saving = state.Learner(model, optimizer), state.Saving(last=10 ** 6, every=1)
    run, steps = {"lr": 1}, [0]
    state.go_on(tmp_path, run, learner, False)

    def save():
        steps[0] += 1
        torch.nn.init.constant_(model.weight, steps[0])
        line = {"step": steps[0], "note": "x" * 100}
        state.save_step(tmp_path, line, {"run": run}, learner, saving, [])

    def check(said):
        found = state.go_on(tmp_path, run, learner, False)
        # the new one is whole already where the last sync fails
        assert found["step"] == steps[0] or said and found["step"] == good[-1]
        if said:
            assert str(tmp_path) in said and os.strerror(
                number) in said and "needs" in said and "--resume" in said, said
        assert model.weight.flatten().tolist() == [float(found["step"])] * 4
        assert [json.loads(line)["step"]
                for line in open(tmp_path / "metrics.jsonl")][-1] == found["step"]
        good.append(found["step"])
        steps[0] = found["step"]

    good = []
    save(), check(None)
    failed = each_fault(monkeypatch, number, save, check)
    assert {"write", "close", "open", "fsync", "rename", "mkdir", "save_file",
            "unlink without harm", "rmdir without harm"} <= set(failed), failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_fault_of_a_part(tmp_path, monkeypatch, number):
    """Bug: a half-written part is taken for a whole one, parts before it are lost, or run.json is
    left half-written."""
    def save():
        state.same_run(tmp_path / "state", {"seed": 1}, False)
        assert state.parts(tmp_path / "state", "x", list(range(10)), 5,
                           lambda number, part: [item * 2
                                                 for item in part]) == list(range(0, 20, 2))

    def check(said):
        assert said is None or str(tmp_path) in said and os.strerror(
            number) in said and "make room" in said
        for path in (tmp_path / "state").glob("x-*.json"):
            checksum, _, text = path.read_bytes().partition(b"\n")
            assert len(checksum) == 64 and len(json.loads(text)) == 5

    failed = each_fault(monkeypatch, number,
                        lambda: (shutil.rmtree(tmp_path / "state", ignore_errors=True), save()),
                        check)
    assert {"write", "close", "open", "fsync", "rename", "mkdir"} <= set(failed), failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_fault_of_rows_and_settings(tmp_path, monkeypatch, number):
    """Bug: a full disk under rollouts.jsonl, responses.jsonl or arguments.json ends in a
    traceback."""
    def save():
        write_jsonl(tmp_path / "rollouts.jsonl", ({"step": n} for n in range(3)))
        write_json(tmp_path / "rollouts.jsonl", {"a": 1})

    failed = each_fault(monkeypatch, number, save, lambda said: said is None
                        or "rollouts.jsonl: cannot be written: " + os.strerror(number) in said
                        or pytest.fail(said))
    assert failed == ["open", "write", "write", "write", "close", "open", "write", "close"]


def test_a_limit_on_the_size_of_files(tmp_path):
    """Bug: a write that the system itself cuts short, also inside safetensors, loses the state
    before or kills the process."""
    resource = pytest.importorskip("resource")
    write(tmp_path / "state", 1)
    before, refused = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    for size in range(0, 400, 10):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            write(tmp_path / "state", 2)
        except InputError as error:
            assert "00000002: the state cannot be saved" in str(error) and "make room" in str(error)
            refused += 1
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert state.load_state(tmp_path / "state")[1]["step"] == 1
        assert left_behind(tmp_path / "state") == sorted(
            ["00000001", "tensors.safetensors", "state.json", "manifest.json"])
    assert refused > 10 and state.load_state(tmp_path / "state")[1]["step"] == 2


def test_batches_of_a_step():
    """Bug: a step's batch depends on the steps before it, an item is left out of a round, or every
    round has one order."""
    batches = [batch_of(list("abcdefg"), 3, step, seed=5) for step in range(1, 10)]
    assert [len(batch) for batch in batches] == [3, 3, 1] * 3
    rounds = [sum(batches[i: i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(found) == list("abcdefg") for found in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert batch_of(list("abcdefg"), 3, 1, seed=6) != batches[0]
    assert batch_of(list("ab"), 3, 2, seed=5) in (["a", "b"], ["b", "a"])


# ---- the scripts -------------------------------------------------------------------------------

def run_sft(policy, out, *flags):
    train_sft.main(["--model", policy, *SMALL, "--data", "data.jsonl", "--batch", "2", "--epochs",
                    "3", "--out", out, *flags])


def run_rl(policy, out, *flags, **calls):
    train_rl.main(["--model", policy, *SMALL, "--prompts", "2", "--samples", "2", "--out", out,
                   *flags], **calls)


@pytest.fixture(autouse=True)
def rewards(monkeypatch):
    """A policy that knows nothing would always get the same reward, and learn nothing."""
    monkeypatch.setattr(ppo, "outcome_reward",
                        lambda trajectory: 1.0 if sum(trajectory.ids) % 2 else -1.0)


@pytest.fixture
def data(elsewhere):
    write_jsonl("data.jsonl", [{**GOOD, "id": str(i), "question": f"1 + {i}?"} for i in range(5)])


def assert_equal_runs():
    assert kill.result(Path("whole")) == kill.result(Path("twice"))
    # something moved
    assert any(line["grad_norm"] > 0 for _, line in read_jsonl("whole/metrics.jsonl"))
    whole, twice = (state.load_state(Path(name) / "state")[0] for name in ("whole", "twice"))
    assert whole.keys() == twice.keys() and any(name.startswith("optimizer.") for name in whole)
    assert all(torch.equal(whole[name], twice[name]) for name in whole)


def test_resume_equals_one_run(policy, data, capsys):
    """Bug: weights, moments, batches or the log of a run that went on differ from those of a run
    never stopped."""
    run_sft(policy, "whole", "--steps", "5")
    run_sft(policy, "twice", "--steps", "2")
    with open("twice/metrics.jsonl", "a") as log:
        log.write('{"step": 3}\n')  # of a step whose state was not saved
    run_sft(policy, "twice", "--steps", "4", "--resume", "--save-every", "3")
    assert "resuming after step 2" in capsys.readouterr().out
    run_sft(policy, "twice", "--steps", "5", "--resume")
    assert_equal_runs()


def once(model, tokenizer, problems, sampling):
    """As arms.offline_pool, but nothing is left out: this policy never answers in turn."""
    rows = respond(model, tokenizer, problems, sampling)
    return [[(t, [float(len(t.ids) % 3 - 1)] * len(t.actions)) for t in row] for row in rows]


@pytest.mark.parametrize("flags, calls", [
    (["--beta", "0"], {}), (["--beta", "0.5"], {}), (["--advantage", "gae"], {}),
    ([], {"mark": arms.shuffled}),
    (["--beta", "0.5"], {"choose": once, "collect": arms.from_pool})], ids=str)
def test_resume_of_rl_equals_one_run(policy, elsewhere, flags, calls, capsys):
    """Bug: the same, or the reference or the offline responses of a run that went on are those of
    the resumed policy."""
    flags = [*flags, "--steps", "6", "--lr", "0.01", "--save-every", "2"]
    run_rl(policy, "whole", *flags, **calls)
    real = calls.get("collect", train_rl.collect)
    for stop in (4, 6):
        def collect(model, tokenizer, asked, sampling, stop=stop):
            step = sampling.seed  # --seed is 0
            return real(model, tokenizer, asked, sampling) if step < stop else 1 / 0
        collect.__name__ = real.__name__
        with pytest.raises(ZeroDivisionError):
            run_rl(policy, "twice", *flags, *["--resume"] * (stop > 4),
                   **{**calls, "collect": collect})
    run_rl(policy, "twice", *flags, "--resume", **calls)
    assert "resuming after step 4" in capsys.readouterr().out
    assert_equal_runs()
    if "0.5" in flags:
        assert any(abs(line["kl_to_reference"]) > 1e-3
                   for _, line in read_jsonl("whole/metrics.jsonl"))


def test_rl_goes_on_to_more_steps(policy, elsewhere):
    """Bug: a finished run cannot continue, or its learning rate is not that of the new number of
    steps."""
    run_rl(policy, "out", "--steps", "2", "--lr", "1")
    run_rl(policy, "out", "--steps", "8", "--lr", "1", "--resume")
    rates = [line["lr"] for _, line in read_jsonl("out/metrics.jsonl")]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.mark.parametrize("run", [run_sft, run_rl])
def test_faults_of_a_whole_run(policy, data, run, monkeypatch, capsys):
    """Bug: a full disk at the beginning or the end of a run (folders, rollouts, the model, its
    answers, the last rename) ends in a traceback, or the run cannot be taken up and brought to the
    same end."""
    run(policy, "whole", "--steps", "1")
    failed = 0
    for fails in range(1, 1000, STRIDE):
        with monkeypatch.context() as patch:
            disk = Disk(patch, errno.ENOSPC, fails)
            try:
                files.run(lambda: run(policy, "out", "--steps", "1", "--overwrite"))
            except SystemExit as exit:
                assert exit.code == 2
                shown = capsys.readouterr().err.split("\r")[-1].strip().removeprefix("SFT: ")
                assert "error: " in shown and "out" in shown and "No space left" in shown, (
                    fails, disk.failed, shown)
                failed += 1
        if os.path.exists("out.part"):
            run(policy, "out", "--steps", "1", "--resume")
        if os.path.exists("out"):
            assert kill.result(Path("out")) == kill.result(Path("whole"))
        if not disk.failed:
            break
    assert failed > 40 // STRIDE


@pytest.mark.parametrize("run", [run_sft, run_rl])
def test_one_seed_one_result(policy, data, run):
    """Bug: something is drawn from a generator that the seed does not reach, from a set's order or
    from the time."""
    for out in ("one", "two"):
        run(policy, out, "--steps", "3")
    run(policy, "other", "--steps", "3", "--seed", "1")
    one, two, other = (kill.result(Path(out)) for out in ("one", "two", "other"))
    assert one == two and {"model.safetensors", "metrics.jsonl", "responses.jsonl"} <= one.keys()
    assert other["metrics.jsonl"] != one["metrics.jsonl"]


def test_a_lost_log(policy, data, capsys):
    """Bug: a traceback where metrics.jsonl is gone, or zero bytes in place of its lines where it
    was cut."""
    def again(*flags):
        return refusal(lambda argv: run_sft(policy, "out", *argv), flags, capsys)
    run_sft(policy, "out", "--steps", "2")
    whole = Path("out/metrics.jsonl").read_bytes()
    for content in (None, b"", whole[:-30]):
        Path("out/metrics.jsonl").unlink(missing_ok=True)
        if content is not None:
            Path("out/metrics.jsonl").write_bytes(content)
        assert "metrics.jsonl: is missing or was cut" in again("--resume", "--steps", "3")
    run_sft(policy, "out", "--resume", "--steps", "3", "--allow-changes")
    assert [json.loads(line)["step"] for line in open("out/metrics.jsonl")] == [1, 3]


def test_a_state_that_does_not_fit(policy, data, capsys):
    """Bug: --allow-changes with another model or another kind of advantage ends in a traceback of
    load_state_dict."""
    run_rl(policy, "rl", "--steps", "1")
    gae = ["--steps", "2", "--resume", "--allow-changes", "--advantage", "gae"]
    assert "tensors do not fit this model" in refusal(lambda argv: run_rl(policy, "rl", *argv), gae,
                                                      capsys)


# ---- two runs at once, and outputs that are there already --------------------------------------

HOLD = """
import time
from nanoverify.support.files import output_folder
with output_folder('out') as folder:
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(files.fcntl is None, reason="no locks here")
def test_two_runs_at_once():
    """Bug: a second run removes or shares the folder of one that is at work; one killed with -9
    locks everybody out."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE,
                               env={**os.environ,
                                    "PYTHONPATH": str(Path(files.__file__).parents[2])})
    assert process.stdout.readline() == b"held\n"
    Path("out.part/work").write_text("of the first")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError,
                           match="--out out.part: another run works in it"):
            with output_folder("out", **flags):
                pytest.fail("two runs in one folder")
    assert Path("out.part/work").read_text() == "of the first"
    process.kill()
    process.wait()
    for _ in range(2):  # nor does a run that ended lock out the next one
        with output_folder("out", overwrite=True) as folder:
            write_json(folder / "arguments.json", {})
    assert left_behind(Path()) == ["arguments.json", "out"]


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_of_somebody_else_is_not_removed(flags):
    """Bug: what happens to be called OUT.part is deleted, and nobody was asked."""
    Path("out.part").mkdir()
    Path("out.part/thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="out.part, which holds other files; move it away"):
        with output_folder("out", **flags):
            pytest.fail("works in a folder of somebody else")
    assert Path("out.part/thesis.tex").read_text() == "mine"


def test_a_folder_of_a_run_that_died_is_taken(monkeypatch):
    """Bug: a run that was killed before its first state blocks its output for ever."""
    Path("out.part").mkdir()
    Path("out.part", files.MARK).touch()
    Path("out.part/half.jsonl").write_text("{")
    with output_folder("out") as folder:
        write_json(folder / "arguments.json", {})
    assert left_behind(Path()) == ["arguments.json", "out"]


def test_an_output_that_appears_meanwhile_is_kept(monkeypatch):
    """Bug: a run looks for an earlier output, waits for the lock while another run finishes, and
    replaces what that one wrote."""
    @contextlib.contextmanager
    def finishes_meanwhile(folder, refusal=""):
        if not Path("out").exists():
            Path("out").mkdir()
            write_json("out/arguments.json", {"of the": "other run"})
        yield
    monkeypatch.setattr(files, "locked", finishes_meanwhile)
    with pytest.raises(InputError, match="--out out: exists; --overwrite replaces it"):
        with output_folder("out"):
            pytest.fail("replaces the output of another run")
    assert read_json("out/arguments.json") == {"of the": "other run"}


def test_weights_can_be_read_by_others():
    """Bug: weights have mode 0600 beside files that a group or everybody may read."""
    with output_folder("out") as folder:
        write_json(folder / "arguments.json", {})
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o600)  # as some versions do
        (folder / "arguments.json").chmod(0o640)
    assert Path("out/model.safetensors").stat().st_mode & 0o777 == 0o640


def test_pretrain_asks_before_it_replaces(capsys):
    """Bug: python -m nanoverify.pretrain replaces a model that took hours."""
    Path("out").mkdir()
    write_json("out/arguments.json", {"an earlier": "model"})
    assert "--out out: exists; --overwrite" in refusal(pretrain.main,
                                                       ["--out", "out", "--steps", "1"], capsys)
    assert read_json("out/arguments.json") == {"an earlier": "model"}


def test_other_runs_are_refused(policy, data, capsys):
    """Bug: a run continues with other flags or other data as if nothing were; --allow-changes has
    no effect; an output is overwritten."""
    run_sft(policy, "out", "--steps", "2")

    def again(*flags):
        return refusal(lambda argv: run_sft(policy, "out", *argv), flags, capsys)
    assert "--overwrite" in again()
    assert "lr was 0.001, is 0.5" in again("--resume", "--lr", "0.5")
    # the finished output stays where it was
    assert os.path.exists("out/model.safetensors") and not os.path.exists("out.part")
    write_jsonl("data.jsonl", [GOOD] * 5)
    assert "data.jsonl was '" in again("--resume")
    run_sft(policy, "out", "--resume", "--allow-changes", "--steps", "3")
    assert [json.loads(line)["step"] for line in open("out/metrics.jsonl")] == [1, 2, 3]
    run_sft(policy, "out", "--overwrite", "--steps", "1")
    assert [json.loads(line)["step"] for line in open("out/metrics.jsonl")] == [1]


def test_a_gradient_that_is_not_finite(policy, data, monkeypatch):
    """Bug: NaN moves the weights, is saved as the newest state, or the message does not say where
    it came from."""
    real, calls = train_sft.token_log_probs, []

    def poisoned(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(train_sft, "token_log_probs", poisoned)
    with pytest.raises(InputError,
                       match=r"step 3, trajectories \[\d\]: the gradient is not finite"):
        run_sft(policy, "out", "--save-every", "1")
    tensors, found = state.load_state(state.Path("out.part/state"))
    assert found["step"] == 2 and all(tensor.isfinite().all() for tensor in tensors.values())


def test_sft_evaluates_as_it_is_told(policy, data, monkeypatch):
    """Bug: stage 1 is evaluated greedily, or otherwise than stage 2 is."""
    real, seen = train_sft.evaluate, []

    def evaluate(model, tokenizer, problems, sampling):
        seen.append((sampling.temperature, sampling.seed, sampling.samples))
        return real(model, tokenizer, problems, sampling)
    monkeypatch.setattr(train_sft, "evaluate", evaluate)
    run_sft(policy, "out", "--steps", "1", "--seed", "5", "--test-temperature", "0.3")
    assert seen == [(0.3, 0, 1)] * 2


def test_weights_that_are_not_finite(policy, data):
    """Bug: a rate beyond all sense makes the weights infinite in the last step, and the run ends
    with success."""
    with pytest.raises(InputError, match="step 1: the weights are not finite"):
        run_sft(policy, "out", "--lr", "1e38", "--steps", "1")
    assert not os.path.exists("out") and not os.path.exists("out.part")


def test_a_run_is_of_its_threads_and_its_template(policy, data, capsys):
    """Bug: a run that continues with more threads, or after the chat template was edited, passes
    for the same run."""
    run_sft(policy, "out", "--steps", "2")

    def again():
        return refusal(lambda argv: run_sft(policy, "out", *argv), ["--resume"], capsys)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert f"threads was {threads}, is {threads + 1}" in again()
    finally:
        torch.set_num_threads(threads)
    (Path(policy) / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "chat_template.jinja was None, is" in again()


def test_a_signal_ends_behind_the_step(policy, data, monkeypatch, capsys):
    """Bug: Ctrl-C or SIGTERM loses the steps since the last save, or gives no exit code of its
    own."""
    real = train_sft.clipped_step
    for number in (signal.SIGINT, signal.SIGTERM):
        steps = []

        def signalled(*args, number=number, steps=steps):
            steps.append(1)
            if len(steps) == 2:
                os.kill(os.getpid(), number)
            return real(*args)
        monkeypatch.setattr(train_sft, "clipped_step", signalled)
        with pytest.raises(SystemExit) as exit:
            files.run(lambda: run_sft(policy, "out", "--overwrite"))
        assert exit.value.code == 128 + number
        assert state.load_state(state.Path("out.part/state"))[1]["step"] == 2
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(train_sft, "clipped_step", real)
    run_sft(policy, "out", "--resume")
    assert not os.path.exists("out.part") and os.path.exists("out/model.safetensors")


def test_too_little_room(policy, data, monkeypatch, capsys):
    """Bug: a run starts that cannot save its end."""
    monkeypatch.setattr(files.shutil, "disk_usage",
                        lambda path: shutil._ntuple_diskusage(10, 10, 10))
    assert "GB are needed" in refusal(lambda argv: run_sft(policy, "out"), [], capsys)
    assert not os.path.exists("out.part")


def test_parts(tmp_path, capsys):
    """Bug: finished parts are computed again, a damaged one is used, or they are joined in another
    order."""
    asked = []

    def work(number, part):
        asked.append(number)
        return [item * 2 for item in part]
    assert state.parts(tmp_path, "x", [1, 2, 3, 4, 5], 2, work) == [2, 4, 6, 8, 10]
    assert asked == [0, 1, 2]
    path = tmp_path / "x-00001.json"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "x-00002.json").unlink()
    assert state.parts(tmp_path, "x", [1, 2, 3, 4, 5], 2, work) == [2, 4, 6, 8, 10]
    assert asked == [0, 1, 2, 1, 2]
    assert "x-00001.json" in capsys.readouterr().err


def test_parts_of_other_items(tmp_path, capsys):
    """Bug: answers to other questions are joined with these, after --resume --allow-changes with
    another --seed or --count."""
    def work(number, part):
        return [item * 2 for item in part]
    assert state.parts(tmp_path, "x", [1, 2, 3, 4], 2, work) == [2, 4, 6, 8]
    asked = []

    def again(number, part):
        asked.append(number)
        return work(number, part)
    assert state.parts(tmp_path, "x", [1, 2, 3, 5], 2, again) == [2, 4, 6, 10] and asked == [1]
    assert "x-00001.json" in capsys.readouterr().err
    state.same_run(tmp_path, {"seed": 1}, False)
    state.same_run(tmp_path, {"seed": 2}, True)
    state.same_run(tmp_path, {"seed": 2}, False)
    with pytest.raises(InputError, match="seed was 2, is 1"):
        state.same_run(tmp_path, {"seed": 1}, False)


def test_build_data_goes_on(monkeypatch):
    """Bug: stage 0 starts again after an interruption, or its result then differs."""
    monkeypatch.setattr(build_data, "PART", 4)
    flags = ["--device", "cpu", "--count", "12", "--samples", "2", "--max-new-tokens", "60"]
    build_data.main([*flags, "--out", "whole"])
    real, asked = build_data.respond, []

    def respond(model, tokenizer, problems, *rest):
        asked.append(len(problems))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(model, tokenizer, problems, *rest)

    monkeypatch.setattr(build_data, "respond", respond)
    with pytest.raises(KeyboardInterrupt):
        build_data.main([*flags, "--out", "twice"])
    build_data.main([*flags, "--out", "twice", "--resume"])
    assert asked == [4] * 4 and kill.result(Path("whole")) == kill.result(Path("twice"))
    assert "state" not in left_behind(Path("twice"))


def test_kill_and_resume(tmp_path):
    """Bug: a run killed with -9 cannot continue, or ends elsewhere. (The long form: python -m
    nanoverify.bench.kill)"""
    kill.finish(kill.start("build_data", tmp_path), "build_data")
    kill.finish(kill.start("train_sft", tmp_path), "train_sft")
    process = kill.start("train_sft", tmp_path, "--out", "killed")
    assert kill.kill_somewhere(process, tmp_path / "killed.part", random.Random(3), 60,
                               in_save=True)
    kill.finish(kill.start("train_sft", tmp_path, "--out", "killed", "--resume"), "resumed")
    assert kill.result(tmp_path / "killed") == kill.result(tmp_path / "sft")


def test_an_earlier_output_is_never_lost_between_two_renames(tmp_path, monkeypatch):
    """Bug: the last rename fails, or the process dies before it, and the next run removes the
    earlier output, which lies in .part, unasked."""
    out, rename = tmp_path / "out", Path.rename

    def work(text, **flags):
        with output_folder(out, **flags) as folder:
            write_json(folder / "arguments.json", {"text": text})

    def fails(path, target):
        if path.name == "out.part":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    work("first")
    with monkeypatch.context() as patch, pytest.raises(InputError,
                                                       match="the finished output is in"):
        patch.setattr(Path, "rename", fails)
        work("second", overwrite=True)
    assert read_json(out / "arguments.json") == {"text": "first"}
    out.rename(tmp_path / "out.part" / "replaced")  # as after a kill between the two renames
    with pytest.raises(InputError, match="--overwrite"):
        work("third")
    assert read_json(out / "arguments.json") == {"text": "first"}


# ---- Windows, simulated ------------------------------------------------------------------------

@pytest.fixture
def windows(monkeypatch):
    """The rules of Windows that differ, on this system: folders cannot be opened, only handles for
    writing can be synced, nothing is renamed over what exists, there is Ctrl-Break and no alarm,
    and there are no locks."""
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename")}
    writable = set()

    def open_(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = real["open"](path, flags, *rest, **more)
        (writable.add if flags & (os.O_RDWR | os.O_WRONLY) else writable.discard)(handle)
        return handle

    def fsync(handle):
        if handle not in writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real["fsync"](handle)

    def rename(source, target, **more):
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        real["rename"](source, target, **more)

    with monkeypatch.context() as patch:
        for name, call in (("open", open_), ("fsync", fsync), ("rename", rename)):
            patch.setattr(os, name, call)
        patch.setattr(shutil, "_use_fd_functions", False)  # as it is where folders cannot be opened
        patch.setattr(state, "WINDOWS", True)
        patch.setattr(files, "fcntl", None)
        patch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
        patch.delattr(signal, "setitimer")
        yield


def test_states_on_windows(tmp_path, windows):
    """Bug: the first save ends the run, for a folder or a handle for reading is synced; or an
    earlier part is in the way."""
    for step in (1, 2, 3):
        write(tmp_path / "state", step)
    write(tmp_path / "state", 3)
    assert state.load_state(tmp_path / "state")[1]["step"] == 3
    for items in ([1, 2], [3, 4]):  # the second finds parts of other items
        assert state.parts(tmp_path / "state", "x", items, 1, lambda number, part: part) == items
    for _ in range(2):
        state.same_run(tmp_path / "state", {"seed": 1}, False)


def test_a_whole_run_on_windows(policy, data, windows):
    """Bug: an output folder cannot replace the one before it, or a run cannot continue."""
    flags = ["--epochs", "1", "--overwrite"]
    run_sft(policy, "a", *flags)
    run_sft(policy, "a", *flags)
    run_sft(policy, "b", "--epochs", "1", "--steps", "1")
    run_sft(policy, "b", "--epochs", "1", "--resume")
    assert load_file("a/model.safetensors").keys() == load_file("b/model.safetensors").keys()


def test_ctrl_break(windows):
    """Bug: Windows' Ctrl-Break, which is how another program ends a run there, ends it in the
    middle of a step."""
    before, mine = signal.getsignal(signal.SIGBREAK), lambda number, frame: None
    signal.signal(signal.SIGBREAK, mine)
    try:
        with state.signals() as caught:
            os.kill(os.getpid(), signal.SIGBREAK)
            assert caught == [signal.SIGBREAK]
        assert signal.getsignal(signal.SIGBREAK) == mine
    finally:
        signal.signal(signal.SIGBREAK, before)


def test_nothing_stays_mapped(tmp_path):
    """Bug: tensors of a loaded state are still mapped to its file; Windows then neither removes
    it nor renames OUT.part."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    write(tmp_path / "state", 1)
    tensors, _ = state.load_state(tmp_path / "state")
    assert tensors and str(tmp_path) not in maps.read_text()
