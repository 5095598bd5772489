"""Compiles for GPUs that are only described, not present.

Import this and call `set_up` before JAX is imported, since XLA reads its flags once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from benchmarks.h100.machine import DESCRIPTION
from drkd_jax.errors import UserError

# Without a GPU nothing can be tried out, and Triton's products are chosen by trying.
FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
INSTALL = (
    "pip install 'jax[cuda13]==VERSION' (about 3 GB; no GPU and no driver is needed, and an "
    "environment of its own keeps this one small)"
)


def set_up() -> None:
    """Sets XLA's flags and the path of its CUDA compiler.

    Raises:
        UserError: JAX's CUDA plugin or NVIDIA's compiler is not installed; the message says what
            to install.
    """
    missing = [name for name in ("jax_cuda13_plugin", "nvidia") if not _there(name)]
    folder = None if missing else _compiler()
    if folder is None:
        what = "JAX's CUDA plugin" if missing else "NVIDIA's compiler (ptxas, libdevice)"
        version = importlib.metadata.version("jax")
        raise UserError(
            f"{what} is not installed, which compiles for a GPU also where there is none: "
            f"{INSTALL.replace('VERSION', version)}"
        )
    flags = (*FLAGS, f"--xla_gpu_cuda_data_dir={folder}", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the check would need the driver
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # our own output says that compiling is slow
    # The functions that a kernel comes from, up to the outermost, determine its part.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "60"


def described_mesh(devices: int) -> Any:
    """A mesh of described GPUs on one host, with the product's single axis."""
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        topology_name="",
        platform="cuda",
        target_config=DESCRIPTION,
        topology=f"1x1x{devices}",
    )
    axes = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), axis_types=axes, devices=topology.devices)


def buffers(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled program's buffers on one GPU, as XLA planned them."""
    found = compiled.memory_analysis()
    return {
        "arguments": int(found.argument_size_in_bytes),
        "outputs": int(found.output_size_in_bytes),
        "shared": int(found.alias_size_in_bytes),
        "temporary": int(found.temp_size_in_bytes),
    }


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _compiler() -> Path | None:
    """The folder of the CUDA compiler among the wheels."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "cu13"
        if (folder / "bin" / "ptxas").is_file() and (folder / "nvvm" / "libdevice").is_dir():
            return folder
    return None
