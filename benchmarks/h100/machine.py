"""The description of an H100 for XLA, and the assumptions about its speed."""

from __future__ import annotations

import dataclasses

#: `GpuTargetConfigProto` of XLA, as text: an H100 SXM with 80 GB.
DESCRIPTION = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Rates:
    """The assumed best rates of a kernel, from which seconds are counted.

    Attributes:
        memory: bytes per second, read and written.
        bfloat16: operations per second of products of 16-bit floats.
        tensor_float32: the same of float32 products that may round their factors to TF32.
        float32: the same of float32 products at the highest precision.
        links: bytes per second between the GPUs of a host, in each direction.
        launch: seconds that every kernel costs in addition to its work.
    """

    memory: float = 2.7e12
    bfloat16: float = 550e12
    tensor_float32: float = 300e12
    float32: float = 45e12
    links: float = 360e9
    launch: float = 2.5e-6


RATES = Rates()
