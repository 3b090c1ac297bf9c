"""Floating-point operations of matrix products in a JAX program, and where its time goes."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

_CONTAINERS = {"while", "conditional", "call"}  # their time is that of the operations inside
_PRODUCTS = {"dot", "convolution"}
_LIBRARY_PRODUCT = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv|dot)', re.IGNORECASE)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(")
_CALLED = re.compile(r"calls=%?([\w.-]+)")
_SCOPES = re.compile(r'op_name="([^"]*)"')


def matmul_flops(program: ClosedJaxpr | Jaxpr, *, trip_count: Callable[[str], int] | None = None) -> int:
    """Multiplications and additions of all matrix products and convolutions of a traced program.

    XLA's own count takes the body of a loop once and a library call for nothing; here a scan counts as
    often as it runs, and a branch as its larger side.

    Args:
        trip_count: of a loop whose length the program finds out when it runs, by the named scopes around it.

    Raises:
        ValueError: a product stands in such a loop and ``trip_count`` is not given.
    """
    return _flops(program, trip_count, "")


def _flops(program: ClosedJaxpr | Jaxpr, trip_count: Callable[[str], int] | None, scopes: str) -> int:
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(
        _equation_flops(equation, trip_count, f"{scopes}/{equation.source_info.name_stack}") for equation in jaxpr.eqns
    )


def _equation_flops(equation: Any, trip_count: Callable[[str], int] | None, scopes: str) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
    inside = [_flops(part, trip_count, scopes) for part in _parts(parameters)]
    if name == "cond":
        return max(inside)
    if name == "while" and any(inside):
        if trip_count is None:
            raise ValueError("a matrix product in a while loop: how often it runs is not known")
        return sum(inside) * trip_count(scopes)
    return sum(inside) * parameters.get("length", 1) if name == "scan" else sum(inside)


def _parts(parameters: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


class Operation(NamedTuple):
    """One execution of an instruction of a compiled program.

    Attributes:
        has_product: whether there is a matrix product inside.
        scopes: the traced operation that it comes from, behind the names of ``jax.named_scope`` around it.
    """

    seconds: float
    has_product: bool
    scopes: str


def profile(compiled: Any, execute: Callable[[], Any]) -> list[Operation]:
    """What a compiled program executes, by JAX's profiler; empty where that sees nothing.

    Args:
        execute: runs the program once, to its end.
    """
    instructions = _instructions(compiled.as_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            execute()
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
        events = [event for plane in trace.planes for line in plane.lines for event in line.events]
        found = [(event.duration_ns / 1e9, dict(event.stats).get("hlo_op")) for event in events]
    return [Operation(seconds, *instructions[name]) for seconds, name in found if name in instructions]


def time_shares(operations: Iterable[Operation], group_of: Callable[[Operation], str]) -> dict[str, float]:
    """Share of the operations' time that each group takes, from 0 to 1, the largest first."""
    seconds: Counter[str] = Counter()
    for operation in operations:
        seconds[group_of(operation)] += operation.seconds
    return {group: own / seconds.total() for group, own in seconds.most_common()}


def _instructions(text: str) -> dict[str, tuple[bool, str]]:
    """Of every instruction of an HLO module but containers: is there a product inside, and its scopes."""
    found: dict[str, tuple[bool, str]] = {}
    computations: set[str] = set()  # with a product inside; a computation stands before its callers
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name, opcode = instruction.groups()
            called, scopes = _CALLED.search(line), _SCOPES.search(line)
            inside = called is not None and called[1] in computations
            has_product = opcode in _PRODUCTS or inside or _LIBRARY_PRODUCT.search(line) is not None
            if has_product:
                computations.add(computation)
            if opcode not in _CONTAINERS:
                found[name] = has_product, scopes[1] if scopes else ""
    return found
