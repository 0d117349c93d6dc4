"""Pickles made to run code or to crash numpy are refused; arrays of every kind come out as numpy wrote them."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from detres.unpickling import DAMAGE, ArrayUnpickler, RefusedGlobal

DTYPE = b"cnumpy\ndtype\n"


def read(content: bytes):
    return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


def objects_made_of_bytes(text: bytes = b"O") -> bytes:
    """Sixteen bytes taken as two objects: numpy's own dtype believes the state that says it holds none."""
    kind = DTYPE + b"(V" + text + b"\nI00\nI01\ntR(I3\nV|\nNNNI-1\nI-1\nI0\ntb"
    data = b"B" + (16).to_bytes(4, "little") + b"A" * 16
    return b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(" + data + kind + b"(I2\ntVC\ntR."


def test_a_pickle_that_crashes_numpy_is_refused():
    program = (
        "import io, sys; from detres.unpickling import *\n"
        "try: ArrayUnpickler(io.BytesIO(sys.stdin.buffer.read())).load()\n"
        "except RefusedGlobal as error: print('refused', error.name)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=objects_made_of_bytes(), capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout.split()) == (0, [b"refused", b"numpy.dtype(O)"]), ended.stderr
    # The same pickle of numbers is an array, so that the refusal above is of the type alone.
    assert read(objects_made_of_bytes(b"i8")).tolist() == [0x4141414141414141] * 2


@pytest.mark.parametrize("text", [b"V8", b"M8", b"i4,i4", b"(2,)i4", b"c8", b"O8", b"f4\\u000a"])
def test_other_types_are_refused(text):
    with pytest.raises(RefusedGlobal, match=r"numpy\.dtype"):
        read(objects_made_of_bytes(text))


@pytest.mark.parametrize(
    "content",
    [
        objects_made_of_bytes(b"i4"),  # 16 bytes are no two numbers of four
        objects_made_of_bytes(b"b3"),
        objects_made_of_bytes(b"S0"),
        objects_made_of_bytes(b"S99999999999999999999"),
        objects_made_of_bytes(b"i8").replace(b"I2\ntVC", b"I-2\ntVC"),
        objects_made_of_bytes(b"i8").replace(b"tVC\n", b"tVK\n"),
        objects_made_of_bytes(b"i8").replace(b"(I2\nt", b"I2\n"),
        DTYPE + b".",
        DTYPE + b"}(VtextI1\nsb.",
        DTYPE + b"N}V__call__\nNs\x86b.",  # attributes for a stand-in
        b"ccollections\nOrderedDict\nN}Vitems\nNs\x86b.",
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"N.",  # a frame of 2^63 bytes
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
        b"(" * 3 + b"l" * 2,
    ],
)
def test_what_does_not_fit_is_damage(content):
    with pytest.raises(DAMAGE):
        read(content)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_out_as_numpy_wrote_them(protocol):
    arrays = {
        "c": np.arange(6, dtype=">f8").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "single": np.array(7, np.int16),
        "text": np.array(["a", "bcd"]),
        "bytes": np.array([b"a", b"bcd"]),
        "truths": np.array([True, False]),
        "shared": [np.ones(2)] * 2,
    }
    found = read(pickle.dumps(arrays, protocol=protocol))
    assert list(found) == list(arrays)
    for name, array in list(arrays.items())[:-1]:
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert found["shared"][0] is found["shared"][1]
    assert read(pickle.dumps(np.float32(0.5), protocol=protocol)) == 0.5


def test_an_array_as_python2_pickled_it():
    """The form of CIFAR-10's files: protocol 2, numpy's old names, the content a string of bytes."""
    data = bytes(range(250, 256))
    pickled = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86"
        + DTYPE
        + b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x06" + data + b"tbs."
    )
    assert read(pickled)["data"].tolist() == [[250, 251, 252], [253, 254, 255]]


def test_a_container_that_holds_itself_comes_out():
    held: list[object] = []
    held.append(held)
    found = read(pickle.dumps(held))
    assert found[0] is found
