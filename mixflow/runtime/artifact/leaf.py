"""One array of an artifact: what it is, and how it is stored in an npz file.

An npz file keeps only numpy's own types. The others (bfloat16, float8, int4, …) cross as
unsigned integers of the same bits, and PRNG keys as their key data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixflow.errors import InputError

_OF_NUMPY = 1  # of `dtype.isbuiltin`; 2 is a type that another package registered


@dataclass(frozen=True)
class Leaf:
    """Arguments:
    name: its path: the parameter's name (or "result") and what `jax.tree_util.keystr` adds.
    shape, dtype: as the program has it; the type as JAX writes it.
    stored_shape, stored_dtype: as an npz file has it.
    key_impl: the PRNG's name where it is an array of keys.
    weak_type: whether a Python scalar was given for it.
    donated: whether the program may take its buffer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_shape: tuple[int, ...]
    stored_dtype: str
    key_impl: str | None = None
    weak_type: bool = False
    donated: bool = False

    @staticmethod
    def of(name: str, aval: Any, *, donated: bool = False) -> Leaf:
        """The leaf for an abstract value.

        Raises:
            InputError: a type that no npz file can hold.
        """
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return _key_leaf(name, aval, donated)
        if not isinstance(aval.dtype, np.dtype) or aval.dtype == jax.dtypes.float0:
            raise InputError(f"{name} is of type {aval.dtype}, which an artifact cannot hold")
        own = aval.dtype.isbuiltin == _OF_NUMPY
        stored = aval.dtype.name if own else f"uint{8 * aval.dtype.itemsize}"
        weak = bool(getattr(aval, "weak_type", False))
        return Leaf(name, aval.shape, aval.dtype.name, aval.shape, stored, None, weak, donated)

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """What the exported program takes or gives for it: key data in place of keys."""
        if self.key_impl is not None:
            return jax.ShapeDtypeStruct(self.stored_shape, jnp.dtype(self.stored_dtype))
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype(self.dtype), weak_type=self.weak_type)

    def describes(self, aval: Any) -> bool:
        """Whether it is right about an array of the exported program. A damaged one is not."""
        try:
            spec = self.spec
            shape = self.shape if self.key_impl is None else jax.eval_shape(self.decode, spec).shape
        except (TypeError, ValueError):  # no such type, or no such PRNG
            return False
        plain = Leaf.of(self.name, aval)
        stored = plain.stored_shape, plain.stored_dtype
        same = (self.stored_shape, self.stored_dtype) == stored and self.shape == shape
        return same and (spec.shape, spec.dtype) == (aval.shape, aval.dtype)

    def encode(self, value: Any) -> Any:
        """Key data for keys; other arrays as they are."""
        return value if self.key_impl is None else jax.random.key_data(value)

    def decode(self, value: Any) -> Any:
        """The inverse of `encode`."""
        return (
            value if self.key_impl is None else jax.random.wrap_key_data(value, impl=self.key_impl)
        )

    def store(self, value: Any) -> np.ndarray:
        """What the exported program gave, as an npz file holds it."""
        return np.asarray(value).view(np.dtype(self.stored_dtype))

    def restore(self, stored: np.ndarray) -> np.ndarray:
        """What the exported program takes, from what an npz file holds.

        Raises:
            InputError: another shape or type.
        """
        expected = np.dtype(self.stored_dtype)
        if stored.dtype != expected:
            raise InputError(f"{self.name}: expected {self._stored_type}, got {stored.dtype}")
        self._check_shape(stored.shape, self.stored_shape)
        return stored.view(self.spec.dtype)

    def take(self, value: Any) -> Any:
        """What the exported program takes, from what a caller gives.

        Raises:
            InputError: another shape or type.
        """
        if isinstance(value, (bool, int, float, complex)):
            value = self._from_scalar(value)
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            kind = type(value).__name__
            raise InputError(f"{self.name}: expected an array of {self._type}, got {kind}")
        given = _type_name(value)
        if given != self._type:
            raise InputError(f"{self.name}: expected {self._type}, got {given}")
        self._check_shape(value.shape, self.shape)
        return self.encode(value)

    def _from_scalar(self, value: complex) -> Any:
        """A Python number as an array, where JAX would make it one of this type."""
        if self.key_impl is not None or jnp.result_type(value, self.dtype) != self.dtype:
            return value
        try:
            return np.asarray(value, jnp.dtype(self.dtype))
        except OverflowError:
            raise InputError(f"{self.name}: {value} is no {self.dtype}") from None

    @property
    def _type(self) -> str:
        return self.dtype if self.key_impl is None else f"keys of {self.key_impl}"

    @property
    def _stored_type(self) -> str:
        if self.stored_dtype == self.dtype:
            return self.dtype
        what = "jax.random.key_data" if self.key_impl else f"the bits of {self.dtype}"
        return f"{self.stored_dtype} ({what})"

    def _check_shape(self, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if given != expected:
            raise InputError(f"{self.name}: expected shape {list(expected)}, got {list(given)}")


def _key_leaf(name: str, aval: Any, donated: bool) -> Leaf:
    kinds: list[Any] = []

    def key_data(keys: Any) -> Any:
        kinds.append(jax.random.key_impl(keys))
        return jax.random.key_data(keys)

    data = jax.eval_shape(key_data, jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    if not isinstance(kinds[0], str):
        raise InputError(f"{name} has keys of a PRNG that JAX does not know by name")
    return Leaf(
        name, aval.shape, str(aval.dtype), data.shape, data.dtype.name, kinds[0], False, donated
    )


def _type_name(value: Any) -> str:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"keys of {jax.random.key_impl(value)}"
    native = isinstance(value.dtype, np.dtype) and value.dtype.isnative
    return value.dtype.name if native else str(value.dtype)
