"""The memory estimate against what autograd really keeps, and what happens when memory runs out."""
import argparse
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from test_sampler import save_policy

from nanoverify.model import Config, Transformer
from nanoverify.support import cost, files, stage


def config(**changes):
    return Config(**{**dict(architecture="LlamaForCausalLM", vocab_size=300, hidden_size=64,
                            intermediate_size=192, num_hidden_layers=6, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
                            rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
                            tie_word_embeddings=True), **changes})


def kernel(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def kept(model, ids):
    """Bytes of the distinct storages that autograd saves for the backward pass, weights aside."""
    storages = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # holding the tensor keeps its address unique
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        out = model.hidden(ids)
    # autocast's bf16 weights: counted apart
    casts = 2 * sum(p.numel() for p in model.model["layers"].parameters())
    return sum(size for size, _ in storages.values()) - casts, out


@pytest.mark.parametrize("changes", [{}, {"num_attention_heads": 8, "num_key_value_heads": 8},
                                     {"intermediate_size": 640}, {"hidden_size": 192}])
def test_activations(changes):
    """Bug: a term of the estimate is missing or counted per batch instead of per token: the
    estimate is useless for choosing --micro-tokens."""
    model = Transformer(config(**changes))
    with mock.patch("nanoverify.model.chunked_attention", kernel):  # what CUDA has
        real, _ = kept(model, torch.zeros(16, 128, dtype=torch.long))
    assert cost.activation_bytes(model.config, 16 * 128,
                                 recompute=False) == pytest.approx(real, rel=0.15)


def test_recompute_keeps_little_and_changes_nothing():
    """Bug: recomputed layers still keep their activations, or give other gradients."""
    model, ids = Transformer(config()), torch.arange(2 * 64).view(2, 64)
    gradients, sizes = [], []
    for model.recompute in (False, True):
        size, out = kept(model, ids)
        sizes.append(size)
        model.zero_grad()
        out.float().pow(2).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert sizes[1] < 0.35 * sizes[0]


def test_recompute_reaches_the_model(tmp_path):
    """Bug: --recompute is parsed and then forgotten."""
    parser = argparse.ArgumentParser()
    stage.add_model_flags(parser)
    stage.add_training_flags(parser, save_every=1)
    flags = ["--model", save_policy(tmp_path / "policy"), "--device", "cpu"]
    assert stage.load(parser.parse_args([*flags, "--recompute"]))[0].recompute
    assert not stage.load(parser.parse_args(flags))[0].recompute


def test_estimate_by_hand():
    """Bug: GB and GiB, bits and bytes, or the cache of one layer only."""
    c = config(vocab_size=1000, tie_word_embeddings=False)
    count = sum(p.numel() for p in Transformer(c).parameters())
    parts = cost.estimate(c, batch_size=8, slots=100, micro_tokens=4096, frozen=1)
    assert (parts["weights"], parts["Adam"], parts["frozen"]) == (4 * count, 8 * count, 4 * count)
    layers = count - 2 * 1000 * 64  # embedding and lm_head are not tied
    # rows, slots, keys and values of 6 layers, K * E, bf16; bf16 weights
    token, weights = 2 * 6 * (2 * 16) * 2, 2 * (layers + 1000 * 64)
    read = token + 12 * 64 + 6 * c.intermediate_size  # for each token of prompts that is read
    assert parts["sampling"] == 800 * token + weights + 800 * read
    assert cost.estimate(c, 8,
                         10 ** 4)["sampling"] == 8 * 10 ** 4 * token + weights + 2 ** 14 * read
    large = config(vocab_size=10 ** 6, tie_word_embeddings=False)  # four times logits are more
    assert cost.estimate(large, 8, 100)["sampling"] == (
        800 * token + 2 * (layers + 64 * 10 ** 6) + 16 * 8 * 10 ** 6)
    # gradients, lm_head's twice more; bf16 weights; activations; logits three times
    assert parts["training"] == (4 * count + 8 * 1000 * 64 + 2 * (layers + 1000 * 64)
                                 + cost.activation_bytes(c, 4096, False) + 12 * 4096 * 1000)
    assert parts["peak"] == 16 * count + max(parts["training"], parts["sampling"])
    assert cost.estimate(c, 8, 100)["peak"] == 4 * count + parts["sampling"]
    tied = config(vocab_size=1000)
    assert cost.estimate(tied, 8, 100)["sampling"] == parts["sampling"]


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory:"
                 " you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), RuntimeError("bad allocation"),
    OSError(22, "The paging file is too small for this operation to complete. (os error 1455)"),
    OSError(12, "Cannot allocate memory"), MemoryError(),
    MemoryError("Unable to allocate 8. GiB for an array\nwith shape (1,)")])
def test_out_of_memory_names_the_flags(error, capsys):
    """Bug: a page of traceback where one line says which flag to lower."""
    def main():
        raise error
    with pytest.raises(SystemExit) as stop:
        files.run(main)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and "--micro-tokens" in message
    assert "--batch-size" in message


def test_other_runtime_errors_keep_their_traceback():
    """Bug: every RuntimeError is called a lack of memory."""
    def main():
        raise RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        files.run(main)


def test_time_by_hand(monkeypatch, capsys):
    """Bug: seconds of a step of 256 rows taken for those of one row, or the scoring pass
    forgotten."""
    seen = []
    monkeypatch.setattr(cost, "decoding_step", lambda model, rows, slots: seen.append((rows, slots))
                        or 0.5)
    monkeypatch.setattr(cost, "training_pass",
                        lambda model, rows, length, vocab_size: seen.append((rows, length)) or 2.0)
    args = argparse.Namespace(batch_size=10, max_new_tokens=200, micro_tokens=1000)
    stage.print_time(Transformer(config()), args, 300, responses=6000, longest=250, tokens=30_000,
                     trained=9000)
    # a response token: 0.5 s / 10 rows to sample, 2 s / (4 rows of 250) * 1.5 to train = 0.053 s;
    # 6000 responses of 100 tokens: 31,800 s; known: 60 s
    assert seen == [(10, 456), (4, 250)]
    assert "about 1.0 minutes + 530.0 for every 100 tokens" in capsys.readouterr().out
    stage.print_time(Transformer(config()), args, 300, responses=12)
    assert "about 0.0 minutes + 1.0 for every" in capsys.readouterr().out
    del seen[:]
    stage.print_time(Transformer(config(max_position_embeddings=128)), args, 300, responses=3,
                     longest=500)
    assert seen == [(3, 128), (7, 128)]  # no more rows than responses, no longer than the context


def test_rehearsal_leaves_nothing_behind():
    """Bug: the rehearsal's gradient goes into the first step, it draws from the generator, or it
    does not fit into the context."""
    model = Transformer(config(max_position_embeddings=64))
    before, state = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    assert cost.decoding_step(model, 3, 64) > 0 and cost.training_pass(model, 2, 64, 300) > 0
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
