"""``Reads``: what functions read besides their arguments, found in their code.

The rule of a step. Beside its arguments it reads numbers and text, operations of PyTorch and
``math``, and plain functions, frozen dataclasses and ``autograd.Function``s that keep this rule:
all of that is named in its code, found without running it, and compared by identity at each call.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import constant_in_compile

_IMMUTABLE = (bool, int, str, bytes, type(None), type(...), torch.dtype, torch.device)
_BUILTINS = (
    *("abs", "all", "any", "bool", "callable", "complex", "dict", "divmod", "enumerate", "filter"),
    *("float", "frozenset", "int", "isinstance", "iter", "len", "list", "map", "max", "min"),
    *("next", "pow", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum"),
    *("tuple", "zip"),
)
_CLASSES = (Tensor, torch.Size, torch.finfo, torch.no_grad, torch.enable_grad, torch.dtype)
_FUNCTION = torch.autograd.Function
_CONTEXT, _META = torch.autograd.function.BackwardCFunction, type(_FUNCTION)
_C_MODULES = ("math", "torch", "torch._C._nn", "torch._C._special", "torch._C._linalg")
_TRUSTED = ("torch._tensor", "torch.autograd.function", "torch.functional", "torch.nn.functional")
# What tells how a tensor came to be, where it lies or who asks: no part of its values.
_MODES = (
    *("backward", "const_data_ptr", "data_ptr", "dim_order", "grad", "grad_dtype", "grad_fn"),
    *("is_conj", "is_contiguous", "is_inference", "is_leaf", "is_neg", "is_pinned"),
    *("is_same_size", "is_set_to", "is_shared", "layout", "name", "names", "nbytes", "output_nr"),
    *("register_post_accumulate_grad_hook", "requires_grad", "requires_grad_", "retain_grad"),
    *("retains_grad", "storage", "storage_offset", "storage_type", "stride", "untyped_storage"),
    "volatile",
)
# Of an argument they are seen while it is traced, of Tensor and torch they are not.
_SIZES = ("dim", "ndim", "ndimension", "nelement", "numel", "shape", "size")
_HOLDERS = (Tensor, str, list, dict, set, int, float, torch.finfo, torch.device, _CONTEXT)
# attributes of arguments that a step may read
_READABLE = {n for holder in _HOLDERS for n in dir(holder) if n[0] != "_"}.difference(
    _MODES, ("format", "format_map")
)
# methods that run when an object is made or looked at, not when a step uses it
_UNUSED = (
    *("__getstate__", "__init__", "__new__", "__post_init__", "__reduce__", "__replace__"),
    *("__repr__", "__setattr__", "__setstate__"),
)
_DONE = {"IS_OP": "compares by is", "IMPORT_NAME": "imports", "TRY": "catches"}
_DONE |= {"MATCH_CLASS": "matches a class", "LOAD_BUILD_CLASS": "makes a class"}
_NOTHING: Mapping[str, object] = types.MappingProxyType({})
_WRITES = ("DELETE_ATTR", "DELETE_GLOBAL", "STORE_ATTR", "STORE_DEREF", "STORE_GLOBAL")


class Reads:
    """Everything that a function, with some constants, reads besides its arguments."""

    key: tuple[Hashable, ...]  # equal for what computes the same, where nothing is beyond
    beyond: str | None = None  # the first thing beyond the rule, as "reads settings (dict)"

    def __init__(self, function: object, constants: Mapping[str, object] = _NOTHING) -> None:
        # Compared by identity: what can be replaced in functions, and what names stand for.
        self.functions: list[tuple[types.FunctionType, types.CodeType, object, object]] = []
        self._bound_to: dict[tuple[Callable[[str], object], str], object] = {}
        self._parts: list[Hashable] = []
        self._visited: dict[types.FunctionType, int] = {}
        self._attributes: list[str] = []  # that code reads of values
        self._seen: set[str] = set()  # those of objects whose values are known
        self._unseen: set[str] = set()
        self._has_context = False  # in methods of an autograd.Function, to keep attributes on
        if isinstance(function, types.MethodType):
            self.beyond = "is not a static method"
        self._value("step", function)
        for name, value in constants.items():
            self._parts.append(name)
            self._value(name, value)
        for name in self._attributes:
            if name in self._unseen or name not in _READABLE | self._seen:
                self._refuse(f"reads {name} of a value")
        self.key = tuple(self._parts)
        self.names = [(*place, value) for place, value in self._bound_to.items()]

    def _refuse(self, what: str) -> None:
        self.beyond = self.beyond or what

    def _bound(self, get: Callable[[str], Any], name: str) -> Any:
        """Return what a name stands for, ``None`` for nothing, and note that it must stay."""
        try:
            value = get(name)
        except (AttributeError, ValueError):  # a closure, or a slot, that holds nothing yet
            return self
        self._bound_to.setdefault((get, name), value)
        return value

    def _attribute(self, holder: Any, name: str) -> Any:
        """Return an attribute, such as a class or its bases, and note that it must stay."""
        kind: Any = type if isinstance(holder, type) else object
        return self._bound(kind.__getattribute__.__get__(holder), name)

    def _value(self, name: str, value: Any) -> None:
        """Note a value that is used as it is."""
        kind = type(value)
        if kind is float:
            self._parts.append(value.hex())  # NaN equals itself, and -0.0 is not 0.0
        elif kind in _IMMUTABLE:
            self._parts.append((kind, value))
        elif kind is tuple:
            self._parts.append(len(value))
            for part in value:
                self._value(name, part)
        elif kind is types.FunctionType:
            self._function(value)
        elif _is_operation(value) or _is_known(value):
            self._parts.append(value)
            self._seen.update(_own_names(value))
        elif _is_apply(value):
            self._class(value.__self__)
        elif (fields := _fields(value)) is not None:
            self._attribute(value, "__class__")
            self._class(kind, fields, getattr(value, "__dict__", _NOTHING))
            for field in fields:
                self._value(f"{name}.{field}", self._attribute(value, field))
        else:
            self._refuse(f"reads {name} ({kind.__name__})")

    def _function(self, function: types.FunctionType) -> None:
        if function in self._visited or self.beyond:  # which may lead through all of a library
            self._parts.append(self._visited.get(function))
            return
        self._visited[function] = len(self._visited)
        code, module = function.__code__, function.__globals__.get("__name__")
        is_known = _root(module) == "tracetorch" or module in _TRUSTED
        # the code, not the function: a lambda that is made again is the same to a kernel
        self._parts += [code, module if is_known else None]
        named: Any = function.__kwdefaults__
        self.functions.append((function, code, function.__defaults__, named))
        for default in function.__defaults__ or ():
            self._value(f"a default of {function.__name__}", default)
        for name in named or ():
            self._value(name, self._bound(named.get, name))
        closure = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        if not is_known:
            self._code(code, function.__globals__, closure)
            return
        for name, cell in closure.items():  # and what its code names stays
            self._value(name, self._bound(cell.__getattribute__, "cell_contents"))

    def _code(self, code: types.CodeType, namespace: Any, closure: dict[str, Any]) -> None:
        """Note what code names, and its inner functions."""
        for operation, name, attributes in _named(code):
            if operation == "LOAD_GLOBAL":
                value = self._bound(namespace.get, name)
                if name in namespace:
                    self._chain(name, value, attributes)
                    continue
                found = self._bound(vars(builtins).get, name)
                if name not in _BUILTINS and not _is_known(found):
                    self._refuse(f"{'reads' if found is None else 'calls'} {name}")
            elif operation == "LOAD_DEREF":
                if name in closure:
                    get = closure[name].__getattribute__
                    self._chain(name, self._bound(get, "cell_contents"), attributes)
                else:  # an argument, or what is computed, that an inner function uses too
                    self._attributes += attributes
            elif operation == "LOAD_ATTR":
                self._attributes.append(name)
            elif operation == "STORE_ATTR" and self._has_context:
                self._seen.add(name)
            elif operation != "STORE_DEREF" or name in closure:
                self._refuse(f"{_DONE.get(operation, 'sets')} {name}".strip())
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner, namespace, closure)

    def _chain(self, text: str, value: Any, attributes: tuple[str, ...]) -> None:
        """Note a value that code reads as ``settings.rates.SLOPE``, from that of the first name."""
        for place, name in enumerate(attributes):
            kind = type(value)
            self._attribute(value, "__class__")
            if kind is types.ModuleType and name in vars(value):
                value = self._bound(vars(value).get, name)
            elif value is Tensor and hasattr(Tensor, name) and name not in (*_SIZES, *_MODES):
                return
            elif kind is _META and name == "apply" and "apply" not in vars(value):
                value = value.apply
            elif kind is type:
                self._attribute(value, "__mro__")
                raws = [self._bound(vars(base).get, name) for base in value.__mro__]
                value = next((raw for raw in raws if raw is not None), kind)
                value = value.__func__ if isinstance(value, staticmethod) else value
            elif _fields(value) is not None:
                self._attributes += attributes[place:]
                break
            else:
                self._refuse(f"reads {text}.{name}")
                return
            text = f"{text}.{name}"
        self._value(text, value)

    def _class(
        self, kind: type, fields: Iterable[str] = (), own: Mapping[str, object] = _NOTHING
    ) -> None:
        """Note the methods and numbers of a class; and of an object its fields, nothing else."""
        self._parts.append(kind)
        self._attribute(kind, "__mro__")
        self._seen.update(fields)
        for base in kind.__mro__:
            if _root(base.__module__) in ("builtins", "torch", "tracetorch", "typing"):
                self._seen.update(_own_names(base))
                continue
            if type(base) not in (type, _META):
                self._refuse(f"reads {base.__name__}, a class with a metaclass")
            self._has_context = type(base) is _META
            for name, value in vars(base).items():
                member = value.__func__ if isinstance(value, staticmethod) else value
                is_function = type(member) is types.FunctionType
                is_slot = type(member) is types.MemberDescriptorType
                if name.startswith("__") and name != "__call__":
                    # ``dataclass`` writes its own as text
                    is_own = is_function and member.__code__.co_filename != "<string>"
                    if is_own and name not in _UNUSED:
                        self._refuse(f"reads {base.__name__}.{name}")
                elif name in fields and (is_slot or not hasattr(type(member), "__get__")):
                    continue
                elif is_function or type(member) is float or type(member) in _IMMUTABLE:
                    self._seen.add(name)
                    self._bound(vars(base).get, name)
                    self._bound(own.get, name)
                    self._value(f"{kind.__name__}.{name}", member)
                else:
                    self._unseen.add(name)


@constant_in_compile
def reads_pytorch_alone(layer: Any) -> bool:
    """Whether a layer's ``step`` names nothing that may change, which ``torch.compile`` guards."""
    if _root(getattr(layer.step, "__globals__", {}).get("__name__")) == "tracetorch":
        return True
    reads = Reads(layer.step)
    found = reads.beyond is None and not any(d or named for *_, d, named in reads.functions)
    for get, name, value in reads.names:
        namespace: Any = get.__self__  # type: ignore[attr-defined]
        if type(namespace) is dict and namespace is not vars(builtins):
            is_pytorch = _root(namespace.get("__name__")) in ("math", "torch")
            found = found and (is_pytorch or type(value) is types.ModuleType)
        else:
            found = found and (namespace is vars(builtins) or name == "__class__")
    return found


@functools.lru_cache(maxsize=1024)
def _named(code: types.CodeType) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return what code reads or does by name: operation, name, attributes that follow it."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    operations = [each.opname for each in instructions]
    # each ``with`` has a handler of its own
    handlers = operations.count("PUSH_EXC_INFO") - operations.count("WITH_EXCEPT_START")
    if "SETUP_FINALLY" in operations or handlers > 0:
        found.append(("TRY", "exceptions", ()))
    follows, constant = False, 0
    for each in instructions:
        operation = each.opname.replace("METHOD", "ATTR")  # before Python 3.12
        follows = follows and not each.is_jump_target  # where another value may arrive
        last, constant = constant, each.argval if operation == "LOAD_CONST" else 0
        if follows and operation == "LOAD_ATTR":
            found[-1] = (*found[-1][:2], (*found[-1][2], each.argval))
            continue
        follows = operation in ("LOAD_GLOBAL", "LOAD_DEREF")
        # one object each, unlike numbers and sizes
        known = operation == "IS_OP" and (last is None or type(last) is bool)
        known = known and not each.is_jump_target
        if not known and (follows or operation in ("LOAD_ATTR", *_WRITES, *_DONE)):
            found.append((operation, each.argval if isinstance(each.argval, str) else "", ()))
    return tuple(dict.fromkeys(found))


def _root(module: object) -> str:
    return str(module).partition(".")[0]


def _own_names(value: Any) -> list[str]:
    """Return the attributes of a spike function's class, one of this package."""
    is_own = hasattr(value, "__dataclass_fields__") and _root(value.__module__) == "tracetorch"
    return [name for name in vars(value) if name[0] != "_"] if is_own else []


def _is_known(value: object) -> bool:
    """Whether a value is a class that a step may use."""
    return isinstance(value, type) and (
        value in _CLASSES or issubclass(value, BaseException) or bool(_own_names(value))
    )


def _is_operation(value: Any) -> bool:
    """Whether a value is a C function that computes from its arguments alone."""
    if type(value) is types.MethodDescriptorType:
        return issubclass(Tensor, value.__objclass__) and value.__name__ in _READABLE - set(_SIZES)
    if type(value) is not types.BuiltinFunctionType or value.__name__ in (*_SIZES, *_MODES):
        return False
    owner = value.__self__  # operations of PyTorch have none
    owner = value.__module__ if owner is None else getattr(owner, "__name__", None)
    return owner in _C_MODULES or (owner == "builtins" and value.__name__ in _BUILTINS)


def _is_apply(value: Any) -> bool:
    """Whether a value is ``apply`` of an ``autograd.Function``; in PyTorch 2.15 it is one of C."""
    own: Any = _FUNCTION.apply
    if type(value) is not type(own) or not isinstance(value.__self__, _META):
        return False
    same = getattr(value, "__func__", None) is getattr(own, "__func__", None)
    return same and value.__name__ == "apply"


def _fields(value: Any) -> list[str] | None:
    """Return the fields of a frozen dataclass, ``None`` of what may hold more, or is none."""
    kind = type(value)
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return None
    fields = [field.name for field in dataclasses.fields(value)]
    is_plain = all(base is object for base in kind.__mro__ if base.__module__ == "builtins")
    return fields if is_plain and getattr(value, "__dict__", {}).keys() <= set(fields) else None
