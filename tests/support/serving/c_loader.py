"""Loads a SavedModel through TensorFlow's C library and answers requests.

    python c_loader.py LIBRARIES SAVED_MODEL REQUESTS.npz ANSWERS.npz [--xla]

`TF_LoadSessionFromSavedModel` is the `LoadSavedModel` that TensorFlow Serving
calls, and runs the same session. This process imports no TensorFlow: only the
two libraries that its wheel ships, from the folder LIBRARIES. Unless `--xla` is
given, XLA is switched off as the stock server does at its start.

The arrays in REQUESTS are named `<number>|<signature>|<input>`; those in
ANSWERS `<number>|<output>`, or `<number>|!` with the message of an error.
"""

import ctypes
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

STRING = 7
DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    19: np.float16,
}
NUMBERS = {np.dtype(dtype): number for number, dtype in DTYPES.items()}

DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"


class Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


# What is not declared is passed as an int, which cuts a pointer.
TYPES = {
    "v": None,
    "i": ctypes.c_int,
    "n": ctypes.c_size_t,
    "s": ctypes.c_char_p,
    "p": ctypes.c_void_p,
    "b": ctypes.POINTER(Buffer),
}
PROTOTYPES = {  # The result, and the arguments.
    "TF_NewStatus": "p",
    "TF_NewGraph": "p",
    "TF_NewBuffer": "b",
    "TF_NewSessionOptions": "p",
    "TF_LoadSessionFromSavedModel": "pppspipbp",
    "TF_SessionRun": "vppppippipipp",
    "TF_GetCode": "ip",
    "TF_Message": "sp",
    "TF_DeleteStatus": "vp",
    "TF_GraphOperationByName": "pps",
    "TF_AllocateTensor": "pipin",
    "TF_DeleteTensor": "vp",
    "TF_TensorData": "pp",
    "TF_TensorType": "ip",
    "TF_TensorByteSize": "np",
    "TF_NumDims": "ip",
    "TF_Dim": "npi",
    "TF_StringInit": "vp",
    "TF_StringCopy": "vpsn",
    "TF_StringGetDataPointer": "pp",
    "TF_StringGetSize": "np",
    DISABLE_XLA: "v",
}


class Model:
    """A loaded SavedModel."""

    def __init__(self, libraries, path, xla=False):
        ctypes.CDLL(
            str(Path(libraries, "libtensorflow_framework.so.2")),
            mode=ctypes.RTLD_GLOBAL,
        )
        self.c = ctypes.CDLL(str(Path(libraries, "libtensorflow_cc.so.2")))
        for name, (result, *arguments) in PROTOTYPES.items():
            function = getattr(self.c, name)
            function.restype = TYPES[result]
            function.argtypes = [TYPES[letter] for letter in arguments]
        if not xla:
            getattr(self.c, DISABLE_XLA)()
        self.graph = self.c.TF_NewGraph()
        definition = self.c.TF_NewBuffer()
        status = self.c.TF_NewStatus()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = self.c.TF_LoadSessionFromSavedModel(
            self.c.TF_NewSessionOptions(),
            None,
            str(path).encode(),
            tags,
            1,
            self.graph,
            definition,
            status,
        )
        self._check(status)
        self.signatures = dict(
            signatures(
                ctypes.string_at(
                    definition.contents.data, definition.contents.length
                )
            )
        )

    def answer(self, signature, inputs):
        names, results = self.signatures[signature]
        if set(inputs) != set(names):
            raise RuntimeError(f"takes {set(names)}, not {set(inputs)}")
        values = [self._tensor(array) for array in inputs.values()]
        found = (ctypes.c_void_p * len(results))()
        status = self.c.TF_NewStatus()
        self.c.TF_SessionRun(
            self.session,
            None,
            self._outputs([names[name] for name in inputs]),
            (ctypes.c_void_p * len(values))(*values),
            len(values),
            self._outputs(results.values()),
            found,
            len(results),
            None,
            0,
            None,
            status,
        )
        for value in values:
            self.c.TF_DeleteTensor(value)
        self._check(status)
        return {
            name: self._array(tensor)
            for name, tensor in zip(results, found, strict=True)
        }

    def _check(self, status):
        failed = self.c.TF_GetCode(status)
        message = self.c.TF_Message(status).decode()
        self.c.TF_DeleteStatus(status)
        if failed:
            raise RuntimeError(message)

    def _outputs(self, tensors):
        pairs = [tensor.split(":") for tensor in tensors]
        return (Output * len(pairs))(
            *(
                Output(
                    self.c.TF_GraphOperationByName(self.graph, name.encode()),
                    int(index),
                )
                for name, index in pairs
            )
        )

    def _tensor(self, array):
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        if array.dtype != object:
            array = np.ascontiguousarray(array)
            tensor = self.c.TF_AllocateTensor(
                NUMBERS[array.dtype], shape, array.ndim, array.nbytes
            )
            ctypes.memmove(
                self.c.TF_TensorData(tensor), array.ctypes.data, array.nbytes
            )
            return tensor
        tensor = self.c.TF_AllocateTensor(
            STRING, shape, array.ndim, 24 * array.size
        )
        data = self.c.TF_TensorData(tensor)
        for i, value in enumerate(array.flat):
            self.c.TF_StringInit(data + 24 * i)
            self.c.TF_StringCopy(data + 24 * i, value, len(value))
        return tensor

    def _array(self, tensor):
        shape = [
            self.c.TF_Dim(tensor, axis)
            for axis in range(self.c.TF_NumDims(tensor))
        ]
        data = self.c.TF_TensorData(tensor)
        number = self.c.TF_TensorType(tensor)
        if number == STRING:
            values = [
                ctypes.string_at(
                    self.c.TF_StringGetDataPointer(data + 24 * i),
                    self.c.TF_StringGetSize(data + 24 * i),
                )
                for i in range(int(np.prod(shape)))
            ]
            array = np.array(values, object).reshape(shape)
        else:
            content = ctypes.string_at(data, self.c.TF_TensorByteSize(tensor))
            array = np.frombuffer(content, DTYPES[number]).reshape(shape)
        self.c.TF_DeleteTensor(tensor)
        return array


def signatures(meta_graph):
    """`(name, ({input: tensor}, {output: tensor}))` of a `MetaGraphDef`."""
    for number, entry in fields(meta_graph):
        if number == 5:
            name, definition = entry_of(entry)
            tensors = {1: {}, 2: {}}
            for side, pair in fields(definition):
                if side in tensors:
                    key, info = entry_of(pair)
                    tensors[side][key] = dict(fields(info)).get(1, b"").decode()
            yield name, (tensors[1], tensors[2])


def entry_of(entry):
    parts = dict(fields(entry))
    return parts[1].decode(), parts.get(2, b"")


def fields(message):
    """The length-delimited fields of a protocol buffer."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            size = varint()
            yield key >> 3, message[at : at + size]
            at += size
        else:
            at += {1: 8, 5: 4}[key & 7]


def main(libraries, path, requests, answers, *options):
    model = Model(libraries, path, xla="--xla" in options)
    asked = defaultdict(dict)
    for name, array in np.load(requests, allow_pickle=True).items():
        number, signature, key = name.split("|")
        asked[number, signature][key] = array
    found = {}
    for (number, signature), inputs in asked.items():
        try:
            answer = model.answer(signature, inputs)
        except (RuntimeError, KeyError) as error:
            answer = {"!": np.array(repr(error))}
        found.update({f"{number}|{key}": a for key, a in answer.items()})
    np.savez(answers, **found)
    imported = {"tensorflow", "keras", "keras_mgda"} & set(sys.modules)
    assert not imported, imported


if __name__ == "__main__":
    main(*sys.argv[1:])
