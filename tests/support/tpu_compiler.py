"""Does the compiler of TPUs take the training steps? It needs no TPU.

    pip install jax libtpu
    python -m tests.support.tpu_compiler [TOPOLOGY ...]

libtpu, which compiles what TensorFlow and JAX run on TPUs, does so on any
machine, and JAX hands it a program for a TPU that is not there. Prints for each
weighting, mode and policy whether the step was compiled; it is not run. Not
part of the tests: it downloads 200 MB, and uses what JAX does not publish.
"""

import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to be asked for

import jax
import keras
import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jax._src.lib.mlir import ir
from jax.experimental import topologies

from tests.support import runs

TOPOLOGIES = ("v5e:2x2",)
# TensorFlow marks what it returns by an operation that StableHLO lacks.
COPY = re.compile(r"= mhlo\.copy (%\w+) : (tensor<[^>]*>)")


def steps():
    """`(name, StableHLO)` of every case in float32, and of some in bfloat16."""
    cases = [(case, "float32") for case in runs.CASES]
    cases += [(("mgda", mode), "mixed_bfloat16") for mode in runs.MODES]
    for case, policy in cases:
        keras.config.set_dtype_policy(policy)
        step, batch = runs.traced_step(case)
        program = step.experimental_get_compiler_ir(batch)(stage="stablehlo")
        program = COPY.sub(r"= stablehlo.reshape \1 : (\2) -> \2", program)
        yield " ".join([*case, policy]), program


def compiled(program, topology):
    """What the compiler makes of it for one core; raises if it refuses."""
    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    options = xla_client.CompileOptions()
    build = options.executable_build_options
    build.num_replicas = build.num_partitions = 1
    build.device_assignment = xla_client.DeviceAssignment.create(
        np.array([[device.id]], np.int32)
    )
    with mlir.make_ir_context():
        return device.client.compile(
            ir.Module.parse(program),
            xla_client.DeviceList((device,)),
            options,
        )


def main(names):
    refused = 0
    for name, program in steps():
        for topology in names:
            try:
                compiled(program, topology)
                answer = "compiled"
            except jax.errors.JaxRuntimeError as error:
                refused += 1
                answer = str(error)
            print(f"{name}, {topology}: {answer}", flush=True)
    return refused


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or TOPOLOGIES) > 0)
