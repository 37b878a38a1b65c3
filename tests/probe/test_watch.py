import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.unrolling.models import MODELS, Skip, dyadic, made


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_watch_in_a_plain_loop_equals_record(name: str, grad: bool) -> None:
    x = dyadic(5, *MODELS[name][1])
    model = made(name)
    with torch.set_grad_enabled(grad):
        _, wanted = tt.probe.record(model, x, "*")
        tt.zero_states(model)
        with tt.probe.watch(model, "*") as seen:
            for step in x.unbind():
                model(step)
    found = seen.recording()
    assert list(found) == list(wanted)
    for path, trajectory in wanted.items():
        assert torch.equal(found[path], trajectory), path


def test_watch_removes_its_hooks_after_the_block_and_after_an_error() -> None:
    model = made("dense")
    seen = tt.probe.watch(model, "mem")
    with seen:
        model(dyadic(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"), seen:
        model(dyadic(2, 7))
    tt.zero_states(model)
    model(dyadic(2, 3))
    assert seen.recording()["1.mem"].shape == (1, 2, 5)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_called_twice_is_recorded_twice() -> None:
    class Twice(Skip):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.cells[0](self.cells[0](x))

    model = Twice().double()
    with tt.probe.watch(model, "cells.0.output") as seen:
        for x in dyadic(5, 2, 4).unbind():
            model(x)
    assert seen.recording()["cells.0.output"].shape == (10, 2, 4)


def test_watched_states_have_gradients() -> None:
    model = made("dense")
    with tt.probe.watch(model, ["mem", "syn"], gradients=True) as seen:
        outputs = [model(x) for x in dyadic(5, 2, 3).unbind()]
    outputs[2].sum().backward()
    grads = seen.recording().gradients()
    assert list(grads) == ["1.mem", "1.syn", "3.mem"]
    assert grads["1.mem"][:2].abs().sum() > 0
    assert not grads["1.mem"][2:].any()


def test_watch_errors() -> None:
    model = made("dense")
    x = dyadic(5, 2, 3)
    with tt.probe.watch(model, "mem") as seen:
        with pytest.raises(ValueError, match=r"'1\.mem' has not been seen; its layer was not call"):
            seen.recording()
        with pytest.raises(ValueError, match=r"layer '1'.* runs all of its steps at once\. Use"):
            tt.unroll(model, x)
        assert tt.get_states(model) == {}
        model(x[0])
        tt.zero_states(model)
        model(x[0, :1])
    with pytest.raises(ValueError, match=r"'1\.mem' was seen in the shapes \[\[2, 5\], \[1, 5\]\]"):
        seen.recording()
