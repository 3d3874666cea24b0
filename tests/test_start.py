"""How a command begins, what it says of a wrong flag, and how it ends: one line each."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import build_data
import train_rl
import train_sft
from nanoverify import evaluate
from nanoverify.study import figures, findings, study
from nanoverify.support import stage
from nanoverify.support.files import InputError
from nanoverify.tools import ask, export, picture, report

ROOT = Path(__file__).parents[1]
MAINS = [build_data, train_sft, train_rl, evaluate, ask, export, picture, report, figures,
         findings, study]


def refusal(module, argv, capsys) -> str:
    with pytest.raises(SystemExit) as exit:
        module.main(argv)
    shown = capsys.readouterr().err
    assert exit.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1, shown
    return shown


@pytest.mark.parametrize("module", MAINS)
def test_unknown_flags(module, elsewhere, capsys):
    """Bug: `--ou` is taken for --out today and is another flag tomorrow; a misspelt flag ends in
    lines of usage that do not say what was meant."""
    needed = {report: ["x"], picture: ["x"], figures: ["x"], findings: ["x"]}.get(module, [])
    assert "--xyz: there is no such flag; --help lists" in refusal(module, [*needed, "--xyz=3"],
                                                                   capsys)
    if module is not findings:
        flag = "--questions" if module is evaluate else "--model" if module is ask else "--out"
        for wrong in (flag[:-1], flag + "s"):
            assert f"{wrong}: there is no such flag; did you mean {flag}?" in refusal(
                module, [*needed, wrong, "3"], capsys)


@pytest.mark.parametrize("module, flag, values", [
    (train_rl, "--lr", ["-1", "nan", "inf", "much"]), (train_sft, "--lr", ["-1"]),
    (train_rl, "--clip", ["0"]), (train_rl, "--beta", ["-1"]), (train_sft, "--kl", ["-0.1"]),
    (train_rl, "--temperature", ["0"]), (build_data, "--keep-easy", ["1.1", "-1"]),
    (build_data, "--verify-temperature", ["-1"]), (evaluate, "--temperature", ["-1"]),
    (ask, "--temperature", ["-1"]), (train_rl, "--steps", ["0", "2.5"])])
def test_impossible_numbers(module, flag, values, capsys):
    """Bug: a negative learning rate trains until nothing is right any more, without a word."""
    for value in values:
        assert f"{flag}: {value} is not a" in refusal(module, [flag, value], capsys)


def test_devices():
    """Bug: `--device gpu` is answered with a list of twenty words."""
    with pytest.raises(InputError) as error:
        stage.on_cuda("gpu")
    assert str(error.value) == "--device gpu: there is no such kind of device; give cpu or cuda"


def test_fewer_steps_than_done():
    """Bug: --resume --steps 3 at step 106 trains nothing and says nothing."""
    assert list(stage.steps_left(105, 106, "RL")) == [106] and not list(
        stage.steps_left(106, 106, "RL"))
    with pytest.raises(InputError, match="106 steps are done already, more than the 3 "):
        stage.steps_left(106, 3, "RL")


def python(code: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("GOMP_SPINCOUNT", None)
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=120, env=environment,
                          **{"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **more})


NO_TORCH = """
import os, sys
sys.modules["torch"] = None
try:
    import {name}
except ImportError:
    print("nanoverify.support.start" in sys.modules, os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize("name", ["build_data", "train_sft", "train_rl", "nanoverify.evaluate",
                                  "nanoverify.ask", "nanoverify.report", "nanoverify.export"])
def test_before_torch(name):
    """Bug: torch is imported first. It takes seconds, in which nothing is said and Ctrl-C is a
    traceback, and it does not see how its threads should wait."""
    assert python(NO_TORCH.format(name=name)).stdout == "True 20000\n"


def test_ctrl_c_while_importing():
    """Bug: a traceback of twenty lines."""
    done = python("import nanoverify.support.start\nraise KeyboardInterrupt")
    assert done.stderr == "\ninterrupted\n" and done.returncode != 0
    other = python("import nanoverify.support.start\nraise ValueError('x')")
    assert "ValueError: x" in other.stderr


PRINT = "from nanoverify.support.start import run\nrun(lambda: print('the table'))"


def test_nobody_reads():
    """Bug: a closed pipe or a full disk behind stdout is a traceback, or two."""
    reader, writer = os.pipe()
    os.close(reader)
    done = python(PRINT, stdout=writer)
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == "error: standard output cannot be written: Broken pipe\n"
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = python(PRINT, stdout=full)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no such terminals")
def test_a_terminal_is_told_what_it_waits_for():
    """Bug: seconds of silence; or the line stays before the first words of the command, or goes
    into a log."""
    terminal, other = os.openpty()
    done = python(PRINT, stderr=other)
    os.close(other)
    shown = os.read(terminal, 1000).decode()
    os.close(terminal)
    assert shown == "loading PyTorch ...\r\033[K" and done.stdout == "the table\n"
    assert python(PRINT).stderr == ""
