"""Log-probs, entropies, divergences and masks against torch's own functions and transformers'
gradients."""
import json
import random
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers
from test_sampler import save_policy, tiny_model

import train_sft
from nanoverify import scoring
from nanoverify.checkpoint import save_model
from nanoverify.problems import SOLVE_PROMPT
from nanoverify.scoring import join, kl_divergence, micro_batches, token_log_probs
from nanoverify.support.files import write_jsonl
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import RECHECK, RETRY, compose
from nanoverify.verifier import VERDICTS, Verification

torch.set_num_threads(1)
V, REAL = 40, 37  # rows of the weight matrix, ids that the tokenizer knows


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(23, 16, generator=generator)
    weight = torch.randn(V, 16, generator=generator)
    weight[REAL:] *= 10  # untrained rows can be anything
    ids = torch.randint(0, REAL, (23,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), ids


# ---- numbers of one distribution ---------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_token_log_probs(temperature):
    """Bug: the temperature is missing or inverted, or padding of the vocabulary counts."""
    hidden, weight, ids = inputs()
    found = token_log_probs(hidden, weight, ids, REAL, temperature)
    logits = (hidden @ weight.T)[:, :REAL] / temperature
    torch.testing.assert_close(found, -F.cross_entropy(logits, ids, reduction="none"))
    assert found.requires_grad and found.dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 7, 23])
def test_gradients_written_by_hand(rows, monkeypatch):
    """Bug: the gradient of the temperature's division, of the id itself, or of a chunk is missing.

    The reference is autograd's gradient of PyTorch's cross-entropy.
    """
    monkeypatch.setitem(scoring.LOGITS, "cpu", rows * REAL)
    g = torch.linspace(-2, 3, 23)

    def gradients(log_probs):
        hidden, weight, ids = inputs()
        (g * log_probs(hidden, weight, ids)).sum().backward()
        return hidden.grad, weight.grad
    found = gradients(lambda hidden, weight, ids: token_log_probs(hidden, weight, ids, REAL, 0.7))
    expected = gradients(lambda hidden, weight, ids: -F.cross_entropy(
        (hidden @ weight.T)[:, :REAL] / 0.7, ids, reduction="none"))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_padding_of_the_vocabulary_gets_no_gradient():
    """Bug: training pushes ids that do not exist, or their log-prob of -inf makes gradients NaN."""
    hidden, weight, ids = inputs()
    token_log_probs(hidden, weight, ids, REAL).sum().backward()
    assert (weight.grad[REAL:] == 0).all() and weight.grad.isfinite().all()
    assert hidden.grad.isfinite().all() and weight.grad[:REAL].abs().min() > 0


def test_half_precision_states_are_scored_in_fp32():
    """Bug: under autocast, logits of bf16 states are rounded to 3 digits before the softmax."""
    hidden, weight, ids = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_log_probs(hidden.bfloat16(), weight, ids, REAL)
    torch.testing.assert_close(found, token_log_probs(hidden.bfloat16().float(), weight, ids, REAL))


@pytest.mark.parametrize("rows", [1, 4, 22])
def test_chunks_change_nothing(rows, monkeypatch):
    """Bug: slices are joined in the wrong order, the last short one is lost, or the weight's
    gradient is that of one slice."""
    def results():
        hidden, weight, ids = inputs()
        other, other_weight, _ = inputs(seed=1)
        log_probs = token_log_probs(hidden, weight, ids, REAL, 0.7)
        kl = kl_divergence(hidden, weight, other.detach(), other_weight.detach(), REAL)
        (torch.linspace(-1, 1, 23) * log_probs + kl).sum().backward()
        return log_probs.detach(), kl.detach(), hidden.grad, weight.grad
    whole = results()
    monkeypatch.setitem(scoring.LOGITS, "cpu", rows * V)
    for found, expected in zip(results(), whole):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_kl_divergence():
    """Bug: KL(base || policy) instead of KL(policy || base), only the sampled ids, or NaN from
    vocabulary padding."""
    hidden, weight, _ = inputs()
    base_hidden, base_weight, _ = (x.detach() for x in inputs(seed=1))
    assert kl_divergence(hidden, weight, hidden.detach(), weight.detach(), REAL).abs().max() < 1e-5
    found = kl_divergence(hidden, weight, base_hidden, base_weight, REAL)
    log_p, log_q = ((h @ w.T)[:, :REAL].log_softmax(-1)
                    for h, w in ((hidden, weight), (base_hidden, base_weight)))
    # torch's first argument is q
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    grads = [torch.autograd.grad(kl.sum(), (hidden, weight), retain_graph=True)
             for kl in (found, expected)]
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# ---- rows and masks ----------------------------------------------------------------------------

def test_join_by_hand(monkeypatch):
    """Bug: the shift by one: logits at t predict token t + 1, so the LAST prompt position predicts
    the first response token; the last token of a sequence predicts the first of the next; what
    fills a sequence up is learned."""
    monkeypatch.setattr(scoring, "ROUND", 3)
    packed = join([([5, 6, 7], [1, 2]), ([8], [3, 4, 9, 2])], [[1, 1], [0, 1, 0, 1]], "cpu")
    assert packed.ids.tolist() == [[5, 6, 7, 1, 0, 0, 8, 3, 4, 9, 0, 0]]
    assert packed.lengths == [6, 6]
    assert packed.places.tolist() == [2, 3, 7, 9] and packed.targets.tolist() == [1, 2, 4, 2]
    packed = join([([5, 4, 3], [1])], [[1]], "cpu")
    assert packed.ids.tolist() == [[5, 4, 3]] and packed.lengths == [3]
    assert packed.places.tolist() == [2] and packed.targets.tolist() == [1]


@torch.no_grad()
def test_joined_sequences_do_not_see_each_other():
    """Bug: a sequence sees the one before it, its positions continue from there, or bf16 on a CPU
    takes another path."""
    model, sequences = tiny_model(vocab_size=V), [p + r for p, r in ROWS]
    ids, lengths = torch.tensor([sum(sequences, [])]), [len(sequence) for sequence in sequences]
    alone = torch.cat([model.hidden(torch.tensor([sequence]))[0] for sequence in sequences])
    torch.testing.assert_close(model.hidden(ids, lengths=lengths)[0], alone, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat([model.hidden(torch.tensor([sequence]))[0] for sequence in sequences])
        torch.testing.assert_close(model.hidden(ids, lengths=lengths)[0], alone, atol=0.05,
                                   rtol=0.05)


def test_micro_batches():
    """Bug: a response is lost or repeated, the tokens exceed the budget, one long response by
    itself is dropped, or one worker gets more than the other."""
    rng = random.Random(0)
    for budget in (1, 50, 100, 1000, 10 ** 6):
        for count in (1, 2, 3):
            lengths = [rng.randint(1, 80) for _ in range(60)]
            groups = micro_batches(lengths, budget, count)
            assert sorted(sum(groups, [])) == list(range(60))
            sizes = [sum(lengths[i] for i in group) for group in groups]
            assert all(len(group) == 1 or size <= budget for group, size in zip(groups, sizes))
            # memory runs out at once or never
            assert max(lengths) in [lengths[i] for i in groups[0]]
            assert len(groups) % count == 0 or len(groups) == 60
            assert max(sizes) - min(sizes) <= 80
        assert budget < 10 ** 6 or len(groups) == count
    assert micro_batches([], 10, 2) == [] and micro_batches([3], 10, 2) == [[0]]


ROWS = [([n + 1, 3, 5][: 1 + n % 3],
         [random.Random(10 * n + i).randrange(REAL) for i in range(2 + n)]) for n in range(8)]
MASKS = [[random.Random(99 * n + i).random() < 0.6 for i in range(2 + n)] for n in range(8)]


def gradients(model, budget, base=None, kl=0.0):
    """Mean loss over all learned tokens of ROWS, by train_sft's own step, in fp32 on any
    processor."""
    model.zero_grad()
    batch = [(prompt, ids, mask, n) for n, ((prompt, ids), mask) in enumerate(zip(ROWS, MASKS))]
    def in_fp32(device):
        return torch.autocast("cpu", enabled=False)
    with mock.patch.object(train_sft, "autocast", in_fp32):
        total, *_ = train_sft.accumulate(model, base, batch, REAL, train_sft.SFT(budget, kl))
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_kl_pulls_towards_the_base():
    """Bug: the sign of --kl, or its mean is taken over another number of tokens than the loss's."""
    model = tiny_model(vocab_size=V, seed=0)
    base = tiny_model(vocab_size=V, seed=1).requires_grad_(False)
    plain, pulled = gradients(model, 20)[1], gradients(model, 20, base, kl=0.5)[1]
    packed = join(ROWS, MASKS, "cpu")
    states = [m.hidden(packed.ids, lengths=packed.lengths)[0, packed.places] for m in (model, base)]
    ours, theirs = (m.lm_head(x)[:, :REAL].log_softmax(-1) for m, x in zip((model, base), states))
    model.zero_grad()
    (0.5 * F.kl_div(theirs, ours, log_target=True, reduction="batchmean")).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(pulled[name] - plain[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_gradient_does_not_depend_on_the_micro_batch():
    """Bug: means of means: 1 x 8 and 8 x 1 give different gradients."""
    model = tiny_model(vocab_size=V)
    whole = gradients(model, 10 ** 6)
    alone = gradients(model, 1)
    mixed = gradients(model, 3 * scoring.ROUND)
    for other in (alone, mixed):
        assert other[0] == pytest.approx(whole[0], abs=1e-5)
        for name in whole[1]:
            torch.testing.assert_close(other[1][name], whole[1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_workers_change_nothing(kl, recompute, monkeypatch):
    """Bug: workers lose, mix up or add twice the gradients of parts, divide by the tokens of their
    own parts, or add in the order in which they happen to end."""
    model = tiny_model(vocab_size=V)
    base = tiny_model(vocab_size=V, seed=1).requires_grad_(False) if kl else None
    one = gradients(model, 20, base, kl)
    model.recompute = recompute
    monkeypatch.setattr("nanoverify.scoring.workers", lambda model: 3)
    several = [gradients(model, 2 * scoring.ROUND, base, kl) for _ in range(3)]
    assert several[0][0] == pytest.approx(one[0], abs=1e-6)
    for name in one[1]:
        torch.testing.assert_close(several[0][1][name], one[1][name], atol=1e-6, rtol=0)
        assert all(torch.equal(other[1][name], several[0][1][name]) for other in several[1:])


def test_masked_gradient_equals_transformers(tmp_path):
    """Bug: the loss learns other tokens than the mask says (ignored ones, the prompt, padding), or
    another mean."""
    model = tiny_model(vocab_size=V)
    model.lm_head.weight.data[REAL:] = -100.0  # transformers knows no padding of the vocabulary ...
    with torch.no_grad():
        model.model["norm"].weight.abs_()
    (tmp_path / "source").mkdir(), (tmp_path / "saved").mkdir()
    transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-5,
        architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "source")
    save_model(model, tmp_path / "saved", tmp_path / "source")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    width = max(len(p) + len(r) for p, r in ROWS)
    ids = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in ROWS])
    labels = torch.tensor([[-100] * len(p) + [id if m else -100 for id, m in zip(r, mask)] + [-100]
                           * (width - len(p) - len(r)) for (p, r), mask in zip(ROWS, MASKS)])
    logits = theirs(ids, attention_mask=torch.tensor([[t < len(p) + len(r) for t in range(width)]
                                                      for p, r in ROWS]).long()).logits
    # ... so it is cut off here
    loss = F.cross_entropy(logits[:, :-1, :REAL].flatten(0, 1), labels[:, 1:].flatten(),
                           ignore_index=-100)
    loss.backward()
    found, grads = gradients(model, 3 * scoring.ROUND)
    assert found == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=1e-5, rtol=1e-4,
                                   msg=lambda m, name=name: f"{name}: {m}")


# ---- train_sft ---------------------------------------------------------------------------------

SOLVES = ["x = 7. The answer is 7.", "x = 9, naïve. The answer is 9.", "x = 6. The answer is 6."]
DATA = [{"id": f"q{k}", "question": "2 times a number is 12?", "answer": "6",
         "response": compose(SOLVES[-k:],
                             [Verification(f"{i} é. {VERDICTS[i == k - 1]}", i == k - 1, True)
                              for i in range(k)])} for k in (1, 2, 3)]


def test_whole_run_learns_what_the_mask_says(tmp_path, monkeypatch, capsys):
    """Bug: the loss of the first step is not the mean over verifications, last solution, their
    phrases and the end token; it depends on the micro-batches; the long row is dropped silently."""
    monkeypatch.setattr(train_sft, "autocast", lambda device: torch.autocast("cpu", enabled=False))
    policy = save_policy(tmp_path / "policy", vocab_padding=5)
    write_jsonl(tmp_path / "data.jsonl",
                DATA + [{**DATA[0], "id": "long", "response": DATA[0]["response"] + " long" * 300}])
    lines = []
    for micro_tokens in ("1", "8192"):
        train_sft.main(["--model", policy, "--data", str(tmp_path / "data.jsonl"), "--out",
                        str(tmp_path / "out"), "--epochs", "2", "--batch", "3", "--lr", "1e-3",
                        "--kl", "0.1", "--micro-tokens", micro_tokens, "--max-new-tokens", "4",
                        "--test-count", "2", "--device", "cpu", "--overwrite"])
        lines.append([json.loads(line)
                      for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()])
    assert "1 longer than the limit" in capsys.readouterr().out

    tokenizer = Tokenizer.load(policy)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(policy)
    losses = []
    for row in DATA:
        text, last = row["response"], row["response"].rindex("x = 6")
        retry = text.rfind(RETRY)
        start = last if retry < 0 else retry - 2  # the blank line before the phrase belongs to it
        learned = [start <= i for i in range(len(text))]
        for i in range(len(SOLVES)):  # verifications of wrong solutions
            begin = text.find(f"\n\n{RECHECK}\n\n{i} é")
            if 0 <= begin < start:
                stop = text.index(f"\n\n{RETRY}", begin)
                learned[begin: stop] = [True] * (stop - begin)
        # a token is a byte; and the end token
        mask = [learned[i] for i, c in enumerate(text) for _ in c.encode()] + [True]
        prompt = tokenizer.prompt(SOLVE_PROMPT.format(question=row["question"]))
        ids = torch.tensor([prompt + tokenizer.encode(text) + [tokenizer.end_id]])
        with torch.no_grad():
            loss = F.cross_entropy(theirs(ids).logits[0, :-1, :tokenizer.vocab_size], ids[0, 1:],
                                   reduction="none")
        losses += loss[len(prompt) - 1:][torch.tensor(mask)].tolist()
    for first, second in lines:
        assert first["learned_tokens"] == len(losses)
        assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
        assert first["kl"] == pytest.approx(0, abs=1e-5) and second["kl"] > 0
        assert second["loss"] < first["loss"]
    for one, other in zip(*lines):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
