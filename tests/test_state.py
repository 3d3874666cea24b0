"""Nothing is lost: states are whole or not used, a run that goes on equals one never stopped, faults leave the state before intact."""
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

import build_data
import kill
import train_rl
import train_sft
from nanoverify import files, state
from nanoverify.files import InputError, write_jsonl
from nanoverify.stage import batch_of
from test_input import GOOD, SMALL, left_behind, refusal
from test_sampler import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("state") / "policy")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths lead into an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write(folder, step, keep=2):
    state.save_state(folder, step, {"model.w": torch.full((3,), float(step))}, {"note": "ä"}, keep)


def test_states(tmp_path):
    """Bug: the wrong states are kept, the newest is not the one read, or a leftover of a killed save counts as a state."""
    assert state.load_state(tmp_path / "state") is None
    for step in (1, 2, 10):
        write(tmp_path / "state", step)
    (tmp_path / "state" / "00000011.tmp").mkdir()
    assert [path.name for path in state.saved_steps(tmp_path / "state")] == ["00000002", "00000010"]
    tensors, found = state.load_state(tmp_path / "state")
    assert tensors["model.w"].tolist() == [10.0] * 3 and found == {"step": 10, "note": "ä"}


def test_a_damaged_newer_state_gives_way(tmp_path):
    """Bug: a run that went on from an older state saves, and the save is removed in favour of the damaged one with a higher number."""
    for step in (10, 20, 12):
        write(tmp_path / "state", step, keep=2 if step == 20 else 1)
    assert [path.name for path in state.saved_steps(tmp_path / "state")] == ["00000012"]


def test_damage_is_named(tmp_path, capsys):
    """Bug: a cut or flipped file is read as a state, or ends in a traceback, or the state before it is not used."""
    rng = random.Random(0)
    for step in (1, 2):
        write(tmp_path / "state", step)
    newest = tmp_path / "state" / "00000002"
    for number in range(200):
        path = newest / rng.choice(("tensors.safetensors", "state.json", "manifest.json"))
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] if rng.random() < 0.5 else whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])
        tensors, found = state.load_state(tmp_path / "state")
        said = capsys.readouterr().err
        # white space and names of JSON may differ without harm; then the state is the same
        assert found["step"] == 1 and str(newest) in said or found == {"step": 2, "note": "ä"} and path.name == "manifest.json", (path.name, at)
        path.write_bytes(whole)
    for step in (1, 2):
        (tmp_path / "state" / f"{step:08}" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="every saved state is damaged"):
        state.load_state(tmp_path / "state")


@pytest.mark.parametrize("call", ["sync", "save_file", "write_json", "rename"])
@pytest.mark.parametrize("number", [28, 5])
def test_write_faults(tmp_path, monkeypatch, call, number):
    """Bug: a full or failing disk during a save loses the state before, or the message names neither path nor room."""
    write(tmp_path / "state", 1, keep=1)
    for nth in range(1, 6):
        with monkeypatch.context() as patch:
            owner, name = (state.Path, "rename") if call == "rename" else (state, call)
            real, count = getattr(owner, name), [0]

            def faulty(*args, **kwargs):
                count[0] += 1
                if count[0] == nth:
                    raise OSError(number, os.strerror(number))
                return real(*args, **kwargs)

            patch.setattr(owner, name, faulty)
            if nth <= {"sync": 5, "save_file": 1, "write_json": 2, "rename": 1}[call]:
                with pytest.raises(InputError, match=rf"0000000[23].*{os.strerror(number)}.*needs 0 MB"):
                    write(tmp_path / "state", 2, keep=1)
        tensors, found = state.load_state(tmp_path / "state")
        assert found["step"] in (1, 2) and tensors["model.w"].tolist() == [float(found["step"])] * 3
        assert not list((tmp_path / "state").glob("*.tmp"))


def test_batches_of_a_step():
    """Bug: a step's batch depends on the steps before it, an item is left out of a round, or every round has one order."""
    batches = [batch_of(list("abcdefg"), 3, step, seed=5) for step in range(1, 10)]
    assert [len(batch) for batch in batches] == [3, 3, 1] * 3
    rounds = [sum(batches[i: i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(found) == list("abcdefg") for found in rounds) and rounds[0] != rounds[1] != rounds[2]
    assert batch_of(list("abcdefg"), 3, 1, seed=6) != batches[0] and batch_of(list("ab"), 3, 2, seed=5) in (["a", "b"], ["b", "a"])


# ---- the scripts -----------------------------------------------------------------------------------------------------

def run_sft(policy, out, *flags):
    train_sft.main(["--model", policy, *SMALL, "--data", "data.jsonl", "--batch", "2", "--epochs", "3", "--out", out, *flags])


def run_rl(policy, out, *flags):
    train_rl.main(["--model", policy, *SMALL, "--prompts", "2", "--samples", "2", "--count", "6", "--out", out, *flags])


@pytest.fixture
def data(elsewhere):
    write_jsonl("data.jsonl", [{**GOOD, "id": str(i), "question": f"1 + {i}?"} for i in range(5)])


@pytest.mark.parametrize("run, flags", [(run_sft, []), (run_rl, ["--punish-cut"]), (run_rl, ["--advantage", "gae"])])
def test_resume_equals_one_run(policy, data, run, flags, capsys):
    """Bug: weights, moments, baselines, batches or the log of a run that went on differ from those of a run never stopped."""
    run(policy, "whole", *flags, "--steps", "5")
    run(policy, "twice", *flags, "--steps", "2")
    with open("twice/metrics.jsonl", "a") as log:
        log.write('{"step": 3}\n')  # of a step whose state was not saved
    run(policy, "twice", *flags, "--steps", "4", "--resume", "--save-every", "3")
    assert "going on behind step 2" in capsys.readouterr().out
    run(policy, "twice", *flags, "--steps", "5", "--resume", "--keep", "2")
    assert kill.result(Path("whole")) == kill.result(Path("twice"))
    (whole, totals), (twice, same) = (state.load_state(Path(name) / "state") for name in ("whole", "twice"))
    assert totals.get("totals") == same.get("totals") and bool(totals.get("totals")) == ("--punish-cut" in flags)
    assert whole.keys() == twice.keys() and any(name.startswith("optimizer.") for name in whole)
    assert all(torch.equal(whole[name], twice[name]) for name in whole)


def test_other_runs_are_refused(policy, data, capsys):
    """Bug: a run goes on with other flags or other data as if nothing were; --allow-changes has no effect; an output is overwritten."""
    run_sft(policy, "out", "--steps", "2")
    again = lambda *flags: refusal(lambda argv: run_sft(policy, "out", *argv), flags, capsys)
    assert "--overwrite" in again()
    assert "lr was 0.001, is 0.5" in again("--resume", "--lr", "0.5")
    assert os.path.exists("out/model.safetensors") and not os.path.exists("out.part")  # the finished output stays where it was
    write_jsonl("data.jsonl", [GOOD] * 5)
    assert "data.jsonl was '" in again("--resume")
    run_sft(policy, "out", "--resume", "--allow-changes", "--steps", "3")
    assert [json.loads(line)["step"] for line in open("out/metrics.jsonl")] == [1, 2, 3]
    run_sft(policy, "out", "--overwrite", "--steps", "1")
    assert [json.loads(line)["step"] for line in open("out/metrics.jsonl")] == [1]


def test_a_gradient_that_is_not_finite(policy, data, monkeypatch):
    """Bug: NaN moves the weights, is saved as the newest state, or the message does not say where it came from."""
    real, calls = train_sft.log_probs_and_entropy, []

    def poisoned(*args):
        log_probs, entropy = real(*args)
        calls.append(1)
        return log_probs * (float("nan") if len(calls) == 3 else 1.0), entropy

    monkeypatch.setattr(train_sft, "log_probs_and_entropy", poisoned)
    with pytest.raises(InputError, match=r"step 3, trajectories \[\d\]: the gradient is not finite"):
        run_sft(policy, "out", "--save-every", "1")
    tensors, found = state.load_state(state.Path("out.part/state"))
    assert found["step"] == 2 and all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_signal_ends_behind_the_step(policy, data, monkeypatch, capsys):
    """Bug: Ctrl-C or SIGTERM loses the steps since the last save, or gives no exit code of its own."""
    real = train_sft.clipped_step
    for number in (signal.SIGINT, signal.SIGTERM):
        steps = []
        monkeypatch.setattr(train_sft, "clipped_step", lambda *args: (steps.append(1), len(steps) == 2 and os.kill(os.getpid(), number), real(*args))[2])
        with pytest.raises(SystemExit) as exit:
            files.run(lambda: run_sft(policy, "out", "--overwrite"))
        assert exit.value.code == 128 + number and state.load_state(state.Path("out.part/state"))[1]["step"] == 2
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(train_sft, "clipped_step", real)
    run_sft(policy, "out", "--resume")
    assert not os.path.exists("out.part") and os.path.exists("out/model.safetensors")


def test_too_little_room(policy, data, monkeypatch, capsys):
    """Bug: a run starts that cannot save its end."""
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    assert "GB are needed" in refusal(lambda argv: run_sft(policy, "out"), [], capsys)
    assert not os.path.exists("out.part")


def test_parts(tmp_path, capsys):
    """Bug: finished parts are computed again, a damaged one is used, or they are joined in another order."""
    asked = []
    work = lambda number, part: asked.append(number) or [item * 2 for item in part]
    assert state.parts(tmp_path, "x", [1, 2, 3, 4, 5], 2, work) == [2, 4, 6, 8, 10] and asked == [0, 1, 2]
    path = tmp_path / "x-00001.json"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "x-00002.json").unlink()
    assert state.parts(tmp_path, "x", [1, 2, 3, 4, 5], 2, work) == [2, 4, 6, 8, 10] and asked == [0, 1, 2, 1, 2]
    assert "x-00001.json" in capsys.readouterr().err


def test_build_data_goes_on(monkeypatch):
    """Bug: stage 0 starts anew after an interruption, or its result then differs."""
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
    """Bug: a run killed with -9 cannot go on, or ends elsewhere. (The long form: python tests/kill.py)"""
    kill.finish(kill.start("build_data", tmp_path), "build_data")
    kill.finish(kill.start("train_sft", tmp_path), "train_sft")
    process = kill.start("train_sft", tmp_path, "--out", "killed")
    assert kill.kill_somewhere(process, tmp_path / "killed.part", random.Random(3), 60, in_save=True)
    kill.finish(kill.start("train_sft", tmp_path, "--out", "killed", "--resume"), "resumed")
    assert kill.result(tmp_path / "killed") == kill.result(tmp_path / "sft")
