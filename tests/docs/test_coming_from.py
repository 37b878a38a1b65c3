"""The page for newcomers from other libraries: both blocks of a pair give the same spikes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import weighted_sum
from tests.docs.pages import DOCS
from tracetorch import snn
from tracetorch.snn.signatures import OTHER_NAMES

PAGE = (DOCS / "use/coming_from.md").read_text()
PEERS = {"snnTorch": "snntorch", "SpikingJelly": "spikingjelly", "Norse": "norse"}
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)


def pairs() -> list[tuple[str, str, str, str]]:
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        peer = PEERS.get(part.partition("\n")[0])
        for section in re.split(r"^### ", part, flags=re.M)[1:]:
            theirs, ours = BLOCK.findall(section)
            assert peer is not None, section
            assert re.search(rf"^(import|from) {peer}\b", theirs, flags=re.M), section
            found.append((peer, section.partition("\n")[0], theirs, ours))
    return found


PAIRS = pairs()
IDS = [f"{peer}-{heading}" for peer, heading, *_ in PAIRS]


def executed(block: str) -> dict[str, Any]:
    """Run a block behind the first one of the page, with gradients of its input."""
    names: dict[str, Any] = {}
    exec(BLOCK.findall(PAGE)[0], names)
    names["x"].requires_grad_()
    exec(block, names)
    return names


def results(names: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    y: Tensor = names["membrane"] if "membrane" in names else names["spikes"]
    wanted, signs = {"x": names["x"]}, {"raw_beta": 1}
    layers = (names["first"], names["second"]) if "first" in names else names.get("net", ())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    wanted |= {f"{number}.weight": layer.weight for number, layer in enumerate(linear)}
    if hasattr(names.get("lif"), "w"):  # SpikingJelly's decay is 1 - sigmoid(w)
        wanted["raw_beta"], signs["raw_beta"] = names["lif"].w, -1
    elif isinstance(names.get("lif"), snn.LIF) and names["lif"].beta.ndim == 0:
        wanted["raw_beta"] = names["lif"].raw_beta
    gradients = torch.autograd.grad(weighted_sum(y), list(wanted.values()))
    found = zip(wanted, gradients, strict=True)
    return y.detach(), {name: signs.get(name, 1) * gradient for name, gradient in found}


def test_every_block_is_one_of_a_pair_and_names_of_errors_are_in_the_table() -> None:
    assert len(BLOCK.findall(PAGE)) == 1 + 2 * len(PAIRS)
    assert {peer for peer, *_ in PAIRS} == set(PEERS.values())
    table = PAGE.partition("## Names")[2].partition("\n## ")[0]
    explained = {"threshold", "v_threshold", "v_th", "spike_grad", "surrogate_function"}
    explained |= {"learn_threshold", "reset_mechanism", "v_reset", "tau", "decay_input"}
    assert explained <= OTHER_NAMES.keys()
    assert [name for name in sorted(explained) if not re.search(rf"`{name}\b", table)] == []


@pytest.mark.parametrize("ours", [pair[3] for pair in PAIRS], ids=IDS)
def test_our_blocks_run_compiled(ours: str) -> None:
    with tt.fuse.backend("cpu"):
        y, gradients = results(executed(ours))
    assert y.any()
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.filterwarnings("default")  # peers' own
@pytest.mark.parametrize(("peer", "heading", "theirs", "ours"), PAIRS, ids=IDS)
def test_spikes_are_equal(peer: str, heading: str, theirs: str, ours: str) -> None:
    if find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed; the extra 'test-peers' brings it")
    expected, their_gradients = results(executed(theirs))
    y, gradients = results(executed(ours))
    if "membrane" in ours:
        torch.testing.assert_close(y, expected)
    else:
        assert 0.02 < float(y.mean()) < 0.9
        assert torch.equal(y, expected)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = float(gradient.abs().max())
        found, wanted = {name: gradients[name]}, {name: gradient}
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.skipif(find_spec("snntorch") is None, reason="snnTorch is not installed")
@pytest.mark.filterwarnings("default")  # its own
def test_what_snntorch_calls_triangular_and_counts() -> None:
    from snntorch import functional, surrogate

    u = torch.tensor([-3.0, -0.1, 0.1, 3.0], requires_grad=True)
    surrogate.triangular(threshold=1.0)(u).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [1, 1, -1, -1]
    ours = tt.functional.triangular_surrogate(2.0)
    assert ours.derivative(u.detach()).tolist() == pytest.approx([0, 0.475, 0.475, 0])
    spikes, target = torch.zeros(7, 1, 2), torch.tensor([0])
    spikes[:5, 0, 0] = 1
    assert functional.mse_count_loss(correct_rate=0.8)(spikes, target) == 0  # 5.6 is 5
    assert float(tt.loss.count_mse(spikes, target, correct=5.6)) == pytest.approx(0.6**2 / 2)


@pytest.mark.skipif(find_spec("spikingjelly") is None, reason="SpikingJelly is not installed")
@pytest.mark.filterwarnings("default")
def test_pairs_of_one_step_count_twice_in_spikingjelly() -> None:
    from spikingjelly.activation_based.functional import learning

    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    options: Any = {"tau_pre": 20.0, "tau_post": 20.0, "f_pre": lambda w: w + 0.25}
    given = one, one, (zero, zero), zero
    delta, _ = learning.stdp_linear_step(*given, **options, f_post=lambda w: w + 0.75)
    assert float(delta) == 0.75 - 0.25  # as before, and as after
