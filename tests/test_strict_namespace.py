"""The stand-in for CuPy: as strict as it says, and numpy's values wherever it answers."""

import copy
import math
import operator
import pickle

import numpy as np
import pytest

import strict_namespace
from strict_namespace import CUPY_NAMES, NDARRAY_NAMES, StrictArray, StrictNamespace, StrictOutOfMemory, at_call


class DriverError(RuntimeError):
    """Stands for cupy_backends.cuda.api.runtime.CUDARuntimeError."""


@pytest.fixture
def xp():
    return StrictNamespace()


@pytest.fixture
def a(xp):
    return xp.asarray(np.arange(6.0))


HOST = np.arange(6.0)


# Names


def test_the_frozen_list_is_sorted_and_says_its_version():
    text = (strict_namespace.Path(strict_namespace.__file__).parent / "cupy_names.txt").read_text(encoding="utf-8")
    assert text.startswith("# Public names of CuPy 14.2.0")
    sections = [part.split("]\n")[1].split() for part in text.split("\n[")[1:3]]
    for section, names in zip(sections, (CUPY_NAMES, NDARRAY_NAMES), strict=True):
        assert section == sorted(set(section))
        assert set(section) == names
    assert {"asarray", "nanmedian", "RawKernel"} <= CUPY_NAMES
    assert {"get", "astype", "item"} <= NDARRAY_NAMES


@pytest.mark.parametrize("name", ["nanquantile", "nanpercentile", "errstate", "unstack", "vecdot", "uploaded"])
def test_a_name_that_cupy_lacks_is_not_there(xp, name):
    with pytest.raises(AttributeError, match=f"CuPy has no {name}"):
        getattr(xp, name)


@pytest.mark.parametrize("name", ["cuda", "RawKernel", "vectorize", "save", "bincount", "partition", "trapz"])
def test_a_name_that_only_the_stand_in_lacks_says_so(xp, name):
    with pytest.raises(AttributeError, match=f"CuPy has {name}, the stand-in"):
        getattr(xp, name)


def test_arrays_have_no_attributes_that_cupys_have_not(a):
    for name in ("byteorder", "ctypes", "argwhere", "median", "__array_interface__", "__array_struct__"):
        with pytest.raises(AttributeError, match=f"cupy.ndarray has no {name}"):
            getattr(a, name)
    with pytest.raises(AttributeError, match=r"cupy\.ndarray has tolist, the stand-in"):
        a.tolist()


def test_every_name_is_answered_with_an_object_or_a_reason(xp):
    answered = {name for name in CUPY_NAMES if hasattr(xp, name)}
    for name in CUPY_NAMES - answered:
        with pytest.raises(AttributeError, match="the stand-in does not implement it"):
            getattr(xp, name)
    implemented = strict_namespace._FUNCTIONS | strict_namespace._HOST_FUNCTIONS
    assert implemented <= answered
    assert {"add", "sqrt", "float32", "uint16", "bool", "nan", "inf", "pi", "newaxis", "finfo"} <= answered
    assert (xp.float32, xp.pi, xp.inf, xp.newaxis) == (np.float32, np.pi, np.inf, None)


def test_the_namespace_is_found_from_an_array(xp, a):
    assert a.__array_namespace__() is xp
    assert xp.get_array_module(HOST, a) is xp
    assert xp.get_array_module(HOST) is np
    assert xp.ndarray is StrictArray
    assert not isinstance(a, np.ndarray)


# Refusals


@pytest.mark.parametrize("convert", [bool, float, int, complex, round, math.sqrt, np.float64, "{:.1f}".format])
def test_no_number_leaves_the_device_unasked(a, convert):
    for array in (a, a[1], a[:1]):
        with pytest.raises(TypeError):
            convert(array)


@pytest.mark.parametrize(
    "copy_out",
    [
        np.asarray,
        np.array,
        lambda a: np.array([a, a]),
        lambda a: np.asarray(a, dtype=np.float32),
        lambda a: HOST[a],
        lambda a: HOST[a > 1],
        lambda a: 1.0 in a,
        lambda a: a[0] in [1.0],
        lambda a: max(a),
        lambda a: 0 if a[0] else 1,
        pickle.dumps,
        copy.deepcopy,
    ],
)
def test_no_array_leaves_the_device_unasked(a, copy_out):
    with pytest.raises(TypeError, match="implicit host copy"):
        copy_out(a)


def test_no_element_of_a_numpy_array_takes_one_from_the_device(a):
    with pytest.raises((TypeError, ValueError)):
        HOST.copy()[0] = a[0]


@pytest.mark.parametrize("host", [memoryview, bytes, hash, operator.index, range, lambda a: [1, 2][a]])
def test_an_array_is_neither_a_buffer_nor_an_index_nor_a_key(a, host):
    for array in (a, a.astype(np.int64)[1]):
        with pytest.raises(TypeError):
            host(array)


@pytest.mark.parametrize("function", [np.sum, np.median, np.sort, np.isnan, np.shape, np.add.reduce, HOST.dot])
def test_numpys_functions_refuse_a_device_array(a, function):
    with pytest.raises(TypeError):
        function(a)


OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow),
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
]
IN_PLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow]


@pytest.mark.parametrize("operate", OPERATORS + IN_PLACE, ids=lambda o: o.__name__)
def test_operators_refuse_numpy_arrays_on_either_side(a, operate):
    for host in (HOST, HOST[:1], np.array(2.0)):
        with pytest.raises(TypeError):
            operate(a, host)
        with pytest.raises(TypeError):
            operate(host.copy(), a)
    for other in (None, [1.0] * 6, "1"):
        with pytest.raises(TypeError):
            operate(a, other)


@pytest.mark.parametrize(
    "call",
    [
        lambda xp, a: xp.add(a, HOST),
        lambda xp, a: xp.add(HOST, HOST),
        lambda xp, a: xp.sum(HOST),
        lambda xp, a: xp.where(a > 1, a, HOST),
        lambda xp, a: xp.where(HOST > 1, a, 0.0),
        lambda xp, a: xp.stack([a, HOST]),
        lambda xp, a: xp.concatenate([a, [1.0]]),
        lambda xp, a: xp.full(6, HOST),
        lambda xp, a: xp.sort(HOST),
        lambda xp, a: xp.sqrt(a, out=HOST),
        lambda xp, a: a.sum(out=HOST),
        lambda xp, a: a.take(np.array([1])),
        lambda xp, a: a.fill(np.array(1.0)),
        lambda xp, a: xp.result_type(HOST),
    ],
)
def test_functions_refuse_numpy_arrays(xp, a, call):
    with pytest.raises(TypeError):
        call(xp, a)


@pytest.mark.parametrize(
    "call",
    [
        lambda xp, a: xp.sum([1.0, 2.0]),
        lambda xp, a: xp.sum(3.0),
        lambda xp, a: xp.add(a, [1.0] * 6),
        lambda xp, a: xp.take(a, [1, 2]),
        lambda xp, a: xp.mean(a, where=a > 1),
        lambda xp, a: xp.max(a, initial=0.0),
        lambda xp, a: xp.add(a, 1.0, where=a > 1),
        lambda xp, a: xp.take(a, a.astype(np.int64), mode="clip"),
        lambda xp, a: a.sum(initial=0.0),
        lambda xp, a: xp.clip(a, 1.0),
        lambda xp, a: xp.ascontiguousarray(a).astype(np.float32, casting="safe"),
    ],
)
def test_functions_refuse_the_arguments_that_cupys_lack(xp, a, call):
    with pytest.raises(TypeError, match="CuPy's"):
        call(xp, a)


@pytest.mark.parametrize(
    "call",
    [
        lambda xp, n: xp.zeros(n),
        lambda xp, n: xp.empty((2, n)),
        lambda xp, n: xp.full(n, 1.0),
        lambda xp, n: xp.arange(n),
        lambda xp, n: xp.linspace(0.0, n, 3),
        lambda xp, n: xp.sum(xp.ones((2, 2)), axis=n),
        lambda xp, n: xp.ones(6).reshape(n, 2),
        lambda xp, n: xp.repeat(xp.ones(2), n),
    ],
)
def test_shapes_and_axes_cannot_stay_on_the_device(xp, call):
    with pytest.raises(TypeError, match="implicit host copy"):
        call(xp, xp.asarray(1))


@pytest.mark.parametrize("key", [[1, 2], np.array([1]), HOST > 1, True, 1.0, (Ellipsis, np.array([0])), "x"])
def test_indices_are_numbers_slices_or_device_arrays(xp, a, key):
    with pytest.raises(TypeError):
        a[key]
    with pytest.raises(TypeError):
        a[key] = 1.0


def test_slices_cannot_be_bounded_by_device_arrays(xp, a):
    with pytest.raises(TypeError):
        a[: xp.asarray(2)]


@pytest.mark.parametrize("value", [HOST, np.array(1.0), [1.0] * 6, None])
def test_only_device_arrays_and_scalars_can_be_assigned(a, value):
    with pytest.raises(TypeError, match="Unsupported type"):
        a[...] = value


def test_two_devices_do_not_mix(xp, a):
    other = StrictNamespace()
    for mix in (lambda: other.ones(6) + a, lambda: other.asarray(a), lambda: other.sum(a)):
        with pytest.raises(TypeError, match="two devices"):
            mix()


@pytest.mark.parametrize("dtype", [object, np.longdouble, "U3", "M8[s]"])
def test_devices_know_numbers_only(xp, dtype):
    with pytest.raises(TypeError, match="Unsupported dtype"):
        xp.asarray(np.zeros(2, dtype))


# What a device does otherwise than a processor


def test_indices_out_of_bounds_raise(xp, a):
    far = xp.asarray(np.array([6]))
    for reach in (lambda: a[far], lambda: xp.take(a, far), lambda: a.take(-far - 1), lambda: a[6]):
        with pytest.raises(IndexError):
            reach()
    with pytest.raises(IndexError):
        a[far] = 1.0


def test_an_assignment_must_not_hit_an_element_twice(xp, a):
    twice = xp.asarray(np.array([1, -5]))
    with pytest.raises(IndexError, match="repeated targets"):
        a[twice] = xp.asarray(np.array([1.0, 2.0]))
    a[twice] = 7.0
    assert a.get().tolist() == [0, 7, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 256.0])
def test_floats_without_a_counterpart_are_not_cast_to_integers(xp, value):
    with pytest.raises(ValueError, match="undefined on a device"):
        xp.full(3, value).astype(np.uint8)
    with pytest.raises(ValueError, match="undefined on a device"):
        xp.zeros(3, dtype=np.uint8)[...] = xp.asarray(value)


def test_floats_in_range_are_truncated(xp):
    whole = xp.asarray(np.array([-0.9, 0.0, 254.5, 255.9])).astype(np.uint8)
    assert whole.get().tolist() == [0, 0, 254, 255]
    with pytest.raises(ValueError, match="undefined on a device"):
        xp.full(1, 2.0**63).astype(np.int64)
    assert xp.full(1, -(2.0**63)).astype(np.int64).get()[0] == -(2**63)
    assert xp.zeros(0).astype(np.int16).shape == (0,)


def test_sorting_is_stable_and_takes_no_other_kind(xp):
    ties = np.random.default_rng(1).integers(0, 3, 4000)
    found = xp.asarray(ties)
    np.testing.assert_array_equal(xp.argsort(found).get(), np.argsort(ties, kind="stable"))
    np.testing.assert_array_equal(found.argsort().get(), np.argsort(ties, kind="stable"))
    with pytest.raises(ValueError, match="stable"):
        xp.sort(found, kind="quicksort")
    assert found.sort() is None
    np.testing.assert_array_equal(found.get(), np.sort(ties))


def test_empty_arrays_hold_rubbish(xp, a):
    assert np.isnan(xp.empty((2, 3), dtype=xp.float32).get()).all()
    assert np.isnan(xp.empty_like(a).get()).all()
    assert xp.empty(2, dtype=xp.uint16).get().all()


def test_invalid_operations_are_silent(xp):
    zero, nothing = xp.zeros(3), xp.full((3, 2), xp.nan)
    for result in (zero / 0, xp.nanmedian(nothing, axis=1), xp.nanmax(nothing, axis=1), xp.sqrt(zero - 1)):
        assert np.isnan(result.get()).all()


# Values


SCALARS = [2, 2.5, True, np.float32(2.5), np.float64(2.5), np.int64(3), np.uint8(3)]
DTYPES = ["bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64", "complex64"]
ARITHMETIC = [operator.add, operator.mul, operator.truediv, operator.lt, operator.eq]


@pytest.mark.parametrize("operate", ARITHMETIC, ids=lambda o: o.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_promotion_is_numpys(xp, dtype, operate):
    host = np.array([[3, 1], [2, 1]]).astype(dtype)
    device = xp.asarray(host)
    others = [np.ones(2, other) for other in DTYPES] + [np.array(1, other) for other in DTYPES]
    pairs = [(other, xp.asarray(other)) for other in others] + [(scalar, scalar) for scalar in SCALARS]
    for on_host, on_device in pairs:
        for flipped in (False, True):
            expected = operate(on_host, host) if flipped else operate(host, on_host)
            result = operate(on_device, device) if flipped else operate(device, on_device)
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result.get(), expected)


@pytest.mark.parametrize("operate", OPERATORS + IN_PLACE, ids=lambda o: o.__name__)
def test_operators_give_numpys_values(xp, operate):
    host = np.random.default_rng(2).uniform(0.5, 3, (3, 4))
    for other in (host[1], 2.5):
        expected = operate(host.copy(), other)
        result = operate(xp.asarray(host), xp.asarray(other) if isinstance(other, np.ndarray) else other)
        np.testing.assert_array_equal(result.get(), expected)


@pytest.mark.parametrize("name", ["and_", "or_", "xor", "lshift", "rshift", "invert", "neg", "abs", "pos"])
def test_integer_and_unary_operators_give_numpys_values(xp, name):
    operate, host = getattr(operator, name), np.arange(-3, 6)
    more = () if name in ("invert", "neg", "abs", "pos") else (3,)
    np.testing.assert_array_equal(operate(xp.asarray(host), *more).get(), operate(host, *more))


def test_in_place_operators_keep_buffer_and_dtype(xp):
    image = xp.ones((2, 3), dtype=xp.float32)
    same, view, before = image, image[0], xp.live_bytes
    image += xp.full(3, 2.0)
    image[1] *= 2
    assert image is same
    assert image.dtype == np.float32
    assert image.get().tolist() == [[3, 3, 3], [6, 6, 6]]
    assert view.get().tolist() == [3, 3, 3]
    assert xp.live_bytes == before
    counts = xp.zeros(3, dtype=xp.int32)
    with pytest.raises(TypeError):
        counts += 0.5


@pytest.mark.parametrize(
    "key",
    [
        1,
        -1,
        slice(1, 3),
        slice(None, None, -2),
        Ellipsis,
        None,
        (1, 2),
        (Ellipsis, 1),
        (None, 1, slice(2)),
        np.int64(1),
    ],
    ids=repr,
)
def test_plain_indices_give_views(xp, key):
    host = np.arange(12.0).reshape(3, 4)
    device = xp.asarray(host)
    view, before = device[key], xp.live_bytes
    np.testing.assert_array_equal(view.get(), host[key])
    view += 100.0
    host[key] += 100.0
    np.testing.assert_array_equal(device.get(), host)
    assert xp.live_bytes == before == host.nbytes


def test_integer_and_boolean_arrays_index_as_in_numpy(xp):
    host = np.arange(12.0).reshape(3, 4)
    rows, columns, mask = np.array([2, 0, 2]), np.array([[1], [-1]]), host % 3 == 0
    device, r, c, m = (xp.asarray(x) for x in (host, rows, columns, mask))
    for result, expected in (
        (device[r], host[rows]),
        (device[r, c], host[rows, columns]),
        (device[1, r], host[1, rows]),
        (device[m], host[mask]),
        (device[..., r], host[..., rows]),
        (device[r[0]], host[rows[0]]),
    ):
        np.testing.assert_array_equal(result.get(), expected)
    device[m], device[r[:2], 1], device[:, 2] = xp.nan, xp.asarray(np.array([5.0, 6.0])), xp.ones(3)
    host[mask], host[rows[:2], 1], host[:, 2] = np.nan, [5.0, 6.0], 1.0
    np.testing.assert_array_equal(device.get(), host)


FUNCTIONS = {
    "nanmedian": lambda xp, x: xp.nanmedian(x, axis=0),
    "nansum": lambda xp, x: xp.nansum(x, axis=0, dtype=xp.float64),
    "sum": lambda xp, x: x.sum(axis=(0, 1), keepdims=True),
    "mean": lambda xp, x: x.mean(axis=1),
    "sort": lambda xp, x: xp.sort(x, axis=0),
    "take_along_axis": lambda xp, x: xp.take_along_axis(x, xp.argsort(x, axis=0), axis=0),
    "where": lambda xp, x: xp.where(xp.isfinite(x), x, 0.0),
    "where_scalars": lambda xp, x: xp.where(x > 0, 1, -1),
    "nonzero": lambda xp, x: xp.where(x > 0)[1],
    "clip": lambda xp, x: xp.clip(x, -0.5, 0.5),
    "maximum": lambda xp, x: xp.maximum(x, 0.0),
    "stack": lambda xp, x: xp.stack([x, x], axis=-1),
    "concatenate": lambda xp, x: xp.concatenate((x, x)),
    "cumsum": lambda xp, x: xp.cumsum(x, axis=1, dtype=xp.float64),
    "pad": lambda xp, x: xp.pad(x, ((1, 1), (0, 0)), mode="edge"),
    "meshgrid": lambda xp, x: xp.meshgrid(xp.arange(3), xp.linspace(0.0, 1.0, 4), indexing="ij")[1],
    "percentile": lambda xp, x: xp.percentile(x[1:], [25.0, 50.0], axis=1),
    "searchsorted": lambda xp, x: xp.searchsorted(xp.arange(5.0), x),
    "full_like": lambda xp, x: xp.full_like(x, 3),
    "broadcast_to": lambda xp, x: xp.broadcast_to(x[0], (2, *x.shape[1:])),
    "transpose": lambda xp, x: x.transpose(1, 0).reshape(-1, 2),
    "T": lambda xp, x: x.T.astype(xp.float64),
    "view": lambda xp, x: x.view(xp.int32),
    "finfo": lambda xp, x: x * xp.finfo(x.dtype).eps,
    "floor": lambda xp, x: xp.floor(x).ravel(),
    "frexp": lambda xp, x: xp.frexp(x)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_give_numpys_values_and_dtypes(xp, name):
    host = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    host[0, :3] = np.nan
    expected, result = FUNCTIONS[name](np, host), FUNCTIONS[name](xp, xp.asarray(host))
    assert isinstance(result, StrictArray)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(result.get(), expected)


def test_attributes_are_numpys(xp):
    host = np.zeros((2, 3, 4), dtype=np.int16)
    device = xp.asarray(host)
    for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides"):
        assert getattr(device, name) == getattr(host, name)
    assert len(device) == 2
    assert device.T.shape == (4, 3, 2)
    assert xp.result_type(device, xp.float32) == np.result_type(host, np.float32)
    assert repr(device) == "<StrictArray (2, 3, 4) int16>"


def test_single_values_stay_on_the_device(xp, a):
    single = [
        a[0],
        a.sum(),
        xp.median(a),
        xp.any(a),
        xp.count_nonzero(a),
        xp.allclose(a, a),
        xp.sqrt(2.0),
        a[0] + 1,
    ]
    single += [next(iter(a)), a.argmax(), xp.array_equal(a, a)]
    for value in single:
        assert isinstance(value, StrictArray)
        assert value.shape == ()
    with pytest.raises(TypeError):
        iter(a[0])


def test_out_is_filled_and_returned(xp, a):
    out = xp.zeros(6)
    assert xp.sqrt(a, out=out) is out
    np.testing.assert_array_equal(out.get(), np.sqrt(HOST))


# The books


def test_only_explicit_copies_are_counted(xp):
    a = xp.asarray(HOST)
    assert (xp.uploads, xp.uploaded_bytes, xp.downloads) == (1, 48, 0)
    assert xp.asarray(a) is a
    assert xp.array(a) is not a
    total = (xp.sort(a * 2)[1:] + xp.ones(5)).sum()
    assert (xp.uploads, xp.downloads) == (1, 0)
    assert total.item() == 35.0
    host = np.zeros(6)
    assert a.get(out=host) is host
    np.testing.assert_array_equal(xp.asnumpy(a), host)
    assert (xp.downloads, xp.downloaded_bytes) == (3, 8 + 48 + 48)
    assert (xp.calls["get"], xp.calls["sort"], xp.calls["multiply"]) == (3, 1, 1)
    with pytest.raises(ValueError, match="float64"):
        a.get(out=np.zeros(6, np.float32))


def test_uploads_and_downloads_are_copies_in_native_byte_order(xp):
    host = np.arange(4, dtype=">f4")
    device = xp.asarray(host)
    host[0] = 9.0
    device.get()[1] = 9.0
    assert device.dtype.isnative
    assert device.get().tolist() == [0, 1, 2, 3]
    assert xp.array([1, 2], dtype=xp.float32).get().dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        xp.asarray(host, copy=False)


def test_bytes_live_as_long_as_an_array_or_a_view(xp):
    a = xp.zeros(1000)
    view = a[10:20].reshape(2, 5)
    assert xp.live_bytes == 8000
    b = a + 1
    assert xp.live_bytes == 16000
    del a, b
    assert xp.live_bytes == 8000
    del view
    assert xp.live_bytes == 0
    assert xp.peak_bytes == 16000


def test_a_full_device_raises_and_forgets_what_it_refused():
    xp = StrictNamespace(capacity_bytes=20_000)
    a, b = xp.zeros(1000), xp.zeros(1000)
    for wanted in (lambda: a + b, lambda: xp.asarray(np.zeros(1000)), lambda: a[::-1].copy()):
        with pytest.raises(StrictOutOfMemory) as refused:
            wanted()
        assert isinstance(refused.value, MemoryError)
    assert xp.live_bytes == 16000
    assert xp.uploads == 0
    a += b
    xp.capacity_bytes = 24_000
    assert (a + b).shape == (1000,)


# Faults


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("asarray", lambda xp, a: xp.asarray(HOST)),
        ("alloc", lambda xp, a: a + 1),
        ("sort", lambda xp, a: a.sort()),
        ("multiply", lambda xp, a: a * 2),
        ("getitem", lambda xp, a: a[0]),
        ("setitem", lambda xp, a: operator.setitem(a, 0, 1.0)),
        ("get", lambda xp, a: xp.asnumpy(a)),
        ("get", lambda xp, a: a.item()),
    ],
)
def test_faults_strike_allocation_kernel_and_copy(name, act):
    xp = StrictNamespace()
    a = xp.asarray(HOST[:1])
    xp.fail_on[name] = DriverError("an illegal memory access was encountered")
    for _ in range(2):
        with pytest.raises(DriverError, match="illegal memory access"):
            act(xp, a)
    xp.fail_on.clear()
    act(xp, a)


def test_a_fault_strikes_at_the_call_it_was_placed_on():
    xp = StrictNamespace(fail_on={"sort": at_call(3, StrictOutOfMemory("full")), "median": KeyError})
    a = xp.asarray(HOST)
    for _ in range(2):
        xp.sort(a)
    with pytest.raises(StrictOutOfMemory, match="full"):
        xp.sort(a)
    xp.sort(a)
    with pytest.raises(KeyError):
        xp.median(a)


def test_a_fault_keeps_no_array_alive():
    xp = StrictNamespace(fail_on={"sort": DriverError("lost")})

    def work():
        block = xp.zeros(1000)
        return xp.sort(block)

    try:
        work()
    except DriverError:
        pass
    assert xp.live_bytes == 0


def test_faults_on_unknown_names_are_refused():
    with pytest.raises(ValueError, match="sorrt"):
        StrictNamespace(fail_on={"sorrt": DriverError("lost")})
