"""Operations on single elements, as C writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from studies.native.values import Number, UntranslatableError, literal, suffix, typed
from studies.programs import LANES, held, operands

__all__ = ["WORDS", "expression", "name_of"]


def times(factor: str, x: str) -> str:
    return x if factor in ("1", "1.0", "1.0f") else f"{factor} * {x}"


def larger(x: str, y: str) -> str:
    return f"{x} != {x} || {x} > {y} ? {x} : {y}"


def smaller(x: str, y: str) -> str:
    return f"{x} != {x} || {x} < {y} ? {x} : {y}"


def power(x: str, exponent: str) -> str:
    known = {"2": f"{x} * {x}", "0.5": f"sqrt{{f}}({x})"}
    return known.get(exponent.removesuffix("f").removesuffix(".0"), f"pow{{f}}({x}, {exponent})")


# What torch calls it -> how C writes it. {f} ends the names of C's functions of floats. Comparisons with nan are false,
# in torch as in C, and where torch lets nan through, so does the order of these.
WORDS: dict[str, Callable[..., str]] = {
    "abs": lambda x: f"fabs{{f}}({x})",
    "add": lambda x, y, alpha="1": f"{x} + {times(alpha, y)}",
    "addcdiv": lambda x, y, z, value="1": f"{x} + {times(value, f'({y} / {z})')}",
    "addcmul": lambda x, y, z, value="1": f"{x} + {times(value, f'({y} * {z})')}",
    "bitwise_and": lambda x, y: f"{x} & {y}",
    "bitwise_or": lambda x, y: f"{x} | {y}",
    "bitwise_xor": lambda x, y: f"{x} ^ {y}",
    "clamp": lambda x, low, high: smaller(f"({larger(x, low)})", high),
    "clamp_min": lambda x, low: larger(x, low),
    "clone": lambda x: x,
    "copy": lambda x, y, slowly="": y,
    "div": lambda x, y: f"{x} / {y}",
    "eq": lambda x, y: f"{x} == {y}",
    "erf": lambda x: f"erf{{f}}({x})",
    "exp": lambda x: f"exp{{f}}({x})",
    "ge": lambda x, y: f"{x} >= {y}",
    "gt": lambda x, y: f"{x} > {y}",
    "le": lambda x, y: f"{x} <= {y}",
    "lerp": lambda x, y, share: f"{share} < 0.5{{f}} ? {x} + {share} * ({y} - {x}) : {y} - ({y} - {x}) * (1 - {share})",
    "lift_fresh_copy": lambda x: x,
    "log": lambda x: f"log{{f}}({x})",
    "logical_and": lambda x, y: f"{x} && {y}",
    "lt": lambda x, y: f"{x} < {y}",
    "maximum": lambda x, y: larger(x, y),
    "mul": lambda x, y: f"{x} * {y}",
    "ne": lambda x, y: f"{x} != {y}",
    "neg": lambda x: f"-{x}",
    "pow": power,
    "relu": lambda x: f"{x} < 0 ? 0 : {x}",
    "reciprocal": lambda x: f"1 / {x}",
    "rsqrt": lambda x: f"1 / sqrt{{f}}({x})",
    "sigmoid": lambda x: f"1 / (1 + exp{{f}}(-{x}))",
    "sigmoid_backward": lambda grad, y: f"{grad} * (1 - {y}) * {y}",
    "sqrt": lambda x: f"sqrt{{f}}({x})",
    "sub": lambda x, y, alpha="1": f"{x} - {times(alpha, y)}",
    "tanh": lambda x: f"tanh{{f}}({x})",
    "tanh_backward": lambda grad, y: f"{grad} * (1 - {y} * {y})",
    "threshold_backward": lambda grad, x, threshold: f"{x} <= {threshold} ? 0 : {grad}",
    "where": lambda condition, x, y: f"{condition} ? {x} : {y}",
    "_to_copy": lambda x: x,
    "__rshift": lambda x, y: f"{x} >> {y}",
}
COMPARISONS = {"eq", "ge", "gt", "le", "lt", "ne"}
OF_BOOLEANS = {
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "clone",
    "copy",
    "logical_and",
    "where",
    "_to_copy",
}  # as torch has them for 0 and 1
OF_INTEGERS = {
    "add",
    "clamp",
    "clamp_min",
    "mul",
    "neg",
    "relu",
    "sub",
    "__rshift",
    *OF_BOOLEANS,
}  # that need no function of floats
ASIDE = {"out", "dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"}


def name_of(node: fx.Node) -> str:
    """What torch calls the operation: the same for its variants, in place or not."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::").rstrip("_") if schema else str(node.target)


def expression(node: fx.Node, read: Callable[[fx.Node], Number]) -> str:
    """The node's operation in C. read: the variable that stands for an operand."""
    name, dtype = name_of(node), computed_in(node)
    if not (name in COMPARISONS or dtype.is_floating_point or name in OF_INTEGERS):
        raise UntranslatableError(f"{name} of {dtype}")
    if dtype == torch.bool and not (name in COMPARISONS | OF_BOOLEANS and all(map(is_boolean, node.all_input_nodes))):
        raise UntranslatableError(f"{name} of {dtype}")

    if name == "__rshift" and operands(node)[1] not in range(8 * dtype.itemsize):
        raise UntranslatableError("a shift by more than there is")

    def written(each: Any) -> str:
        if isinstance(each, fx.Node):
            value = read(each)
            return value.text if value.dtype == dtype else f"({typed(dtype)})({value.text})"
        if type(each) is int and each and each % LANES == 0:
            raise UntranslatableError(f"{name} with the number of lanes")
        if isinstance(each, int | float):
            return literal(each, dtype)
        raise UntranslatableError(f"{name} with {each}")

    named = {key: written(each) for key, each in node.kwargs.items() if key not in ASIDE}
    try:
        return WORDS[name](*map(written, node.args), **named).replace("{f}", suffix(dtype))
    except TypeError as error:  # a variant with more to it
        raise UntranslatableError(f"this {name}: {error}") from error


def computed_in(node: fx.Node) -> torch.dtype:
    """The type in which the operation computes."""
    if name_of(node) not in COMPARISONS:
        return held(node).dtype
    return torch.result_type(*(held(each) if isinstance(each, fx.Node) else each for each in operands(node)))


def is_boolean(node: fx.Node) -> bool:
    return held(node).dtype == torch.bool
