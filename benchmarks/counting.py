"""Floating-point operations of matrix products in a JAX program, and the share of its time that they take."""

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

_CONTAINERS = {"while", "conditional", "call"}  # their time is that of the operations inside
_PRODUCTS = {"dot", "convolution"}
_LIBRARY_PRODUCT = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv|dot)', re.IGNORECASE)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(")
_CALLED = re.compile(r"calls=%?([\w.-]+)")


def matmul_flops(program: ClosedJaxpr | Jaxpr, *, trip_count: int | None = None) -> int:
    """Multiplications and additions of all matrix products and convolutions of a traced program.

    XLA's own count takes the body of a loop once and a library call for nothing; here a scan counts as
    often as it runs, and a branch as its larger side.

    Args:
        trip_count: of each loop whose length the program finds out when it runs.

    Raises:
        ValueError: a product stands in such a loop and ``trip_count`` is not given.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(_equation_flops(equation, trip_count) for equation in jaxpr.eqns)


def _equation_flops(equation: Any, trip_count: int | None) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
    inside = [matmul_flops(part, trip_count=trip_count) for part in _parts(parameters)]
    if name == "cond":
        return max(inside)
    if name == "while" and any(inside):
        if trip_count is None:
            raise ValueError("a matrix product in a while loop: how often it runs is not known")
        return sum(inside) * trip_count
    return sum(inside) * parameters.get("length", 1) if name == "scan" else sum(inside)


def _parts(parameters: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def matmul_time_share(compiled: Any, execute: Callable[[], Any]) -> float | None:
    """Share of a compiled program's operation time that goes to operations with a matrix product inside.

    Args:
        execute: runs the program once, to its end.

    Returns:
        A number from 0 to 1; None where the profiler sees no operation.
    """
    opcodes, products = _operations(compiled.as_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            execute()
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        events = [event for plane in profile.planes for line in plane.lines for event in line.events]
        total = shared = 0.0
        for event in events:
            name = dict(event.stats).get("hlo_op")
            if opcodes.get(name, "while") in _CONTAINERS:
                continue
            total += event.duration_ns
            shared += event.duration_ns * (name in products)
    return shared / total if total else None


def _operations(text: str) -> tuple[dict[str, str], set[str]]:
    """Opcode of every instruction of an HLO module, and the names of those with a product inside."""
    opcodes: dict[str, str] = {}
    products: set[str] = set()
    computations: set[str] = set()  # with a product inside; a computation stands before its callers
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            name, opcode = found.groups()
            opcodes[name] = opcode
            called = _CALLED.search(line)
            inside = called is not None and called[1] in computations
            if opcode in _PRODUCTS or inside or _LIBRARY_PRODUCT.search(line):
                products.add(name)
                computations.add(computation)
    return opcodes, products
