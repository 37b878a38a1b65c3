"""What a step reads, and how it changes: it takes effect everywhere, compiled or eager, and why.

A row is a step that multiplies its input by an expression, what stands around it, and a change.
"""

from __future__ import annotations

import logging
import random
import re
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import sequence, trace_layer
from tracetorch import fuse, snn
from tracetorch.fuse.dispatch import backends

SOURCE = """
import collections, enum, fractions, functools, math, os, random, time, types
from typing import ClassVar, NamedTuple
from dataclasses import dataclass
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tracetorch import functional, snn
{setup}
def made(n=2.0, captured=None):
    class Own(snn.Neuron):
        states = ("mem",)
        G = 2.0

        def __init__(self, rank=1):
            super().__init__(9)
            self.decay("beta", 0.5, rank=rank)
            self.weight("w", 1.5, rank=rank)
            self.option("o", {option})

        @staticmethod
        def step(x, mem, *, beta, w, o{argument}):
            mem = beta * mem + w * x * ({expression})
            return mem, 0.5 * mem

    def set_closure(value):
        nonlocal n
        n = value

    return Own, set_closure
Own, set_closure = made({given})
"""
# name | what the step multiplies by | what stands around it | the change -> why it is not compiled;
# a line may be broken before a bar, an arrow, or the end of one of the source.
TABLE = r"""
    a literal | 2.5
    a number of its module | G | G = 2.0 | G = 3.0
    a flag | 2 if G else 3 | G = True | G = False
    text | 2 if G == 'a' else 3 | G = 'a' | G = 'b'
    a tuple | G[1] | G = (1.0, 2.0) | G = (1.0, 3.0)
    nothing for a number | 2 if G is None else G | G = None | G = 3.0
    a closure | n |  | set_closure(3.0)
    a number of another module | m.rates.G
        | m = types.ModuleType('m'); m.rates = types.ModuleType('r'); m.rates.G = 2.0
        | m.rates.G = 3.0
    another module itself | m.G
        | m = types.ModuleType('m'); m.G = 2.0; r = types.ModuleType('r'); r.G = 3.0 | m = r
    a module in a closure | captured.G | given = types.ModuleType('m'); given.G = 2.0
        | given.G = 3.0
    numbers of PyTorch and math | torch.pi * math.sqrt(G) + math.inf ** 0 | G = 4.0 | G = 9.0
    a class attribute | C.G | class C: G = 2.0 | C.G = 3.0
    an inherited attribute | D.G | class C: G = 2.0\nclass D(C): pass | D.G = 3.0
    a function | f(x) | G = 2.0\ndef f(u): return u * G | G = 3.0
    a function bound anew | f(x) | def f(u): return u | def f(u): return 2 * u
    a function edited | f(x) | def f(u): return u | f.__code__ = (lambda u: 3 * u).__code__
    what a function calls | f(x) | def g(u): return u\ndef f(u): return g(u)
        | def g(u): return u - 4
    the step | x |  | Own.step.__code__ = (lambda x, mem, *, beta, w, o: (3 * x, mem)).__code__
    a default of the step | k |  | Own.step.__kwdefaults__ = {'k': 3.0}
    its own class | Own.G |  | Own.G = 3.0
    an inner function | (lambda u: u * G)(x) | G = 2.0 | G = 3.0
    a comprehension | sum([G * i for i in range(3)]) | G = 2.0 | G = 3.0
    a default | f() | def f(k=2.0): return k | f.__defaults__ = (3.0,)
    a default that was none | f() | def f(): return 2.0\ndef g(k=3.0): return k
        | f.__code__, f.__defaults__ = g.__code__, g.__defaults__
    a default by name | f() | def f(*, k=2.0): return k | f.__kwdefaults__['k'] = 3.0
    a builtin that is hidden | abs(x) |  | abs = lambda u: 3 * u
    functools.wraps | f(x) | G = 2.0\ndef wrap(g):\n    @functools.wraps(g)
        \n    def inner(u): return G * g(u)\n    return inner\nf = wrap(F.relu) | G = 3.0
    a static method | C.f(x) | class C:\n    @staticmethod\n    def f(u): return u
        | C.f = staticmethod(lambda u: 3 * u)
    an option | o | given = 2.0 | layer.o = 3.0
    a function as an option | o(x) | G = 2.0\ndef given(u): return G * u | G = 3.0
    a frozen dataclass | o.k * o.G | @dataclass(frozen=True)\nclass C:\n    k: float\n    G = 2.0
        \ngiven = C(2.0) | C.G = 5.0
    a field that is set all the same | o.k | @dataclass(frozen=True)\nclass C: k: float
        \ngiven = C(2.0) | object.__setattr__(given, 'k', 3.0)
    a frozen dataclass of slots | o.k * o.n[1] + o.G | @dataclass(frozen=True, slots=True)\nclass C:
        \n    k: float\n    n: tuple = (1, 2)\n    G: ClassVar[float] = 3.0\ngiven = C(2.0)
        | object.__setattr__(given, 'k', 3.0)
    a field that hides a number | o.G | @dataclass(frozen=True)\nclass C:\n    k: float\n    G = 2.0
        \ngiven = C(2.0) | vars(given)['G'] = 5.0
    the class of an option | o.f() | @dataclass(frozen=True)\nclass C:\n    k: float
        \n    def f(self): return self.k\nclass D(C):\n    def f(self): return 3 * self.k
        \ngiven = C(2.0) | object.__setattr__(given, '__class__', D)
    the bases of a class | D.G | class A: pass\nclass B(A): G = 2.0\nclass C(A): G = 3.0
        \nclass D(B): pass | D.__bases__ = (C,)
    the bases of a base | o.f() | class A: pass\nclass B(A):\n    def f(self): return 2.0
        \nclass C(A):\n    def f(self): return 3.0\nclass E(B): pass\n@dataclass(frozen=True)
        \nclass D(E): k: float\ngiven = D(2.0) | E.__bases__ = (C,)
    the class of a module | m.G | class M(types.ModuleType):\n    G = property(lambda c: 3.0)
        \nm = types.ModuleType('m'); m.G = 2.0 | m.__class__ = M
    one object of a kind
        | 2 if x.dtype == torch.float32 and mem is not None and (o is None) is False else 3
    a derivative | o.derivative(x) + S(2.0).derivative(x)
        | S = functional.boxcar_surrogate; given = S(2.0) | layer.o = S(1.0)
    a method of a surrogate | o(x) | @dataclass(frozen=True)\nclass S(functional.Surrogate):
        \n    k: float = 2.0\n    def __call__(self, u): return self.k * u\ngiven = S()
        | S.__call__ = lambda self, u: 3 * self.k * u
    an autograd.Function | S.apply(x) | class S(torch.autograd.Function):\n    @staticmethod
        \n    def forward(ctx, u):\n        ctx.k = 2.0\n        return u * ctx.k\n    @staticmethod
        \n    def backward(ctx, g): return g * ctx.k
        | S.forward = staticmethod(lambda ctx, u: setattr(ctx, 'k', 3.0) or u * 3.0)
    tensors of the size | torch.full_like(x, 2.0)
    dimensions | x.ndim + x.dim()
    the device | 2 if x.device.type == 'cpu' else x.device.index
    without a gradient | detached(x) | def detached(u):\n    with torch.no_grad(): return u * 2
    an enumeration | E.A.value | class E(enum.Enum): A = 2.0 | E.A._value_ = 3.0
        -> reads E|reads o|by is
    a member as an option | 2 if o is E.A else o.value | class E(enum.Enum): A = 2.0; B = 5.0
        \ngiven = E.B | layer.o = E.A -> reads E|reads o|by is
    its value | o.value | class E(enum.Enum): A = 2.0\ngiven = E.A | given._value_ = 3.0
        -> reads E|reads o|by is
    its attribute | o.gain * len(o.name) | class E(enum.Enum):\n    A = 2.0
        \n    def __init__(self, v): self.gain = 2 * v\ngiven = E.A | given.gain = 3.0
        -> reads E|reads o|by is
    its method | o.gain() | class E(enum.Enum):\n    A = (2.0, 1)
        \n    def gain(self): return self.value[0]\ngiven = E.A | given.gain = lambda: 3.0
        -> reads E|reads o|by is
    a member that is a number | o * x + (o == E.A) | class E(enum.IntEnum): A = 2; B = 3
        \ngiven = E.A | layer.o = E.B -> reads E|reads o|by is
    flags | 2 if o & E.B else 3 | class E(enum.Flag): A = 1; B = 2\ngiven = E(3) | layer.o = E.A
        -> reads E|reads o|by is
    a named tuple | o.k * o[1] + len(o) | class C(NamedTuple):\n    k: float\n    n: int = 2
        \ngiven = C(2.0) | C.k = property(lambda self: 7.0) -> reads E|reads o|by is
    another named tuple | o.k * o.twice() | class C(collections.namedtuple('C', 'k')):
        \n    def twice(self): return 2 * self.k\ngiven = C(2.0) | given.twice = lambda: 7.0
        -> reads E|reads o|by is
    a list | G[0] | G = [2.0] | G[0] = 3.0 -> reads G \(list\)
    a dict | G['k'] | G = {'k': 2.0} | G['k'] = 3.0 -> reads G \(dict\)
    an attribute of a dict's subclass | d.G | class Bag(dict): pass\nd = Bag(); d.G = 2.0
        | d.G = 3.0 -> reads d\.G
    a number of NumPy | G | G = np.float32(2) | G = np.float32(3) -> reads G \(float32\)
    a Fraction | float(G) | G = fractions.Fraction(2) | G = fractions.Fraction(3)
        -> reads G \(Fraction\)
    a partial | f() | f = functools.partial(lambda k: k, k=2.0) | f.keywords['k'] = 3.0
        -> reads f \(partial\)
    a namespace | s.G | s = types.SimpleNamespace(G=2.0) | s.G = 3.0 -> reads s\.G
    a module of an alias | (lambda v: v.G)(m) | m = types.ModuleType('m'); m.G = 2.0 | m.G = 3.0
        -> reads (m \(module\)|G of a value)
    a function's attribute | f.k | def f(): pass\nf.k = 2.0 | f.k = 3.0 -> reads f\.k
    that of an alias | (lambda g: g.k)(f) | def f(): pass\nf.k = 2.0 | f.k = 3.0
        -> reads k of a value
    a bound builtin | g('G') | d = {'G': 2.0}; g = d.get | d['G'] = 3.0 -> reads g \(bui
    globals() | globals()['G'] | G = 2.0 | G = 3.0 -> calls globals
    getattr | getattr(C, 'G') | class C: G = 2.0 | C.G = 3.0 -> calls getattr
    a cached helper | f() | G = 2.0\n@functools.lru_cache\ndef f(): return G
        -> reads f \(_lru_cache_wrapper\)
    a metaclass | C.G | v = [2]\nclass M(type):\n    G = property(lambda c: v[0])
        \nclass C(metaclass=M): pass | v[0] = 3.0 -> reads C\.G
    a cached property | o.k | @dataclass(frozen=True)\nclass C:\n    @functools.cached_property
        \n    def k(self): return 2.0\ngiven = C() | vars(given)['k'] = 3.0
        -> reads (k of a value|o \(C\))
    a property of a class | o.k | v = [2.0]\n@dataclass(frozen=True)\nclass C:
        \n    k = property(lambda s: v[0])\ngiven = C() | v[0] = 3.0 -> reads k of a value
    an object as an option | o.k | given = types.SimpleNamespace(k=2.0) | given.k = 3.0
        -> reads o \(SimpleNamespace\)
    a callable object | o(x) | class C:\n    k = 2.0\n    def __call__(self, u): return self.k * u
        \ngiven = C() | given.k = 3.0 -> reads o \(C\)
    a member that holds a list | o.value[0] | class E(enum.Enum): A = [2.0]\ngiven = E.A
        | given.value[0] = 3.0 -> reads E|reads o|by is
    a member's property | o.value | v = [2.0]\nclass E(enum.Enum):\n    A = 1
        \n    value = property(lambda s: v[0])\ngiven = E.A | v[0] = 3.0 -> reads E|reads o|by is
    a member that is text with an operator of its own | o * 1.0 | G = 2.0\nclass E(str, enum.Enum):
        \n    A = 'a'\n    def __mul__(self, other): return G\ngiven = E.A | G = 3.0
        -> reads E|reads o|by is
    a named tuple that holds a list | o.k[0] | given = collections.namedtuple('C', 'k')([2.0])
        | given.k[0] = 3.0 -> reads E|reads o|by is
    a slot that is no field | o.k | @dataclass(frozen=True)\nclass C:\n    __slots__ = ('k',)
        \ngiven = C()\nobject.__setattr__(given, 'k', 2.0) | object.__setattr__(given, 'k', 3.0)
        -> reads k of a value|reads o \(C\)
    a tensor | T | T = torch.tensor(2.0) | T.fill_(3.0) -> reads T \(Tensor\)
    a tensor in a closure | captured | given = torch.tensor(2.0) | given.fill_(3.0)
        -> reads captured \(Tensor\)
    the layer | captured.k | given = nn.Module(); given.k = 2.0 | given.k = 3.0 -> reads captured\.k
    the mode of a module | 2.0 if captured.training else 3.0 | given = nn.Module() | given.eval()
        -> reads captured\.training
    the environment | float(os.environ['TT_G']) | os.environ['TT_G'] = '2'
        | os.environ['TT_G'] = '3' -> reads os\.environ
    an import | f() | def f():\n    import math\n    return math.pi -> imports math
    an exception | f(x) | def f(u):\n    try: return 2 if u.shape[0] > 3 else 3
        \n    except: return 4 -> catches exceptions
    a counter | f() | G = 0.0\ndef f():\n    global G\n    G += 1\n    return G | G = 0.0 -> sets G
    an attribute that it sets | f(x) | def f(u):\n    u.seen = True\n    return 2.0 -> sets seen
    whether there is a gradient | 2 if x.requires_grad else 3 -> reads requires_grad
    whether there is a gradient, beside an inner function
        | (2 if x.requires_grad else 3) + 0 * sum((lambda: [x])()) -> reads requires_grad
    whether one is wanted | 2 if torch.is_grad_enabled() else 3 -> reads torch\.is_grad_enabled
    inference | 2 if x.is_inference() else 3 -> reads is_inference
    its type | 2 if type(x) is Tensor else 3 -> calls type
    whether it is a parameter | 2 if isinstance(w, nn.Parameter) else 3 -> reads nn\.Parameter
    its memory | 2 if x.is_contiguous() else 3 -> reads is_contiguous
    random numbers | torch.rand(()) -> draws random numbers, by aten\.rand
    random numbers as x | torch.rand_like(x) -> draws random numbers
    dropout | F.dropout(x, 0.5) -> draws random numbers
    random numbers of Python | random.random() -> reads random\.random
    random numbers of NumPy | np.random.random() -> reads np\.random\.random
    a generator as an option | o() | given = random.random
        -> reads o \(builtin.*and numbers, words, flags and functions as options\. Give it as one
    what is printed | f() | def f():\n    print(end='')\n    return 2.0 -> calls print
    a bound method | f() | class C:\n    G = 2.0\n    def f(self): return self.G\nc = C(); f = c.f
        | c.G = 3.0 -> reads f \(method\)
    an operator of its own | o * 1.0 | G = 2.0\n@dataclass(frozen=True)\nclass C:\n    k: float
        \n    def __mul__(self, other): return G * self.k\ngiven = C(2.0) | G = 3.0
        -> reads C\.__mul__
    the time | 2 if time.time() > 1 else 3 -> reads time\.time
    the same size | 1 if x.shape == mem.shape and x.size(0) == mem.size(0) else 2 -> reads the size
    a tensor of a size | torch.full((x.shape[0], x.shape[1]), 2.0) -> reads the size
    a power of a size | 1 / max(x.shape[-1], 8) ** 0.5 -> reads the size
    a division by a size | 1 / x.shape[0] -> reads the size
    a size that multiplies | x * x.shape[0] -> reads the size
    a size as a value | torch.full_like(x, x.size(0)) -> reads the size
    a size in math | math.log2(x.shape[0]) -> reads the size
    a large batch | 2 if x.shape[0] > 100 else 3 -> reads the size
    a batch of one | 2 if len(x) == 1 else 3 -> reads the size
    a size as a flag | 2 if x.size(0) - 1 else 3 -> reads the size
    a size given | 2 if x.shape == (128, 9) else 3 -> reads the size
    a size as text | 2 if f'{x.shape[0]}' == '1' else 3 -> reads the size
    a loop over a size | sum(0.5 ** i for i in range(x.shape[0])) -> reads the size
    sizes in another order | 2 if torch.zeros(x.shape[::-1]).dtype == x.dtype else 3 -> the size
    one dtype | 2 if x.dtype is torch.float32 else 3 -> compares by is
    one shape | 2 if x.shape is x.shape else 3 -> compares by is
    one size | 2 if x.shape[0] is mem.shape[0] else 3 -> compares by is
    one number | 2 if x.shape[0] is G else 3 | G = 2 | G = 1 -> compares by is
    one size or nothing | 2 if x.shape[0] is (mem.shape[0] or None) else 3 -> compares by is
    one size or a dtype | 2 if x.shape[0] is (mem.shape[0] or torch.int32) else 3 -> compares by is
    one tensor | 2 if x.contiguous() is x else 3 -> compares by is
    how many rows | 2 if len(x.unbind(0)) > 100 else 3 -> reads the size
    how many parts | 2 if len(x.split(2)) > 50 else 3 -> reads the size
    a number of values | 2 if w.numel() == 1 else 3 -> reads the size
    that of PyTorch | 2 if torch.numel(w) == 1 else 3 -> reads torch\.numel
    that of Tensor | 2 if Tensor.dim(w) == 0 else 3 -> reads Tensor\.dim
    a parameter's dimensions | 2 if w.ndim == 0 else 3 -> reads the size
    a parameter's shape | 2 if w.shape == x.shape else 3 -> reads the size
    that of a product | 2 if (w * w).ndim == 0 else 3 -> reads the size
"""
Row = tuple[str, str, str]


def read(table: str) -> dict[str, tuple[Row, str | None]]:
    found: dict[str, tuple[Row, str | None]] = {}
    for line in re.sub(r"\s*\n\s*(\||->|\\n)", r" \1", table.strip()).splitlines():
        code, _, reason = line.strip().partition(" -> ")
        name, *parts = (part.replace(r"\n", "\n") for part in code.split(" | "))
        expression, setup, changed = (*parts, "", "")[:3]
        found[name] = (expression, setup, changed), reason or None
    return found


ROWS = read(TABLE)


def module(row: Row) -> Any:
    """Make a module with a neuron of its own, and one layer of each rank."""
    expression, setup, _ = row
    made: Any = types.ModuleType(__name__)  # where dataclasses look
    source = SOURCE.format(
        expression=expression,
        setup=setup,
        argument=", k=2.0" if expression == "k" else "",
        option="given" if "given" in setup and "captured" not in expression else "1.0",
        given="captured=given" if "captured" in expression else "",
    )
    exec(compile(source, f"<{expression}>", "exec"), vars(made))
    made.layers = [made.Own(rank) for rank in (1, 0)]
    return made


def change(made: Any, row: Row) -> None:
    for layer in made.layers:
        exec(row[2], {**vars(made), "layer": layer} if "layer" in row[2] else vars(made))


by_layer = partial(tt.unroll, from_rest=True)
by_step = partial(tt.unroll, from_rest=True, by="step")
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by layer": by_layer,
    "by step": by_step,
    "without a graph": torch.no_grad()(by_layer),
    "compiled steps": torch.no_grad()(by_step),
    "fed back": lambda layer, x: tt.unroll(
        snn.Recurrent(layer, nn.Linear(9, 9, bias=False)), x[:1], from_rest=True
    ),
}
X = {batch: sequence(3, batch, 9, dtype=torch.float32).abs() for batch in (2, 1, 128)}


def outputs(made: Any, way: str) -> list[Tensor]:
    """Run every layer on every batch, from the same random numbers, those drawn after them too."""
    found = []
    for layer in made.layers:
        for x in X.values():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            found.append(WAYS[way](layer, x).detach())
            found.append(torch.tensor([torch.rand(()), random.random(), np.random.random()]))
    return found


def check(made: Any, twin: Any, way: str) -> None:
    with fuse.backend("eager"):
        expected = outputs(twin, way)
    assert all(map(torch.equal, outputs(made, way), expected))


# a kernel of its own takes a second to compile
SLOW = [pytest.param(way, marks=pytest.mark.slow) for way in ("without a graph", "fed back")]


@pytest.mark.parametrize("way", ["by layer", "by step", "compiled steps", *SLOW])
@pytest.mark.parametrize("name", ROWS)
def test_what_a_step_reads_takes_effect(name: str, way: str) -> None:
    row, _ = ROWS[name]
    made, twin = module(row), module(row)
    for _ in range(2):
        check(made, twin, way)
    change(made, row)
    change(twin, row)
    check(made, twin, way)
    fresh, twin = module(row), module(row)
    change(fresh, row)
    change(twin, row)
    check(fresh, twin, way)


@pytest.mark.parametrize("name", ROWS)
def test_a_step_is_compiled_or_says_what_it_reads(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, reason = ROWS[name]
    layer = module(row).layers[1]
    found = fuse.unsupported_reason("cpu", layer, X[2])
    if reason is None:
        assert found is None
        assert layer.cell.is_comparable
        return
    assert re.search(reason, str(found))
    assert re.search(r"self\.option\(|as options|reads the size|draws random", str(found))
    monkeypatch.setattr(backends, "_reported", set())
    with caplog.at_level(logging.WARNING, "tracetorch"):
        for _ in range(2):
            tt.unroll(layer, X[2], from_rest=True)
    assert [found in each.getMessage() for each in caplog.records] == [True]
    with fuse.backend("cpu"), pytest.raises(RuntimeError, match=re.escape(str(found))):
        layer.forward_sequence(X[2])
    with torch.no_grad():
        assert layer._prepared.run(layer, layer.cell, X[2][0], {"mem": None}, False) is None


def test_a_changed_number_finds_its_kernel_again() -> None:
    made = module(ROWS["a number of its module"][0])
    layer = made.layers[0]
    keys = []
    for made.G in (2.0, 3.0, 2.0):
        keys.append(trace_layer(layer, 2, torch.float32).key)
    assert keys[0] == keys[2] != keys[1]


def test_functions_that_call_each_other_are_followed_once() -> None:
    setup = "def f(u, n=3): return g(u, n - 1) if n else u\ndef g(u, n): return 2 * f(u, n)"
    row = ("f(x)", setup, "")
    assert fuse.unsupported_reason("cpu", module(row).layers[0], X[2]) is None
    check(module(row), module(row), "by layer")


def test_an_edited_step_that_takes_other_states_is_refused_by_a_new_layer() -> None:
    made = module(ROWS["a literal"][0])
    made.Own.step.__code__ = (lambda x, other, *, beta, w, o: (x, other)).__code__
    with pytest.raises(ValueError, match=r"Own.step takes \('x', 'other'\)"):
        made.Own()


@pytest.mark.slow
def test_a_step_of_this_package_may_be_edited_too() -> None:
    layer, x = tt.neurons.RefractoryLIF(9), X[2]
    step = type(layer).step
    code, ways = step.__code__, [run for way, run in WAYS.items() if way != "fed back"]
    first = [run(layer, x) for run in ways]
    try:
        step.__code__ = code.replace(
            co_consts=tuple(2.0 if c == 1.0 else 3 if c == 1 else c for c in code.co_consts)
        )
        found = [run(layer, x) for run in ways]
        with fuse.backend("eager"):
            expected = tt.unroll(layer, x, from_rest=True)
    finally:
        step.__code__ = code
    assert all(torch.equal(each, expected) for each in found)
    assert not torch.equal(first[0], expected)


class Evasive:
    """A spike function that answers no question about itself."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"there is no {name}")

    def __call__(self, u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)


def test_an_object_that_cannot_be_looked_at_runs_eagerly() -> None:
    layer = snn.LIF(9, surrogate_derivative=Evasive())
    assert "reads pos_spike (Evasive)" in str(fuse.unsupported_reason("cpu", layer, X[2]))
    assert layer(X[2][0]).shape == (2, 9)
