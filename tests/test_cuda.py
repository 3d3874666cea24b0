"""On a GPU: the scripts run, text and training steps are those of a CPU.

Where there is no GPU they run on a pretended one, which also counts what makes the host wait for
the device; faults are planted to see that both are noticed.
"""
import contextlib
import copy
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pretended_cuda
import pytest
import torch
from test_ppo import made
from test_sampler import PROMPTS, save_policy

import build_data
import train_rl
import train_sft
from nanoverify import evaluate, ppo, sampler, scoring
from nanoverify import model as model_file
from nanoverify.checkpoint import load_model, save_model
from nanoverify.rollout import PPO, log_probs, rollout_of
from nanoverify.sampler import Sampling, generate
from nanoverify.support import decoding, kernels
from nanoverify.support.files import read_jsonl, write_jsonl
from nanoverify.support.stage import clipped_step, load
from nanoverify.support.state import Learner, restore, training_tensors
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools import ask
from nanoverify.trajectory import RECHECK, parse
from nanoverify.verifier import VERDICTS, Verification

REAL = torch.cuda.is_available()
if not (REAL or pretended_cuda.AVAILABLE):
    pytest.skip("no GPU, and this PyTorch has no backends written in Python, of which one can be "
                "pretended", allow_module_level=True)
GPU = "cuda:0"
STEPS_OF_A_LOOK = 4
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random checkpoint, with ids that the tokenizer does not know."""
    torch.set_num_threads(1)
    return save_policy(tmp_path_factory.mktemp("cuda") / "policy", vocab_padding=5)


@contextlib.contextmanager
def gpu():
    """Within, "cuda:0" is there. -> what counts the waits of a pretended one, or None"""
    with contextlib.nullcontext() if REAL else pretended_cuda.pretended_cuda() as device:
        yield device


@pytest.fixture(autouse=True)
def precision():
    """The scripts may choose the precision of products; in a test that compares, it is fp32."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def fp32(monkeypatch):
    """No bf16, since that rounds otherwise on each device."""
    used = kernels.autocast
    for module in list(sys.modules.values()):
        if vars(module).get("autocast") is used:
            monkeypatch.setattr(module, "autocast", lambda device: torch.autocast(
                torch.device(device).type, enabled=False))


@pytest.fixture(autouse=True)
def short_looks(monkeypatch):
    """A few steps of decoding show what many would."""
    monkeypatch.setitem(sampler.CHECK, "cuda", STEPS_OF_A_LOOK)


# ---- what runs on both devices -----------------------------------------------------------------

STOPS = set(range(12))


def texts(policy, device, **settings):
    """Texts of different lengths, of more rows than the batch holds."""
    model = load_model(policy, device)
    rows = generate(model, PROMPTS[:5], Sampling(18, samples=2, stop_ids=STOPS,
                                                 vocab_size=Tokenizer.load(policy).vocab_size,
                                                 seed=1, batch_size=6, **settings))
    return [sample for row in rows for sample in row]


def moved(model, optimizer, value_head=None):
    """What an optimizer step left, as the CPU sees it."""
    tensors = training_tensors(model, optimizer, value_head)
    return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}


def careful(optimizer):
    """Adam divides by the size of a gradient, also where it is nothing but rounding; and steps so
    large that responses reach the clipping are decided by rounding, too."""
    for group in optimizer.param_groups:
        group.update(eps=1e-4, lr=1e-3)
    return optimizer


ROWS = [(PROMPTS[a], PROMPTS[b], [i % 3 > 0 for i in range(len(PROMPTS[b]))], a)
        for a, b in ((0, 2), (3, 4), (1, 0))]


def sft_setup(policy, device, rows, *flags):
    """What a step of stage 1 needs."""
    args = train_sft.flags(["--model", policy, "--device", device, "--micro-tokens", "32", *flags])
    model, tokenizer = load(args)
    torch.set_float32_matmul_precision("highest")
    base = load_model(policy, device).requires_grad_(False) if args.kl else None
    optimizer = careful(torch.optim.AdamW(model.parameters(), fused=True))
    return SimpleNamespace(model=model, base=base, batch=rows, optimizer=optimizer,
                           settings=train_sft.SFT(args.micro_tokens, args.kl),
                           vocab_size=tokenizer.vocab_size)


def sft_update(s) -> list[float]:
    loss, kl, _ = train_sft.accumulate(s.model, s.base, s.batch, s.vocab_size, s.settings)
    return [loss, kl, clipped_step(s.model, s.optimizer, "here")]


def sft_step(policy, device, *flags):
    """Two optimizer steps of stage 1; between them the state is saved and restored."""
    s, signs = sft_setup(policy, device, ROWS, *flags), []
    for _ in range(2):
        signs += sft_update(s)
        after = moved(s.model, s.optimizer)
        restore(after, s.model, s.optimizer)
    return after | {"signs": torch.tensor(signs)}  # loss, KL and norm of both steps


def rl_setup(policy, device, groups, *flags):
    """What a step of stage 2 needs, with made-up responses in place of sampled ones."""
    args = train_rl.flags(["--model", policy, "--device", device, *flags])
    model, tokenizer = load(args)
    torch.set_float32_matmul_precision("highest")
    reference = copy.deepcopy(model).requires_grad_(False) if args.beta else None
    learner = train_rl.new_learner(model, args.advantage == "gae", args.lr)
    settings = PPO(tokenizer.vocab_size, args.temperature, args.minibatches, args.clip,
                   args.micro_tokens)
    rules = train_rl.RewardRules(args.reward, args.advantage == "gae", args.beta, args.plain)
    return SimpleNamespace(model=model, reference=reference, value_head=learner.value_head,
                           rules=rules, optimizer=careful(learner.optimizer), settings=settings,
                           rollout=rollout_of(groups, tokenizer))


def rl_update(s) -> dict:
    """Score, weigh and update: all of a step after the sampling. -> vital signs"""
    train_rl.score(s.rollout, s.model, s.reference, s.value_head, s.settings)
    train_rl.mark(s.rollout)
    train_rl.weigh(s.rollout, s.rules)
    return train_rl.update(Learner(s.model, s.optimizer, s.value_head), s.rollout, s.settings,
                           random.Random(0), "here")


def rl_step(policy, device, *flags):
    """Two steps of stage 2; between them the state is saved and restored."""
    groups = [[made("++"), made("-+++")], [made("--"), made("+--+")]]
    s = rl_setup(policy, device, groups, "--minibatches", "2", "--micro-tokens", "256", *flags)
    found = {}
    for number in range(2):
        # the policy likes some more, and some less, than the sampler did
        moves = torch.tensor([0.4, 0.0, 0.1, -0.4])[:, None] * s.rollout.mask
        s.rollout.old = log_probs(s.model, s.rollout, s.settings) - moves
        signs = rl_update(s)
        found[f"signs{number}"] = torch.tensor(list(signs.values()))
        found |= {f"old{number}": s.rollout.old, f"advantages{number}": s.rollout.advantages}
        after = moved(s.model, s.optimizer, s.value_head)
        restore(after, s.model, s.optimizer, s.value_head)
    return found | after


# ---- the same as on a CPU ----------------------------------------------------------------------

def is_tie(policy, number, a, b, temperature=1.0, top_k=0, top_p=1.0) -> bool:
    """Do two samples part where the random number lies within rounding of the border of both?"""
    model, vocab_size = load_model(policy), Tokenizer.load(policy).vocab_size
    prompt, t = PROMPTS[number // 2], next(t for t, (x, y) in enumerate(zip(a, b)) if x != y)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + a[:t]]))[0, -1:, :vocab_size]
    log_probs = sampler.keep_top(sampler.scaled_log_probs(logits, temperature or 1), top_k, top_p)
    low, high = sorted((a[t], b[t]))
    if not temperature:
        return log_probs[0, [low, high]].diff().abs() < 1e-5
    edges = log_probs[0].exp().cumsum(-1)
    u = sampler.uniform(1, number // 2, 2, 18)[number % 2, t]
    return max(abs(edges[low] - u), abs(edges[high - 1] - u)) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"top_k": 20}, {"top_p": 0.9}, {"temperature": 0}],
                         ids=str)
def test_texts_are_those_of_a_cpu(policy, settings):
    """Bug: tensors of two devices meet in the sampler, or the text depends on the device."""
    theirs = texts(policy, "cpu", **settings)
    with gpu():
        ours = texts(policy, GPU, **settings)
    ties = 0
    for number, (mine, other) in enumerate(zip(ours, theirs)):
        if mine.ids == other.ids:
            assert mine.finished == other.finished
            close(torch.tensor(mine.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
        else:
            assert is_tie(policy, number, mine.ids, other.ids, **settings)
            ties += 1
    assert ties < 2 and len({len(s.ids) for s in ours}) > 1


def assert_same_step(ours, theirs):
    """Ratios are powers of differences of log-probs, and so are less exact than the weights."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = 1e-3 if name.startswith("signs") else 1e-4
        close(ours[name], expected, rtol=error, atol=error,
              msg=lambda said, name=name: f"{name}: {said}")


STEPS = [(sft_step, []), (sft_step, ["--kl", "0.1", "--recompute"]), (rl_step, []),
         (rl_step, ["--beta", "0.1", "--recompute"]),
         (rl_step, ["--advantage", "gae", "--plain", "--temperature", "0.7"])]


@pytest.mark.parametrize("step, flags", STEPS, ids=lambda x: getattr(x, "__name__", None) or str(x))
def test_optimizer_steps_are_those_of_a_cpu(step, flags, policy, fp32):
    """Bug: devices mix in the loss, its gradient, the optimizer or a restored state."""
    theirs = step(policy, "cpu", *flags)
    with gpu():
        ours = step(policy, GPU, *flags)
    assert_same_step(ours, theirs)


def test_left_padding(policy):
    """Bug: the mask of padded prompts is made on the CPU."""
    ids, seen = torch.tensor([[0, 3, 4], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    with torch.no_grad(), gpu():
        found = load_model(policy, GPU)(ids.to(GPU), seen.to(GPU)).cpu()
        close(found, load_model(policy)(ids, seen), rtol=0, atol=1e-4)


def test_a_saved_model_is_the_loaded_one(policy, tmp_path):
    """Bug: weights cannot be saved from the device, or are changed on the way."""
    with gpu():
        save_model(load_model(policy, GPU), tmp_path, policy)
    saved = dict(load_model(tmp_path).named_parameters())
    for name, parameter in load_model(policy).named_parameters():
        assert torch.equal(saved[name], parameter), name


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_that_of_a_cpu(temperature, policy):
    """Bug: a single response, watched while it comes, works only on the CPU."""
    tokenizer = Tokenizer.load(policy)

    def stream(device):
        model = load_model(policy, device)
        return list(ask.stream(model, tokenizer, PROMPTS[0], 12, temperature, seed=3))
    with gpu():
        assert stream(GPU) == stream("cpu")


# ---- what a GPU takes and what it refuses ------------------------------------------------------

NUMBERS, IDS = torch.arange(6.0).view(2, 3) - 2, torch.tensor([1, 0])
TAKEN = {  # a: on the device, c: on the CPU
    "a number on the CPU": lambda a, c: a * c[0, 1] + c[1, 1] / a,
    "where": lambda a, c: torch.where(a > 0, a, c[0, 0]),
    "masked_fill": lambda a, c: a.masked_fill(a > 0, c[0, 0]),
    "fill": lambda a, c: a.clone().fill_(c[0, 0]),
    "index on the CPU": lambda a, c: a[IDS] + a[:, c[0] > -2].sum(),
    "write at an index on the CPU": lambda a, c: a.clone().index_put_((IDS,), c[0, 0]),
    "copies": lambda a, c: a.clone().copy_(c) + c.clone().copy_(a).to(a.device),
    "a view written in place": lambda a, c: a.clone().view(-1)[2:].add_(1).sum() + a,
    "to where it is": lambda a, c: (b := a.clone()).to(a.device).fill_(7) * 0 + b,
    "list": lambda a, c: a[[1, 0], [0, 2]] + torch.tensor(a.tolist(), device=a.device)[:, :2]}
REFUSED = {
    "sum": lambda a, c: a + c,
    "in place": lambda a, c: a.clone().lerp_(c, 0.5),
    "product": lambda a, c: a @ c.T,
    "linear": lambda a, c: torch.nn.functional.linear(a, c),
    "baddbmm": lambda a, c: torch.baddbmm(c[None, :, :2], a[None], a.T[None]),
    "mask": lambda a, c: a.masked_fill(c > 0, 0.0),
    "cat": lambda a, c: torch.cat([a, c]),
    "gather": lambda a, c: a.gather(0, IDS[None]),
    "embedding": lambda a, c: torch.nn.functional.embedding(IDS, a),
    "index_copy": lambda a, c: a.clone().index_copy_(0, IDS, a),
    "searchsorted": lambda a, c: torch.searchsorted(a, c),
    "index on the device": lambda a, c: c[IDS.to(a.device)],
    "values on the CPU": lambda a, c: a.clone().index_put_((IDS.to(a.device),), c),
    "comparison": lambda a, c: torch.equal(a, c),
    "generator": lambda a, c: torch.rand(2, device=a.device, generator=torch.Generator())}


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name):
    """Bug: the pretended GPU refuses, or computes wrongly, what a real one takes."""
    with gpu():
        close(TAKEN[name](NUMBERS.to(GPU), NUMBERS).detach().cpu(), TAKEN[name](NUMBERS, NUMBERS))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """Bug: the pretended GPU takes what a real one refuses."""
    with gpu(), pytest.raises(RuntimeError if REAL else pretended_cuda.Mixed):
        REFUSED[name](NUMBERS.to(GPU), NUMBERS)


def test_low_precision():
    """Bug: autocast does not reach the device, so that all would be computed in fp32."""
    with gpu(), torch.no_grad():
        a = NUMBERS.to(GPU)[None, None, :, :2]
        with kernels.autocast(GPU):
            low = [a @ a, torch.nn.functional.linear(a, a[0, 0]), torch.bmm(a[0], a[0]),
                   torch.nn.functional.scaled_dot_product_attention(a, a, a, is_causal=True)]
            assert {x.dtype for x in low} == {torch.bfloat16} and (a * a).dtype is torch.float32
        assert (a @ a).dtype is torch.float32


# ---- whole scripts -----------------------------------------------------------------------------

@pytest.fixture
def small(policy, tmp_path, monkeypatch):
    """Flags of a small run in an empty folder, where every second response is rewarded."""
    monkeypatch.chdir(tmp_path)
    seen = {}  # kept, so that no other gets its id
    monkeypatch.setattr(ppo, "outcome_reward", lambda t: seen.setdefault(
        id(t), (1.0 if len(seen) % 2 else -1.0, t))[0])
    flags = ["--model", policy, "--device", GPU, "--max-new-tokens", "5", "--test-count", "2"]
    with gpu():
        yield flags


def test_stage_1_runs(small):
    """Bug: SFT, or resuming it, works only on the CPU."""
    response = f"The answer is 2.\n\n{RECHECK}\n\n{VERDICTS[True]}"
    write_jsonl("data.jsonl", [{"id": str(i), "question": f"1 + {i}?", "answer": "2",
                                "response": response} for i in range(4)])
    small += ["--data", "data.jsonl", "--batch", "2", "--out", "sft", "--micro-tokens", "64",
              "--kl", "0.1", "--recompute"]
    train_sft.main([*small, "--steps", "1"])
    train_sft.main([*small, "--steps", "2", "--resume"])
    lines = [line for _, line in read_jsonl(Path("sft/metrics.jsonl"))]
    assert [line["step"] for line in lines] == [1, 2] and all(line["grad_norm"] for line in lines)


@pytest.mark.parametrize("flags", [["--reward", "both", "--beta", "0.1"], ["--advantage", "gae"],
                                   ["--reward", "outcome"]], ids=str)
def test_stage_2_runs(flags, small):
    """Bug: RL, or resuming it, works only on the CPU."""
    small += ["--prompts", "2", "--samples", "2", "--out", "rl",
              "--micro-tokens", "64", "--minibatches", "2", *flags]
    train_rl.main([*small, "--steps", "1"])
    train_rl.main([*small, "--steps", "2", "--resume"])
    lines = [line for _, line in read_jsonl(Path("rl/metrics.jsonl"))]
    assert [line["step"] for line in lines] == [1, 2] and any(line["grad_norm"] for line in lines)


def test_stage_0_runs(small, monkeypatch):
    """Bug: answering or verifying works only on the CPU."""
    respond, verify, asked = build_data.respond, build_data.verify, []

    def answers(model, tokenizer, problems, *rest):
        """Sampled as it should be; then others are put in their place that can be used."""
        asked.append(sum(len(row) for row in respond(model, tokenizer, problems, *rest)))

        def say(problem, text):
            return parse(problem, [*tokenizer.encode(f"The answer is {text}."), tokenizer.end_id],
                         True, tokenizer)
        return [[say(problem, problem.answer), say(problem, "77777")] for problem in problems]

    def checks(model, tokenizer, claims, *rest):
        asked.append(sum(len(row) for row in verify(model, tokenizer, claims, *rest)))
        said = [answer != "77777" for _, answer in claims]
        return [[Verification(VERDICTS[right], right, True)] for right in said]
    monkeypatch.setattr(build_data, "respond", answers)
    monkeypatch.setattr(build_data, "verify", checks)
    build_data.main([*small, "--count", "3", "--samples", "2", "--out", "data"])
    assert asked == [6, 6, 6]
    assert len(list(read_jsonl(Path("data/trajectories.jsonl")))) == 3


def test_evaluation_and_one_question_run(small, capsys):
    """Bug: the programs beside the path work only on the CPU."""
    evaluate.main([*small, "--json"])
    assert json.loads(capsys.readouterr().out)
    ask.main([*small[:-2], "1 + 1?"])
    assert "(cut by --max-new-tokens)" in capsys.readouterr().out


# ---- kernels and graphs that only CUDA has -----------------------------------------------------

def replant(monkeypatch, function, new):
    """`new` in the place of a function or method, wherever it has been imported."""
    holders = [*sys.modules.values(), sampler.KVCache, sampler.Batch, decoding.Replay]
    for holder in holders:
        if vars(holder).get(function.__name__) is function:
            monkeypatch.setattr(holder, function.__name__, new)


def eager(monkeypatch):
    """Nothing is recorded."""
    replant(monkeypatch, decoding.Replay.__call__, lambda self, key, work: work())


def long_texts(policy, mixed):
    """Texts of 30 tokens: one from the prompt, one from a step that is not recorded, 28 others."""
    model = load_model(policy, GPU)
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        rows = generate(model, PROMPTS[:4],
                        Sampling(30, vocab_size=Tokenizer.load(policy).vocab_size))
    return [sample for row in rows for sample in row]


def compared(policy, mixed, plant=lambda patch: None):
    """Texts of recorded and of ordinary steps."""
    found = []
    for prepare in (lambda patch: None, eager):
        with pytest.MonkeyPatch.context() as patch, gpu():
            plant(patch)
            prepare(patch)
            found.append(long_texts(policy, mixed))
    return found


@pytest.mark.parametrize("mixed", [False, True])
def test_recorded_steps_are_ordinary_ones(mixed, policy):
    """Bug: a step of decoding depends on what the host remembers, which a CUDA graph does not."""
    recorded, ordinary = compared(policy, mixed)
    for ours, plain in zip(recorded, ordinary, strict=True):
        assert ours.ids == plain.ids and len(ours.ids) == 30
        close(torch.tensor(ours.logprobs), torch.tensor(plain.logprobs), rtol=0, atol=1e-4)


def test_sampler_and_trainer_agree(policy):
    """Bug: the kernel of packed sequences, or that of cached ones, is told of other tokens."""
    tokenizer = Tokenizer.load(policy)
    with gpu():
        model = load_model(policy, GPU)
        with kernels.autocast(GPU):
            rows = generate(model, PROMPTS, Sampling(18, samples=2, stop_ids=STOPS,
                                                     vocab_size=tokenizer.vocab_size, batch_size=6))
            pairs = [(prompt, sample.ids) for prompt, row in zip(PROMPTS, rows) for sample in row]
            packed = scoring.join(pairs, [[1] * len(ids) for _, ids in pairs], GPU)
            with torch.no_grad():
                hidden = model.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
        found = scoring.token_log_probs(hidden, model.lm_head.weight, packed.targets,
                                        tokenizer.vocab_size).tolist()
    written = [number for row in rows for sample in row for number in sample.logprobs]
    differences = [abs(a - b) for a, b in zip(found, written, strict=True)]
    assert 0 < sum(differences) / len(differences) < 0.03


def test_gradients_of_packed_attention(policy, monkeypatch):
    """Bug: the kernel of packed sequences lets them see each other, or has another gradient."""
    ids, found, used, real = torch.arange(96)[None] % 61, [], [], kernels.flash_attention
    replant(monkeypatch, real, lambda *rest: used.append(1) or real(*rest))
    with gpu():
        for flash in (True, False):
            if not flash:
                replant(monkeypatch, kernels.has_flash, lambda x: False)
            model = load_model(policy, GPU)
            with kernels.autocast(GPU):
                hidden = model.hidden(ids.to(GPU), lengths=[32, 48, 16])
            (hidden * torch.linspace(-1, 1, 32, device=GPU)).sum().backward()
            gradients = [parameter.grad.flatten().cpu() for parameter in model.parameters()]
            found.append((hidden.detach().flatten().cpu(), torch.cat(gradients)))
    assert len(used) == 2  # layers
    for ours, plain in zip(*found):
        assert (ours - plain).norm() / plain.norm() < 0.02


pretended_only = pytest.mark.skipif(REAL, reason="seen only on a pretended GPU")


@pretended_only
@pytest.mark.parametrize("work, flags", [
    (texts, []), (sft_step, ["--kl", "0.1"]), (rl_step, ["--advantage", "gae", "--recompute"])],
    ids=["texts", "sft", "rl"])
def test_arguments_of_the_kernel(work, flags, policy, fp32, monkeypatch):
    """Bug: the kernel for half precision is told of other sequences or tokens than it should."""
    theirs = work(policy, "cpu", *flags)
    used, real = [], kernels.flash_attention
    replant(monkeypatch, kernels.has_flash, lambda x: x.device.type == "cuda")
    replant(monkeypatch, real, lambda *rest: used.append(1) or real(*rest))
    with gpu():
        ours = work(policy, GPU, *flags)
    assert used
    if work is texts:
        assert [s.ids for s in ours] == [s.ids for s in theirs]
    else:
        assert_same_step(ours, theirs)


# ---- how often the host waits for the device ---------------------------------------------------
# Each wait of the host is time in which the device runs dry. What follows is counted on a pretended
# GPU. The bounds are what the code needs today, not what it must need: {function: waits}.

GENERATE = {"__init__": 1,  # which ids are stops
            "prefill": 2,  # ids and lengths
            "admit": 1,  # random numbers
            "fill_in": 3}  # which rows have ended; their ids and log-probs
LOOK = {"retire": 2}  # which rows have ended: `nonzero`, and its copy
STEP = {"read": 1,  # the signs of all micro-batches
        "clipped_step": 1}  # the norm, since a step that is not finite is never taken
SCORE = {"work": 1}  # log-probs, or values, come back


def decoding_job(policy, looks):
    model = load_model(policy, GPU)
    return lambda: generate(model, PROMPTS[:2],
                            Sampling(1 + (looks - 1) * STEPS_OF_A_LOOK, vocab_size=260))


def sft_job(policy, parts, *flags):
    """Stage 1's step with this many micro-batches."""
    rows = [(PROMPTS[0], PROMPTS[2], [1] * 4, i) for i in range(parts)]
    s = sft_setup(policy, GPU, rows, *flags)
    return lambda: sft_update(s)


def rl_job(policy, parts, *flags):
    """Stage 2's step with this many micro-batches."""
    groups = [[made("++"), made("--")]] * (parts // 2)
    s = rl_setup(policy, GPU, groups, "--minibatches", "1", "--micro-tokens", "1", *flags)
    return lambda: rl_update(s)


# what is done, with how many looks or micro-batches; waits in all, and for each of these
JOBS = {"decoding": (decoding_job, [], GENERATE, LOOK),
        "sft": (sft_job, [], STEP, {}), "sft --kl": (sft_job, ["--kl", "0.1"], STEP, {}),
        "rl": (rl_job, ["--beta", "0"], STEP, {}),
        "rl --beta": (rl_job, ["--beta", "0.1"], STEP, SCORE),
        "rl gae": (rl_job, ["--advantage", "gae", "--beta", "0"], STEP, SCORE)}


def check(name, policy, number=4):
    """Do it, with this many looks or micro-batches, and compare how often the host waited."""
    job, flags, once, each = JOBS[name]
    with pretended_cuda.pretended_cuda() as device:
        work = job(policy, number, *flags)
        device.waits.clear()
        work()
        found = device.by_function()
    too_many = {function: times for function, times in found.items()
                if times > once.get(function, 0) + number * each.get(function, 0)}
    assert not too_many, f"waits: {found}"


@pretended_only
@pytest.mark.parametrize("name", JOBS)
def test_waits(name, policy):
    """Bug: the host waits in a step of decoding, or in a micro-batch, or more often than it did."""
    check(name, policy)


# ---- planted faults: would they be seen? -------------------------------------------------------
# Each is a function that plants it; its docstring says what it would do on a GPU. `plant(f, make)`
# puts make(f) in the place of f, wherever it has been imported.

FAULTS = {}
MIXED, CAPTURE = pretended_cuda.Mixed, pretended_cuda.NotCapturable
WAITS, TEXTS = "waits", "texts"


def fault(job, seen):
    """What shows it: an error in this job, more `waits` than there should be, or other texts."""
    def note(function):
        FAULTS[function.__name__] = function, job, seen
        return function
    return note


@fault("decoding", MIXED)
def angles_of_frequencies_on_the_cpu(plant):
    """It fails at the first token."""
    plant(model_file.angles, lambda real: lambda positions, frequencies: real(
        positions, frequencies.cpu()))


@fault("decoding", MIXED)
def fused_frequencies_on_the_cpu(plant):
    """It fails at the second token."""
    def make(real):
        def fuse(*args):
            fused = real(*args)
            return replace(fused, frequencies=fused.frequencies.cpu())
        return fuse
    plant(decoding.fuse, make)


@fault("decoding", MIXED)
def a_cache_on_the_cpu(plant):
    """It fails when the first prompt is read."""
    plant(sampler.KVCache, lambda real: lambda config, rows, device, *rest: real(
        config, rows, "cpu", *rest))


@fault("decoding", MIXED)
def a_mask_on_the_cpu(plant):
    """It fails at the second token, where weights are fp32."""
    def make(real):
        def mask(self, *args):
            found = real(self, *args)
            return found if found is None else found.cpu()
        return mask
    plant(sampler.KVCache.mask, make)


@fault("decoding", MIXED)
def tokens_drawn_on_the_cpu(plant):
    """It fails where they are looked up."""
    plant(sampler.draw, lambda real: lambda log_probs, u: real(log_probs.cpu(), u.cpu()))


@fault("decoding", MIXED)
def a_generator_on_the_cpu(plant):
    """It fails: numbers on the device need a generator there."""
    plant(sampler.uniform, lambda real: lambda seed, prompt, samples, tokens: torch.rand(
        samples, tokens, device=GPU, generator=torch.Generator().manual_seed(seed)))


@fault("decoding", CAPTURE)
def a_check_in_each_step(plant):
    """The graph cannot be recorded. Without graphs: right, and slow."""
    def make(real):
        def draw(log_probs, u):
            assert (log_probs.exp().sum(-1) > 0.9).all()
            return real(log_probs, u)
        return draw
    plant(sampler.draw, make)


@fault("decoding", CAPTURE)
def a_length_asked_of_the_device(plant):
    """The graph cannot be recorded. Without graphs: right, and slow."""
    def make(real):
        def decode(fused, ids, cache):
            cache.longest = cache.lengths.max().item()
            return real(fused, ids, cache)
        return decode
    plant(decoding.decode, make)


@fault("decoding", CAPTURE)
def an_index_on_the_cpu_in_each_step(plant):
    """The graph cannot be recorded. Without graphs: right, but copied in each step."""
    def make(real):
        def draw(log_probs, u):
            return real(log_probs[torch.arange(len(log_probs))], u)
        return draw
    plant(sampler.draw, make)


@fault("decoding", WAITS)
def a_look_at_each_row(plant):
    """Right, and slow: with 256 rows the host waits 256 times for what it could ask once."""
    def make(real):
        def retire(self):
            any(bool(ended) for ended in self.ended[: len(self.active)])
            return real(self)
        return retire
    plant(sampler.Batch.retire, make)


@fault(TEXTS, TEXTS)
def lengths_replaced(plant):
    """Nonsense: the graph keeps writing over the same slot."""
    def make(real):
        def advance(self):
            self.lengths = self.lengths.clone()
            real(self)
        return advance
    plant(sampler.KVCache.advance, make)


@fault(TEXTS, TEXTS)
def a_count_of_the_host(plant):
    """Each token gets the random number of the step that was recorded."""
    def make(real):
        steps = []

        def next_token(logits, temperature, top_k, top_p, u):
            steps.append(1)
            return real(logits, temperature, top_k, top_p, (u + 0.1 * len(steps)) % 1)
        return next_token
    plant(sampler.next_token, make)


@fault(TEXTS, IndexError)
def a_cache_that_grows(plant):
    """The graph writes beyond the memory it was recorded with."""
    plant(sampler.KVCache, lambda real: lambda config, rows, device, dtype, slots=0: real(
        config, rows, device, dtype))


@fault("sft", MIXED)
def targets_on_the_cpu(plant):
    """It fails at the first micro-batch."""
    def make(real):
        def join(*args):
            packed = real(*args)
            return replace(packed, targets=packed.targets.cpu())
        return join
    plant(scoring.join, make)


@fault("sft", WAITS)
def places_on_the_cpu(plant):
    """Right, but copied and waited for in each micro-batch."""
    def make(real):
        def join(rows, masks, device):
            return replace(real(rows, masks, device), places=real(rows, masks, "cpu").places)
        return join
    plant(scoring.join, make)


@fault("sft", WAITS)
def blocking_copies(plant):
    """Right, and slow: the host waits until each micro-batch is there."""
    plant(scoring.to_device, lambda real: lambda numbers, device: torch.tensor(numbers).to(device))


@fault("sft", MIXED)
def starts_of_sequences_on_the_cpu(plant):
    """It fails in the first layer."""
    plant(model_file.starts_of, lambda real: lambda lengths, device: real(lengths, "cpu"))


@fault("sft --kl", MIXED)
def states_of_the_base_on_the_cpu(plant):
    """It fails at the first micro-batch."""
    plant(scoring.kl_divergence, lambda real: lambda hidden, weight, base_hidden, *rest: real(
        hidden, weight, base_hidden.cpu(), *rest))


@fault("sft", MIXED)
def one_weight_on_the_cpu(plant):
    """It fails at the first forward pass."""
    def make(real):
        def loaded(*args):
            model = real(*args)
            norm = model.model["norm"]
            norm.weight = torch.nn.Parameter(norm.weight.detach().cpu())
            return model
        return loaded
    plant(load_model, make)


@fault("sft", WAITS)
def a_loss_read_on_the_way(plant):
    """Right, and slow: the host waits before it asks for the gradient."""
    def make(real):
        def token_log_probs(*args):
            found = real(*args)
            assert found.mean().item() <= 0
            return found
        return token_log_probs
    plant(scoring.token_log_probs, make)


@fault("rl", WAITS)
def signs_read_one_by_one(plant):
    """Right, and slow: the host waits for each of six numbers of each micro-batch."""
    plant(scoring.read, lambda real: lambda rows: [
        {name: sign.item() for name, sign in row.items()} for row in rows])


@fault("rl", WAITS)
def a_boolean_index(plant):
    """Right, and slow: how many are selected is asked of the device."""
    def make(real):
        def token_log_probs(hidden, weight, ids, *rest):
            some = ids >= 0
            return real(hidden[some], weight, ids[some], *rest)
        return token_log_probs
    plant(scoring.token_log_probs, make)


@fault("rl --beta", MIXED)
def log_probs_left_on_the_device(plant):
    """It fails: the rollout's numbers are on the CPU."""
    plant(log_probs, lambda real: lambda *args: real(*args).to(GPU))


@fault("rl gae", MIXED)
def a_value_head_on_the_cpu(plant):
    """It fails at the first state."""
    def make(real):
        def new_learner(*args):
            learner = real(*args)
            head = learner.value_head
            head.weight = torch.nn.Parameter(head.weight.detach().cpu())
            return learner
        return new_learner
    plant(train_rl.new_learner, make)


@fault("rl gae", MIXED)
def returns_on_the_cpu(plant):
    """It fails: the value loss compares them with values on the device."""
    plant(ppo.value_loss, lambda real: lambda new, old, returns, clip: real(
        new, old, returns.cpu(), clip))


@fault("resumed", MIXED)
def moments_restored_on_the_cpu(plant):
    """A resumed run fails at its first step."""
    def make(real):
        def restore(tensors, model, optimizer, *rest):
            real(tensors, model, optimizer, *rest)
            for moments in optimizer.state.values():
                moments.update({name: moment.cpu() for name, moment in moments.items()})
        return restore
    plant(restore, make)


@pretended_only
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(name, policy, monkeypatch):
    """Bug: this file sees nothing."""
    function, job, seen = FAULTS[name]

    def plant(patch):
        function(lambda real, make: replant(patch, real, make(real)))
    expected = AssertionError if seen in (WAITS, TEXTS) else seen
    with pytest.raises(expected, match=f"^{seen}" if expected is AssertionError else None):
        if job == TEXTS:
            recorded, ordinary = compared(policy, False, plant)
            assert [s.ids for s in recorded] == [s.ids for s in ordinary], TEXTS
        elif job == "resumed":
            plant(monkeypatch)
            with gpu():
                sft_step(policy, GPU)
        else:
            plant(monkeypatch)
            check(job, policy)


# ---- record and replay: what a CUDA graph would do ---------------------------------------------

class Toy:
    """Writes a running sum of squares, one number a step."""

    def __init__(self):
        self.sum = torch.zeros(1, device=GPU)
        self.place = torch.zeros(1, dtype=torch.long, device=GPU)
        self.written = torch.zeros(40, device=GPU)
        self.steps = 0

    def step(self):
        self.sum += (self.place + 1.0) ** 2
        self.written.index_copy_(0, self.place, self.sum)
        self.place += 1


class HostCounts(Toy):
    """Its place in the text is a number of the host."""

    def step(self):
        super().step()
        self.written[self.steps] += 0.5
        self.steps += 1


class TensorReplaced(Toy):
    """The sum is a new tensor each time."""

    def step(self):
        self.written.index_copy_(0, self.place, self.sum)
        self.sum = self.sum + 1


class HostWaits(Toy):
    """The place is asked of the device."""

    def step(self):
        super().step()
        assert self.place.item() < 40


def replayed(toy):
    """The numbers of 30 steps, one after the other, and of 2 steps and 28 repetitions."""
    found = []
    for recorded in (False, True):
        with pretended_cuda.pretended_cuda() as device, torch.inference_mode():
            one, graph = toy(), pretended_cuda.Graph(device)
            for _ in range(2):
                one.step()
            if recorded:
                with graph:
                    one.step()
            for _ in range(28):
                graph.replay() if recorded else one.step()
            found.append(one.written.tolist())
    return found


@pretended_only
def test_a_step_on_fixed_memory_can_be_repeated():
    """Bug: the recorder itself loses or repeats an operation, or recording takes a step."""
    plain, recorded = replayed(Toy)
    assert plain == recorded and plain[:4] == [1, 5, 14, 30] and plain[29] == 9455


@pretended_only
@pytest.mark.parametrize("toy", [HostCounts, TensorReplaced])
def test_what_the_host_remembers_is_noticed(toy):
    """Bug: a step that depends on the host's state passes for one that can be repeated."""
    plain, recorded = replayed(toy)
    assert plain != recorded


@pretended_only
def test_a_wait_cannot_be_recorded():
    """Bug: a step passes that would end the recording of a CUDA graph."""
    with pytest.raises(pretended_cuda.NotCapturable):
        replayed(HostWaits)
