import copy
import functools
import re
from typing import Any

import pytest

from tests.cases import LAYERS
from tracetorch import snn


@pytest.mark.parametrize(
    ("kind", "argument", "message"),
    [
        ("LIF", "threshold", "LIF has no argument 'threshold'. Here it is pos_threshold. It takes"),
        ("BLIF", "threshold", "Here it is pos_threshold or neg_threshold."),
        ("LIF", "spike_grad", "Here it is surrogate_derivative."),
        ("BSRLIF", "spike_grad", "pos_surrogate_derivative or neg_surrogate_derivative."),
        ("Readout", "threshold", "Readout has no argument 'threshold'. It takes num_neurons, beta"),
        ("Readout", "learn_bta", "no argument 'learn_bta'. Did you mean 'learn_beta'? It takes"),
        ("LeakyIntegrator", "beta", "no argument 'beta'. Here it is beta_setup. It takes"),
    ],
)
def test_error_explains_an_unknown_argument(kind: str, argument: str, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)) as error:
        getattr(snn, kind)(2, **{argument: 1.0})
    assert str(error.value).startswith(f"{kind} has no argument {argument!r}")


@pytest.mark.parametrize("name", LAYERS)
def test_other_mistakes_keep_the_error_of_python(name: str) -> None:
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'num_neurons'"):
        getattr(snn, name)(beta=0.5)
    with pytest.raises(TypeError, match="multiple values for argument 'num_neurons'"):
        getattr(snn, name)(2, num_neurons=2)


def test_custom_constructors_keep_their_own_arguments() -> None:
    class Open(snn.LIF):
        def __init__(self, num_neurons: int, **options: Any) -> None:
            super().__init__(num_neurons, **options)

    class Own(snn.LIF):
        def __init__(self, size: int, threshold: float = 1.0) -> None:
            super().__init__(size, pos_threshold=threshold)

    def with_extra(init: Any) -> Any:
        @functools.wraps(init)
        def wrapped(*args: Any, extra: int = 0, **kwargs: Any) -> None:
            init(*args, **kwargs)

        return wrapped

    class Decorated(snn.LIF):
        __init__ = with_extra(snn.LIF.__init__)

    for made in (copy.deepcopy(Open(2, pos_threshold=0.5)), Own(2, threshold=0.5)):
        assert made.pos_threshold is not None
        assert made.pos_threshold.tolist() == [0.5, 0.5]
    Decorated(2, extra=1)
    with pytest.raises(TypeError, match=r"no argument 'spike_grad'\. It takes size, thresh"):
        Own(2, spike_grad=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "LIF",
            "threshold",
            "LIF has no attribute 'threshold' to assign. Here it is pos_threshold.",
        ),
        ("BLIF", "v_th", "Here it is pos_threshold or neg_threshold."),
        ("LIF", "decay", "Here it is beta."),
        ("LIF", "surrogate_derivative", "Here it is pos_spike."),
    ],
)
def test_an_assignment_by_another_name_is_an_error(kind: str, name: str, message: str) -> None:
    layer = getattr(snn, kind)(2)
    with pytest.raises(AttributeError, match=re.escape(message)):
        setattr(layer, name, 0.1)
    assert name not in vars(layer)


def test_a_class_may_have_attributes_of_such_names() -> None:
    class Own(snn.LIF):
        def __init__(self, tau: float) -> None:
            super().__init__(2, beta=1 - 1 / tau)
            self.tau = tau

    assert Own(4.0).tau == 4.0
