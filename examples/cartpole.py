"""Train a spiking actor and critic on gymnasium's CartPole.

Sixteen carts run side by side. The four numbers of a cart's state, scaled, are input currents.
The network's states continue from step to step; those of a cart whose pole has fallen are reset by
``zero_states(where=done)``. Every 16 steps the actor and critic (A2C, with generalised advantages)
is trained by backpropagation through all 16, and ``detach_states()`` cuts the graph.

``--blind`` hides the two velocities, so that the network has to infer them from earlier positions;
``--forget`` resets all states before each step, as a baseline without memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import common
from tracetorch import snn
from tracetorch.core.checks import require

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from matplotlib.figure import Figure

CARTS, STEPS = 16, 16
REWARD = 0.05  # for an upright step: keeps values in the range of the readout
GAMMA, LAMBDA = 0.99, 0.95
# typical sizes of position, velocity, angle and angular velocity; gymnasium's own limits of the
# velocities are infinite
SCALE = torch.tensor([1.0, 1.0, 0.1, 1.0])
POSITIONS = torch.tensor([1.0, 0.0, 1.0, 0.0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.cartpole --help``."""
    options = common.Options(
        "examples.cartpole", __doc__ or "", epochs=800, lr=5e-3, unit="updates"
    )
    options.add_argument("--blind", action="store_true", help="hide the velocities")
    options.add_argument(
        "--forget", action="store_true", help="empty all states before every step: no memory"
    )
    parsed = options.parse(arguments)
    name = "LIF" + ", blind" * parsed.blind + ", forgetful" * parsed.forget
    return common.run("cartpole", name, parsed, load, learn, draw)


def load(options: argparse.Namespace) -> Tensor:
    """Return the factors of the inputs: scales, and zeros for hidden velocities."""
    require("gymnasium", extra="examples", by="examples.cartpole")
    return SCALE.reciprocal() * (POSITIONS if options.blind else 1)


class ActorCritic(snn.TTModule):
    """Spiking body with two leaky readouts: an actor and a critic.

    Shape:
        Input ``[B, 4]``, one step; output logits ``[B, 2]`` and values ``[B]``.
    """

    def __init__(self, forget: bool) -> None:
        super().__init__()
        self.forget = forget
        beta = tt.functional.halflife_to_decay(torch.logspace(-1, 3, 64, base=2))
        self.body = nn.Sequential(
            nn.Linear(4, 64), snn.LIF(64, beta=beta), nn.Linear(64, 64), snn.LIF(64, beta=beta)
        )
        self.actor = nn.Sequential(nn.Linear(64, 2), snn.Readout(2, beta=0.5))
        self.critic = nn.Sequential(nn.Linear(64, 1), snn.Readout(1, beta=0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one time step."""
        if self.forget:
            self.zero_states()
        y = self.body(x)
        return self.actor(y), self.critic(y).squeeze(-1)


def carts(number: int) -> VectorEnv:
    """Make carts side by side; after a fall the next state is the first of a new episode."""
    import gymnasium
    from gymnasium.vector import AutoresetMode

    return gymnasium.make_vec(
        "CartPole-v1",
        num_envs=number,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


def learn(options: argparse.Namespace, data: Tensor, seed: int) -> tuple[nn.Module, common.Scores]:
    """Train an actor and critic; return it with its score."""
    from tqdm import tqdm

    envs = carts(CARTS)
    model = ActorCritic(options.forget)
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, options.epochs)

    observations, _ = envs.reset(seed=seed)
    fell = torch.zeros(CARTS, dtype=torch.bool)
    for _ in tqdm(range(options.epochs), f"seed {seed}", leave=False, disable=None):
        log_probs, values, entropies, rewards, ends = [], [], [], [], []
        for _ in range(STEPS):
            if fell.any():
                model.zero_states(where=fell)  # a new episode, for these carts alone
            logits, value = model(torch.as_tensor(observations) * data)
            policy = torch.distributions.Categorical(logits=logits)
            action = policy.sample()
            observations, reward, terminated, truncated, _ = envs.step(action.numpy())
            fell = torch.as_tensor(terminated | truncated)
            log_probs.append(policy.log_prob(action))
            values.append(value)
            entropies.append(policy.entropy())
            rewards.append(REWARD * torch.as_tensor(reward, dtype=torch.float32))
            ends.append(fell)
        with torch.no_grad():  # value of the next step; the states are restored after it
            states = tt.get_states(model)
            _, following = model(torch.as_tensor(observations) * data)
            tt.set_states(model, states)
        value = torch.stack(values)
        gain = advantages(torch.stack(rewards), value.detach(), torch.stack(ends), following)
        # normalised, so that the step size does not depend on the size of the rewards
        scaled = (gain - gain.mean()) / (gain.std() + 1e-6)
        # policy gradient, squared error of the critic, and a bonus for exploration
        loss = (
            -(torch.stack(log_probs) * scaled).mean()
            + (value - (gain + value.detach())).square().mean()
            - 0.003 * torch.stack(entropies).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.detach_states()
    envs.close()
    lengths = play(model, data, 64, seed=1000 + seed)
    return model, {"mean return of 64 tries (500 is the most)": float(lengths.mean())}


def advantages(rewards: Tensor, values: Tensor, ends: Tensor, following: Tensor) -> Tensor:
    """Compute generalised advantage estimates ``[T, B]``; ``following`` are values ``[B]``.

    ::

        delta[t] = rewards[t] + gamma * values[t + 1] - values[t],  without values[t + 1] at an end
        A[t] = delta[t] + gamma * lambda * A[t + 1],                 without A[t + 1] at an end

    Reference:
        J. Schulman et al., High-dimensional continuous control using generalized advantage
        estimation (2016).
    """
    continues = GAMMA * (~ends).float()
    ahead = torch.cat([values[1:], following.unsqueeze(0)])
    delta = rewards + continues * ahead - values
    gain = torch.zeros_like(following)
    found = []
    # backwards in time: each estimate contains the next
    for d, g in zip(reversed(delta.unbind()), reversed(continues.unbind()), strict=True):
        gain = d + LAMBDA * g * gain
        found.append(gain)
    return torch.stack(found[::-1])


@torch.no_grad()
def play(model: nn.Module, data: Tensor, episodes: int, seed: int) -> Tensor:
    """Play episodes with the likeliest actions; return the length of each."""
    envs = carts(episodes)
    observations, _ = envs.reset(seed=seed)
    tt.zero_states(model)
    lengths = torch.zeros(episodes)
    up = torch.ones(episodes, dtype=torch.bool)
    while up.any():
        logits, _ = model(torch.as_tensor(observations) * data)
        observations, _, terminated, truncated, _ = envs.step(logits.argmax(1).numpy())
        lengths += up  # carts that have fallen go on with a new episode, which does not count
        up &= ~torch.as_tensor(terminated | truncated)
    tt.zero_states(model)
    envs.close()
    return lengths


@torch.no_grad()
def draw(options: argparse.Namespace, data: Tensor, model: nn.Module) -> Figure:
    """Plot an episode: the inputs, the spikes, and the probability of an action."""
    from matplotlib.figure import Figure

    envs = carts(1)
    observations, _ = envs.reset(seed=0)
    tt.zero_states(model)
    states = []
    for _ in range(150):
        x = torch.as_tensor(observations) * data
        logits, _ = model(x)
        states.append(x)
        observations, _, terminated, truncated, _ = envs.step(logits.argmax(1).numpy())
        if terminated | truncated:
            break
    envs.close()
    tt.zero_states(model)
    # run the episode again to record spikes; by step, because --forget resets states at each one
    (logits, _), spikes = tt.unroll(model, torch.stack(states), by="step", record=["body.3.output"])
    tt.zero_states(model)
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(torch.cat(states).numpy(), label=["position", "velocity", "angle", "angular velocity"])
    top.set(title="inputs of one episode (scaled)")
    top.legend(ncols=4, fontsize="small")
    tt.plot.raster(spikes, ax=middle)
    middle.set(xlabel="")
    bottom.plot(logits[:, 0].softmax(1)[:, 1].numpy())
    bottom.set(ylabel="probability to push right", xlabel="step")
    return figure


if __name__ == "__main__":
    sys.exit(main())
