"""Fixtures that several files of tests share."""
import pytest
from test_sampler import save_policy

from nanoverify.support import stage


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The folder of a tiny random model with its tokenizer."""
    return save_policy(tmp_path_factory.mktemp("input") / "policy")


@pytest.fixture(autouse=True)
def few_puzzles(monkeypatch):
    """Stage 2 draws from six puzzles."""
    monkeypatch.setattr(stage, "PUZZLES", 6)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Default folders such as out/sft do not exist here, and the hub is out of reach."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "work"
