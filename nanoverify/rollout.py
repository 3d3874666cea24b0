"""The record that travels through a step of stage 2, and what a model says about its responses.

B responses, P questions, T tokens in the longest response. Numbers of tokens are tensors (B, T), on
the CPU and 0 after the end of a response; numbers of actions are lists, one row for each response.
"""
from dataclasses import dataclass, field

import torch

from nanoverify.ppo import Rows
from nanoverify.problems import SOLVE_PROMPT
from nanoverify.scoring import join, micro_batches, room, to_device, token_log_probs
from nanoverify.support.cpu import in_parallel, workers
from nanoverify.support.kernels import autocast
from nanoverify.trajectory import Trajectory, as_row


@dataclass(frozen=True)
class PPO:
    """Settings of the update."""
    vocab_size: int  # ids that the tokenizer knows; the others are padding of the weight matrix
    temperature: float = 1.0  # of the sampling; all log-probs are taken at it
    minibatches: int = 4  # optimizer steps on a rollout
    clip: float = 0.2
    micro_tokens: int = 2048  # in one forward pass


@dataclass
class Rollout:
    """Responses, what they earned, and how much better each token was than expected."""
    trajectories: list[Trajectory]  # B, the samples of one question side by side
    sizes: list[int]  # P: samples of each question
    prompts: list[list[int]]  # B: token ids
    mask: torch.Tensor  # (B, T): 1 on response tokens
    old: torch.Tensor  # (B, T): log-probs with which the sampler drew them
    kl: torch.Tensor  # (B, T): log-prob minus the reference's; 0 without a reference
    known: Rows | None = None  # the advantage of each action, where an earlier policy wrote them
    values: Rows | None = None  # --advantage gae: of the state before each action
    # filled by `train_rl.mark`
    outcomes: list[float] = field(default_factory=list)  # B: outcome rewards
    process: Rows = field(default_factory=list)  # process rewards
    # filled by `train_rl.weigh`
    rewards: Rows = field(default_factory=list)  # what counts of both
    returns: Rows = field(default_factory=list)  # what the values should have been
    raw: torch.Tensor | None = None  # (B, T): advantages before they are normalised
    advantages: torch.Tensor | None = None  # (B, T): those of the update

    def __len__(self):
        return len(self.trajectories)

    def length(self, i: int) -> int:
        return len(self.trajectories[i].ids)

    def flat(self, tokens, rows: list[int]):
        """The numbers of the response tokens of some rows, one after the other. (B, T) -> (N,)."""
        return torch.cat([tokens[i, : self.length(i)] for i in rows])

    def by_question(self, values: list) -> list[list]:
        """A number for each response, B -> one list for each question, P."""
        left = iter(values)
        return [[next(left) for _ in range(size)] for size in self.sizes]


def rollout_of(groups: list[list[Trajectory]], tokenizer) -> Rollout:
    """The record of the responses to P questions: [question][sample]."""
    trajectories = [t for group in groups for t in group]
    questions = [SOLVE_PROMPT.format(question=t.problem.question) for t in trajectories]
    width = max(len(t.ids) for t in trajectories)
    mask, old = torch.zeros(2, len(trajectories), width)
    for i, t in enumerate(trajectories):
        mask[i, : len(t.ids)] = 1
        old[i, : len(t.ids)] = torch.tensor(t.logprobs)
    prompts = [tokenizer.prompt(question) for question in questions]
    return Rollout(trajectories, [len(group) for group in groups], prompts, mask, old,
                   kl=torch.zeros_like(old))


# ---- what a model says about it ----------------------------------------------------------------

def forward(model, rollout: Rollout, rows: list[int]):
    """The final states before all response tokens of these rows, (N, D), and the tokens, (N,)."""
    device = model.lm_head.weight.device
    texts = [(rollout.prompts[i], rollout.trajectories[i].ids) for i in rows]
    masks = [[1] * len(response) for _, response in texts]
    packed = join(texts, masks, device)
    with autocast(device):
        return model.hidden(packed.ids, lengths=packed.lengths)[0, packed.places], packed.targets


def sizes(rollout: Rollout, rows: list[int]) -> list[int]:
    """Tokens that each of these rows takes in a forward pass."""
    return [room(rollout.prompts[i], rollout.trajectories[i].ids) for i in rows]


def each_part(model, rollout: Rollout, micro_tokens: int, work):
    """work(rows, states, tokens) on forward passes without gradient, each row once."""
    @torch.no_grad()
    def one(rows):
        work(rows, *forward(model, rollout, rows))
    count = workers(model)
    in_parallel(one, micro_batches(sizes(rollout, range(len(rollout))), micro_tokens, count), count)


def log_probs(model, rollout: Rollout, settings: PPO):
    """Log-probs of all response tokens by this model, (B, T)."""
    out = torch.zeros_like(rollout.old)

    def work(rows, hidden, ids):
        logprobs = token_log_probs(hidden, model.lm_head.weight, ids, settings.vocab_size,
                                   settings.temperature)
        for i, own in zip(rows, logprobs.cpu().split([rollout.length(i) for i in rows])):
            out[i, : len(own)] = own

    each_part(model, rollout, settings.micro_tokens, work)
    return out


def action_states(hidden, rollout: Rollout, rows: list[int]):
    """The states that predict the first token of each action. (N, D), all states -> (A, D).

    For the first action it is the state of the prompt's last token. An action without tokens at the
    very end takes the state before the last token.
    """
    places, start = [], 0
    for i in rows:
        last = rollout.length(i) - 1
        places += [start + min(action.start, last) for action in rollout.trajectories[i].actions]
        start += last + 1
    return hidden[to_device(places, hidden.device)].float()


def action_values(model, value_head, rollout: Rollout, settings: PPO) -> Rows:
    """What the value head expects of the rest of the response, before each action."""
    out = [[] for _ in rollout.trajectories]

    def work(rows, hidden, ids):
        left = iter(value_head(action_states(hidden, rollout, rows))[:, 0].tolist())
        for i in rows:
            out[i] = [next(left) for _ in rollout.trajectories[i].actions]

    each_part(model, rollout, settings.micro_tokens, work)
    return out


# ---- for people to read ------------------------------------------------------------------------

def rollout_rows(rollout: Rollout, beta: float, gae: bool, tokenizer):
    """A rollout as readable rows: as_row, `outcome`, and for each action

    process    its process reward
    reward     what --reward counts of outcome and process; with GAE, the outcome is on the last
               action only
    kl         mean over its tokens of beta * (log-prob minus the reference's)
    advantage  mean over its tokens, before `normalise`: reward - baseline - kl
    baseline   what was subtracted; None for GAE, whose advantages are sums over later actions
    """
    def mean(x):
        return x.mean().item() if len(x) else 0.0

    for i, trajectory in enumerate(rollout.trajectories):
        row = {**as_row(trajectory, tokenizer), "outcome": rollout.outcomes[i]}
        for j, action in enumerate(row["actions"]):
            tokens = slice(action["start"], action["stop"])
            reward, kl = rollout.rewards[i][j], beta * mean(rollout.kl[i, tokens])
            advantage = mean(rollout.raw[i, tokens])
            baseline = None if gae else round(reward - kl - advantage, 5)
            action.update(process=rollout.process[i][j], reward=reward, kl=round(kl, 5),
                          advantage=round(advantage, 5), baseline=baseline)
        yield row
