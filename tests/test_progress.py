"""What a log gets of a progress bar."""
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from test_sampler import byte_tokenizer, tiny_model

from nanoverify.sampler import Sampling, generate
from nanoverify.support import progress, stage

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "LINES", progress.Lines())
    return now


def test_a_log_gets_a_line_a_minute(clock, capsys):
    """Bug: a log has one line of 200,000 characters, a line for every step, or none at all."""
    steps = stage.steps_left(0, 100, "RL")
    steps._time, steps.start_t, steps.last_print_t = progress.time.monotonic, 0, 0
    for step in steps:
        clock[0] += 10  # seconds
        steps.set_postfix(final=f"{step}%", refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 17
    assert lines[0].startswith("RL: 6 of 100, ") and lines[0].endswith(" left, final=6%")
    assert not any("\r" in line or "\x1b" in line or "|" in line for line in lines)


def test_many_short_bars_are_heard_of(clock, capsys):
    """Bug: each bar begins a minute of its own, and stage 0, which has many, is silent."""
    for _ in range(12):
        with progress.bar(total=4, desc="answer", leave=False) as shown:
            for _ in range(4):
                clock[0] += 5
                shown.last_print_t -= 5
                shown.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("answer: ") for line in lines)


def test_the_sampler_and_the_stages_use_it(clock, monkeypatch, capsys):
    """Bug: one of the bars is still tqdm's own."""
    monkeypatch.setattr(progress, "MINUTE", 0)
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer.vocab_size, 256)
    generate(model, [[1, 2]] * 3, Sampling(5, vocab_size=tokenizer.vocab_size), "evaluate")
    shown = capsys.readouterr().err
    assert shown.startswith("evaluate: 0 of 3, ") and "\r" not in shown
    users = [path.name for path in (*ROOT.glob("*.py"), *ROOT.glob("nanoverify/**/*.py"))
             if "from tqdm import" in path.read_text(encoding="utf-8")]
    assert set(users) - {"pretrain.py"} == {"progress.py"}


IN_A_TERMINAL = """
import types
from nanoverify.checkpoint import load_model
from nanoverify.support.stage import POLICY, print_time
args = types.SimpleNamespace(model=POLICY, device="cpu", batch_size=4, max_new_tokens=9,
                             micro_tokens=64)
print_time(load_model(POLICY), args, 100, 4, 8)
from nanoverify.support.stage import steps_left
from nanoverify.support.progress import say
for step in steps_left(0, 3, "RL"):
    if step == 2:
        say("look out")
"""


def test_a_terminal_gets_a_bar():
    """Bug: a terminal gets no bar any more, a message is glued to it, or it waits in silence."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    terminal, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", IN_A_TERMINAL], stderr=other, timeout=120, check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(other)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "RL: 100%" in shown and "3/3" in shown
    assert shown.startswith("rehearsing a step of sampling ...\r\x1b[K"
                            "rehearsing a step of training ...\r\x1b[K")
    assert "\rlook out\r\n" in shown
