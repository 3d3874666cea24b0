"""Training of the base: the loss is that of the learned tokens, and the run leaves a checkpoint."""
import random

import tokenizers
import torch
import torch.nn.functional as F

from nanoverify import lessons, pretrain
from nanoverify.checkpoint import load_model
from nanoverify.support.files import read_jsonl
from nanoverify.support.stage import POLICY
from nanoverify.tokenizer import Tokenizer


def raw_tokenizer():
    return tokenizers.Tokenizer.from_file(f"{POLICY}/tokenizer.json")


def test_encode_marks_what_is_learned():
    """Bug: the mask is a token early or late, or that of another piece."""
    pieces = [("<|user|>Guess.<|assistant|>", False), (" It is 7.", True), (" No.", False)]
    tokenizer = raw_tokenizer()
    ids, learned = pretrain.encode(tokenizer, pieces)
    assert len(ids) == len(learned)
    said = [id for id, learn in zip(ids, learned) if learn]
    assert tokenizer.decode(said) == " It is 7."


def test_learn_follows_the_learned_tokens(monkeypatch):
    """Bug: tokens that are only read are learned, documents see each other, or the loss is a mean
    over something else."""
    monkeypatch.setattr(pretrain, "autocast", lambda device: torch.autocast("cpu", enabled=False))
    torch.manual_seed(0)
    tokenizer = raw_tokenizer()
    model, _ = pretrain.new_model(tokenizer, 64, 1)
    model.lm_head.weight.data *= 20  # so that losses of different tokens differ
    rng = random.Random(1)
    batch = [pretrain.encode(tokenizer, lessons.document(rng)) for _ in range(3)]
    losses = []
    for ids, learned in batch:
        inputs = torch.tensor([ids])
        logits = model.lm_head(model.hidden(inputs[:, :-1]))[0]
        each = F.cross_entropy(logits, inputs[0, 1:], reduction="none")
        losses.append(each[torch.tensor(learned[1:]) > 0])
    expected = torch.cat(losses).mean().item()
    before = [parameter.clone() for parameter in model.parameters()]
    loss = pretrain.learn(model, pretrain.new_optimizers(model, 1e-3), batch)
    assert abs(loss - expected) < 0.01 * expected  # products of the head may be in bf16
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_orthogonal():
    """Bug: a matrix is turned as well, or its singular values stay what they were."""
    for shape in ((12, 5), (5, 12)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        found = left.T @ pretrain.orthogonal(matrix) @ right.T
        values = found.diagonal()
        assert values.min() > 0.5 and values.max() < 1.5
        torch.testing.assert_close(found, torch.diag(values), atol=1e-4, rtol=0)


def test_learning_goes_down():
    """Bug: an optimizer steps up the gradient."""
    tokenizer = raw_tokenizer()
    batch = [pretrain.encode(tokenizer, lessons.document(random.Random(1)))]
    for number in (0, 1):  # each optimizer alone
        torch.manual_seed(0)
        model, _ = pretrain.new_model(tokenizer, 64, 1)
        optimizer = pretrain.new_optimizers(model, 1e-3)[number]
        losses = [pretrain.learn(model, [optimizer], batch) for _ in range(6)]
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01


def test_run(tmp_path, monkeypatch):
    """Bug: main's parts do not fit together, or what it saves cannot be loaded."""
    monkeypatch.setattr(pretrain, "train_tokenizer", lambda rng, size: raw_tokenizer())
    out = tmp_path / "policy"
    pretrain.main(["--out", str(out), "--steps", "20", "--tokens-per-step", "200",
                   "--hidden", "64", "--layers", "1"])
    assert load_model(out).config.num_hidden_layers == 1 and Tokenizer.load(out).prompt("Why?")
    (_, line), = read_jsonl(out / "metrics.jsonl")
    assert line["step"] == 20 and line["loss"] > 0
