"""The benchmark counts what its docstring says, and refuses to time what does not compute the same.
No clock is read here."""
import random

import pytest
import torch
from test_sampler import save_policy, tiny_model

from nanoverify.bench import bench, cuda
from nanoverify.checkpoint import load_model
from nanoverify.model import Transformer
from nanoverify.sampler import Sampling
from nanoverify.support.files import InputError
from nanoverify.tokenizer import Tokenizer

torch.set_num_threads(1)
# D 32, MLP 48, 2 layers, 4 heads and 2 key/value heads of size 8, V 61: by hand, a layer has
# q and o 32 * 32 each, k and v 32 * 16 each, the MLP 3 * 32 * 48 = 7,680 numbers
CONFIG = tiny_model().config
LAYERS, HEAD, PAIR = 2 * 7680, 32 * 61, 4 * 2 * 32


def test_sizes():
    """Bug: key/value heads count as query heads, norms or the embedding as matrices."""
    assert bench.sizes(CONFIG) == (LAYERS, HEAD, PAIR)
    layers = Transformer(CONFIG).model["layers"]
    assert LAYERS == sum(p.numel() for p in layers.parameters() if p.dim() == 2)


def test_training_operations():
    """Bug: the backward pass is left out, attention grows with padding or without the causal
    half."""
    # lengths 2 and 3: (0, 0), (1, 0), (1, 1) are 3 looks, and 6
    assert bench.training_operations(CONFIG, [2, 3],
                                     4) == 6 * LAYERS * 5 + 6 * HEAD * 4 + 3 * PAIR * 9


def test_decoding_work():
    """Bug: weights count once per token and not once per step, prompts once per sample, the cache
    without its values."""
    # a prompt of 3 tokens with responses of 2 and 4: 1 and 3 tokens are fed, which look at 4; 4, 5
    # and 6 tokens
    kv = 2 * 2 * 2 * 8 * 2  # keys and values, 2 layers, 2 heads of size 8, bf16
    operations = 2 * LAYERS * (3 + 4) + 2 * HEAD * 6 + PAIR * (6 + 19)
    assert bench.decoding_work(CONFIG, [3], [[2, 4]], rows=2,
                               size=2) == (3 * (2 * LAYERS + 4 * HEAD) + 19 * kv, operations)
    # one row at a time: 4 steps
    assert bench.decoding_work(CONFIG, [3], [[2, 4]], rows=1,
                               size=2) == (4 * (2 * LAYERS + 4 * HEAD) + 19 * kv, operations)


def test_operations():
    """Bug: other threads, or the backward pass, are not counted; the first layer counts as all."""
    torch.set_num_threads(2)
    try:
        counts = [cuda.operations(layers) for layers in (1, 2, 4)]
    finally:
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    for one, two, four in zip(*counts):
        assert four - two == 2 * (two - one)
    # the 7 products with a layer's matrices, and 2 more for each of them in the backward pass
    assert counts[1][0] - counts[0][0] >= 7 and counts[1][1] - counts[0][1] >= 21


def test_take_turns():
    """Bug: the first round is counted, or all of ours runs before all of the peer."""
    calls = []
    runs = bench.take_turns({name: lambda number, name=name: calls.append(name) or (name, number)
                             for name in ("ours", "peer")}, 2)
    assert calls == ["ours", "peer"] * 3
    assert runs == {"ours": [("ours", 1), ("ours", 2)], "peer": [("peer", 1), ("peer", 2)]}


def test_table_takes_the_faster_peer():
    """Bug: the ratio is upside down, or the slower peer is chosen to look better; the limit is that
    of memory only."""
    runs = {"ours": [(2.0, 10, 4, 6), (1.0, 10, 2, 3), (1.0, 10, 2, 3)],
            "slow": [(9.0, 10, 0, 0)] * 3, "fast": [(4.0, 10, 0, 0)] * 3}
    [row] = bench.table_rows("sample", runs, (10.0, 5.0),
                             {"tokens/s": lambda seconds, tokens: tokens / seconds})
    assert row == "| sample (tokens/s) | 10.00 | 2.50 (fast) | 4.00 (2.00 to 4.00) | 60% |"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = save_policy(tmp_path_factory.mktemp("bench") / "policy")
    return folder, Tokenizer.load(folder), bench.load_peer(folder, "cpu")


def rows(count=3):
    """(prompt ids, response ids, loss mask, line) of mixed length."""
    rng = random.Random(0)

    def ids(n):
        return [rng.randrange(200) for _ in range(n)]
    return [(ids(3 + i), ids(5 + 4 * i), [int(t > i) for t in range(5 + 4 * i)], i)
            for i in range(count)]


PROMPTS = [row[0] for row in rows()]


def test_equal_models_are_timed(pair):
    """Bug: left padding or the labels of the peer are wrong, so that the comparison stops every
    benchmark."""
    folder, tokenizer, peer = pair
    bench.compare(load_model(folder), tokenizer, peer, PROMPTS, 12, rows())


@pytest.mark.parametrize("prompts, batch, message",
                         [(PROMPTS, (), "greedy texts .* differ for prompts"),
                          ([], rows(), "masked loss is")])
def test_different_models_are_not_timed(pair, prompts, batch, message, monkeypatch):
    """Bug: the comparison cannot fail: a speed is printed for a model that computes something
    else."""
    folder, tokenizer, peer = pair
    model = load_model(folder)
    model.model["layers"][1].mlp.down_proj.weight.data.mul_(1.5)
    with pytest.raises(InputError, match=message):
        bench.compare(model, tokenizer, peer, prompts, 12, batch)


def test_without_peers(pair, tmp_path, monkeypatch, capsys):
    """Bug: where transformers and TRL are not installed, nothing is measured at all."""
    folder, *_ = pair
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    bench.main(["--model", folder, "--parts", "sample", "sample-large", "rl", "--prompts", "8",
                "--repeat", "1", "--max-new-tokens", "4"])
    out = capsys.readouterr().out
    assert "sample-large is skipped" in out and out.count("is not installed") == 2
    table = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in table] == ["| sample (tokens/s)", "| rl (s a step)",
                                         "| rl (s for 1,000 tokens)"]
    assert all(row[2:] == ["-", "-", "- |"] for row in table)


def test_trl_takes_one_rollout_and_its_steps(pair):
    """Bug: the peer samples again for each optimizer step, or its tokens are not counted."""
    for package in ("trl", "datasets"):
        pytest.importorskip(package)
    folder, *_ = pair
    problems = bench.make_puzzles("train", 4, 0)
    drawing = Sampling(4, samples=8)
    seconds, tokens, *_ = bench.trl_step(problems, folder, "cpu", drawing, 4, False, 0)
    assert seconds > 0 and 32 <= tokens <= 4 * 32
