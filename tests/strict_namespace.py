"""A strict stand-in for CuPy: tests device code on machines without a GPU.

`StrictNamespace()` is the module, `StrictArray` its array. Names and signatures are those of the real package,
frozen in `cupy_names.txt`; values are numpy's. What CuPy forbids is forbidden. What a device does otherwise than a
processor without an error (indices out of bounds, repeated targets of an assignment, NaN as an integer) raises;
sorts are stable and `empty` holds rubbish, as on a device. Stricter than CuPy on purpose: no `bool()`, `float()`
or `int()` of 0-d arrays, no printing of values, no function of numpy on a device array, no lists as indices, no
numpy array in `a[...] = b`. Looser in one thing: cupy.ndarray has no `__array_namespace__`.
"""

import copy
import functools
import inspect
import operator
import warnings
import weakref
from collections import Counter
from pathlib import Path

import numpy as np


def _frozen():
    """Read the frozen list: names, names of methods, signatures of both."""
    text = (Path(__file__).parent / "cupy_names.txt").read_text(encoding="utf-8")
    sections = [part.split("\n")[1:] for part in text.split("\n[")[1:]]
    names, methods, *signatures = [[line for line in section if line] for section in sections]
    split = [dict(line.rstrip(")").split("(", 1) for line in section) for section in signatures]
    # A lambda turns a list of arguments into a signature that can bind.
    bound = [{name: inspect.signature(eval(f"lambda {text}: None")) for name, text in s.items()} for s in split]
    return frozenset(names), frozenset(methods), *bound


CUPY_NAMES, NDARRAY_NAMES, _SIGNATURES, _METHOD_SIGNATURES = _frozen()

# Arguments that CuPy needs on the host: a device array there is an implicit copy; lists and tuples are welcome.
_HOST_ARGUMENTS = frozenset(
    """shape newshape axis axes axis1 axis2 source destination repeats reps shift decimals k n N M num start stop
    step ddof keepdims dtype order offset indices_or_sections pad_width kth mode side method kind copy""".split()
)
_SEQUENCES = frozenset("tup out condlist choicelist q".split())  # other arguments that may be a list or a tuple
_HOST_FUNCTIONS = frozenset("broadcast_shapes issubdtype ndim promote_types result_type shape size".split())
# What runs as numpy's namesake, beside all ufuncs. Left out: what writes or prints, partitions (their order is
# unspecified), and what adds floats in no fixed order on a device (bincount and histograms with weights).
_FUNCTIONS = frozenset(
    """all allclose amax amin any arange argmax argmin argsort argwhere around array_equal array_split
    ascontiguousarray atleast_1d atleast_2d average broadcast_arrays broadcast_to clip column_stack concat
    concatenate copy copyto count_nonzero cumprod cumsum diag diagonal diff digitize dstack empty empty_like
    expand_dims eye flatnonzero flip full full_like hstack identity interp isclose isin lexsort linspace max mean
    median meshgrid min moveaxis nan_to_num nanargmax nanargmin nancumsum nanmax nanmean nanmedian nanmin nanprod
    nanstd nansum nanvar nonzero ones ones_like pad percentile permute_dims prod ptp put_along_axis quantile
    ravel repeat reshape roll round searchsorted select sinc sort split squeeze stack std sum swapaxes take
    take_along_axis tile transpose trapezoid tril triu unique var vstack where zeros zeros_like""".split()
)
_METHODS = frozenset(name for name in _METHOD_SIGNATURES if hasattr(np.ndarray, name)) - frozenset(
    "argpartition byteswap choose compress dot dump dumps partition put tobytes tofile tolist trace".split()
)
_SHARED = (np.generic, np.dtype, np.finfo, np.iinfo)  # types that are numpy's in CuPy too
_SCALARS = (bool, int, float, complex, np.generic)


class StrictOutOfMemory(MemoryError):
    """The stand-in's cupy.cuda.memory.OutOfMemoryError, which is a MemoryError too."""


def at_call(k, error):
    """Fault for `fail_on`: the k-th call of a name, counted from 1, raises `error`; the others run."""
    return lambda call: error if call == k else None


def _with_operators(cls):
    """Give the array its plain attributes and Python's operators, each as the ufunc behind it."""
    for name in "shape dtype ndim size nbytes itemsize strides flags".split():
        setattr(cls, name, property(operator.attrgetter(f"_data.{name}")))
    for pair in """add:add sub:subtract mul:multiply truediv:divide floordiv:floor_divide mod:remainder pow:power
        and:bitwise_and or:bitwise_or xor:bitwise_xor lshift:left_shift rshift:right_shift""".split():
        symbol, ufunc = pair.split(":")
        for prefix, options in (("", {}), ("r", {"mirrored": True}), ("i", {"in_place": True})):
            method = functools.partialmethod(cls._operator, ufunc, **options)
            setattr(cls, f"__{prefix}{symbol}__", method)
    for pair in """lt:less le:less_equal gt:greater ge:greater_equal eq:equal ne:not_equal
        neg:negative pos:positive abs:absolute invert:invert""".split():
        symbol, ufunc = pair.split(":")
        setattr(cls, f"__{symbol}__", functools.partialmethod(cls._operator, ufunc))
    cls.__hash__ = None
    return cls


@_with_operators
class StrictArray:
    """An array on the pretended device, made by a namespace; only `get()` brings its values to the host."""

    __slots__ = ("__weakref__", "_data", "_space")
    __array_ufunc__ = None  # numpy's operators stand back

    def __init__(self, data, space):
        self._data, self._space = data, space

    T = property(lambda self: self._space._wrap(self._data.T))

    def __array_namespace__(self, api_version=None):
        return self._space

    def __getattr__(self, name):
        if name in _METHODS:
            signature, function = _METHOD_SIGNATURES[name], getattr(self._data, name)
            return functools.partial(self._space._call, name, function, signature, False)
        if name in NDARRAY_NAMES:
            raise AttributeError(f"cupy.ndarray has {name}, the stand-in does not implement it")
        raise AttributeError(f"cupy.ndarray has no {name}")

    def __repr__(self):
        return f"<StrictArray {self.shape} {self.dtype}>"

    def __len__(self):
        return len(self._data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        return self._space._run("getitem", self._data.__getitem__, self._index(key))

    def __setitem__(self, key, value):
        value, key = self._space._operand(value), self._index(key)
        _refuse_undefined_cast(value, self.dtype)
        if np.ndim(value) and any(isinstance(k, np.ndarray) and k.dtype.kind in "iu" for k in key):
            hits = np.zeros(self.shape, np.int64)
            np.add.at(hits, key, 1)
            if hits.max(initial=0) > 1:
                raise IndexError("repeated targets: undefined on a device which value stays")
        self._space._run("setitem", self._data.__setitem__, key, value)

    def _index(self, key):
        """Indices as numpy's, always with an Ellipsis, so that a single element is a 0-d view."""
        keys = key if isinstance(key, tuple) else (key,)
        for k in keys:
            integer = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
            if not (k is None or k is Ellipsis or integer or isinstance(k, (slice, StrictArray))):
                raise TypeError(f"a device array takes no index of {type(k)}")
        found = self._space._unwrapped(keys)
        return found if any(k is Ellipsis for k in found) else (*found, Ellipsis)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError("CuPy's astype supports neither casting nor subok")
        _refuse_undefined_cast(self._data, np.dtype(dtype))
        result = self._space._run("astype", self._data.astype, dtype, order, copy=copy)
        return self if result._data is self._data else result

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Copy to the host explicitly; counted. Returns a numpy array: `out` if it was given."""
        self._space._enter("get")
        out = np.empty(self.shape, self.dtype, order) if out is None else out
        if not isinstance(out, np.ndarray) or out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"out is no numpy array of {self.shape} {self.dtype}")
        np.copyto(out, self._data)
        self._space._count("download", self.nbytes)
        return out

    def item(self):
        """Copy the only element to the host explicitly; counted as a download."""
        return self.get().item()

    def _operator(self, name, *other, mirrored=False, in_place=False):
        operands = (*other, self) if mirrored else (self, *other)
        data = [self._space._operand(x) for x in operands]
        result = self._space._run(name, getattr(np, name), *data, out=self._data if in_place else None)
        return self if in_place else result

    def _refuse(self, *args, **kwargs):
        raise TypeError("implicit host copy")

    # CuPy's __array__ raises as well; without one, numpy would make an array of objects.
    __array__ = __array_function__ = _refuse
    __bool__ = __float__ = __int__ = __complex__ = __reduce_ex__ = _refuse


def _refuse_undefined_cast(value, dtype):
    """Raise where a float has no counterpart in an integer type: a device saturates, a processor wraps."""
    value = np.asarray(value)
    if value.dtype.kind == "f" and dtype.kind in "iu":
        limits, whole = np.iinfo(dtype), np.trunc(value).astype(np.float64)
        # The largest integers round up to a power of two as floats, so the upper bound is exclusive.
        if not np.all((whole >= float(limits.min)) & (whole < float(limits.max) + 1)):
            raise ValueError(f"NaN or out of range as {dtype}: undefined on a device")


class StrictNamespace:
    """What `import cupy` would give, with an account of its memory and its traffic.

    `capacity_bytes` is the memory of the device: an array that would push `live_bytes` (of the buffers that
    arrays and views hold; what numpy uses inside a call is left out) over it raises `StrictOutOfMemory`.
    `peak_bytes` is the most that was alive. `uploads`, `downloads`, `uploaded_bytes` and `downloaded_bytes`
    count explicit copies, `calls` the calls of each name; they are not exact under several threads.

    `fail_on` places faults on functions, methods, ufuncs of operators, 'getitem', 'setitem', 'get', and 'alloc'
    for every new buffer. An exception is raised at each call; a callable gets the number of the call, from 1,
    and returns an exception or None (see `at_call`).
    """

    def __init__(self, capacity_bytes=None, fail_on=None):
        self.capacity_bytes, self.fail_on = capacity_bytes, dict(fail_on or {})
        unknown = set(self.fail_on) - CUPY_NAMES - NDARRAY_NAMES - {"getitem", "setitem", "alloc"}
        if unknown:
            raise ValueError(f"no fault can be placed on {sorted(unknown)}")
        self.uploads = self.downloads = self.uploaded_bytes = self.downloaded_bytes = self.peak_bytes = 0
        self.calls, self.ndarray, self.newaxis = Counter(), StrictArray, None
        self._buffers = {}  # id of the numpy array that owns a buffer -> (weak reference to it, bytes)

    @property
    def live_bytes(self):
        return sum(size for _, size in list(self._buffers.values()))

    def __getattr__(self, name):
        if name not in CUPY_NAMES:
            raise AttributeError(f"CuPy has no {name}")
        numpys = getattr(np, name, None)
        if name in _HOST_FUNCTIONS:
            return lambda *args, **kwargs: numpys(*self._unwrapped(args), **self._unwrapped(kwargs))
        if isinstance(numpys, float) or (isinstance(numpys, type) and issubclass(numpys, _SHARED)):
            return numpys
        ufunc = isinstance(numpys, np.ufunc) and name != "matmul"
        if ufunc or name in _FUNCTIONS:
            return functools.partial(self._call, name, numpys, _SIGNATURES[name], not ufunc)
        raise AttributeError(f"CuPy has {name}, the stand-in does not implement it")

    def asarray(self, a, dtype=None, order=None, *, copy=None, blocking=False):
        """Upload a numpy array or Python numbers, counted; what is on the device stays there."""
        if isinstance(a, StrictArray):
            self._unwrapped(a)  # refuses one of another device
            return a.astype(dtype or a.dtype, order or "K", copy=bool(copy))
        if copy is False:
            raise ValueError("a copy to the device is needed")
        self._enter("asarray")
        data = np.array(a, dtype=dtype, order=order or "K")
        result = self._wrap(data.astype(data.dtype.newbyteorder("="), copy=False))
        self._count("upload", result.nbytes)
        return result

    def array(self, obj, dtype=None, copy=True, order="K", *, blocking=False):
        """As `asarray`, with a copy of what is on the device."""
        return self.asarray(obj, dtype, order, copy=copy)

    def astype(self, x, dtype, /, *, copy=True):
        return x.astype(dtype, copy=copy)

    def asnumpy(self, a, stream=None, order="C", out=None, *, blocking=True):
        return a.get(order=order, out=out)

    def get_array_module(self, *args):
        return self if any(isinstance(a, StrictArray) for a in args) else np

    def _count(self, way, size):
        for counter, step in ((f"{way}s", 1), (f"{way}ed_bytes", size)):
            setattr(self, counter, getattr(self, counter) + step)

    def _enter(self, name):
        """Count a call of `name` and raise the fault placed on it."""
        self.calls[name] += 1
        fault = self.fail_on.get(name)
        if callable(fault) and not isinstance(fault, type):
            fault = fault(self.calls[name])
        if fault is not None:
            raise copy.copy(fault)  # the traceback of one kept in `fail_on` would keep arrays alive

    def _operand(self, value):
        if not isinstance(value, (StrictArray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}: upload it with asarray")
        return self._unwrapped(value)

    def _call(self, name, function, signature, needs_array, /, *args, **kwargs):
        """Run numpy's namesake once every argument is one that CuPy would take."""
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"CuPy's {name}: {error}") from None
        for position, (argument, value) in enumerate(bound.items()):
            several = signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
            for one in value if several else (value,):
                _check_argument(name, argument, one, needs_array and position == 0)
        if name in ("sort", "argsort"):
            if bound.get("kind") not in (None, "stable"):
                raise ValueError(f"CuPy's {name} is stable and no other")
            kwargs["kind"] = "stable"
        result = self._run(name, function, *self._unwrapped(args), **self._unwrapped(kwargs))
        if name in ("empty", "empty_like"):
            result._data.fill(np.nan if result.dtype.kind in "fc" else 1)
        return result if bound.get("out") is None else bound["out"]

    def _run(self, name, function, *args, **kwargs):
        """Run a function of numpy on unwrapped arguments, silently as on a device; wrap what it returns."""
        self._enter(name)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return self._wrap(function(*args, **kwargs))

    def _unwrapped(self, value):
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {np.ndarray}: upload it with asarray")
        if isinstance(value, (list, tuple)):
            return type(value)(self._unwrapped(v) for v in value)
        if isinstance(value, dict):
            return {key: self._unwrapped(v) for key, v in value.items()}
        if not isinstance(value, StrictArray):
            return value
        if value._space is not self:
            raise TypeError("arrays of two devices in one expression")
        return value._data

    def _wrap(self, result):
        """Arrays and numbers as device arrays, 0-d ones too; sequences of them likewise."""
        if isinstance(result, (list, tuple)):
            return type(result)(self._wrap(r) for r in result)
        if result is None:
            return None  # of methods that work in place
        data = np.asarray(result)
        if data.dtype.kind not in "biufc" or data.dtype.itemsize > 16 or data.dtype == np.longdouble:
            raise TypeError(f"Unsupported dtype {data.dtype}")
        self._account(data)
        return StrictArray(data, self)

    def _account(self, data):
        """Keep the owner of the memory of `data` in the books until its last view is gone."""
        while getattr(data, "base", None) is not None:
            data = data.base
        key = id(data)
        if key in self._buffers:
            return
        self._enter("alloc")
        live = self.live_bytes + data.nbytes
        if self.capacity_bytes is not None and live > self.capacity_bytes:
            raise StrictOutOfMemory(f"{live} bytes wanted, {self.capacity_bytes} there")
        self._buffers[key] = (weakref.ref(data, lambda _: self._buffers.pop(key)), data.nbytes)
        self.peak_bytes = max(self.peak_bytes, live)


def _check_argument(name, argument, value, needs_array):
    """Raise TypeError where CuPy would, or where it would copy to the host behind the caller's back."""
    several = isinstance(value, (list, tuple))
    if argument in _HOST_ARGUMENTS:
        if any(isinstance(v, StrictArray) for v in (value if several else (value,))):
            raise TypeError(f"implicit host copy: {argument} of {name} is needed on the host")
        return
    wrong = argument not in _SEQUENCES if several else needs_array and not isinstance(value, StrictArray)
    if wrong or (several and argument == "tup" and not all(isinstance(v, StrictArray) for v in value)):
        raise TypeError(f"CuPy's {name} takes no {type(value)} of host values as {argument}")


strict = StrictNamespace()
