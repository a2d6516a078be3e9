"""Connecting to Ray: embedded in this process, or the cluster that RAY_ADDRESS names."""

import logging
import os
import time

from pipeline.errors import UserError


def connect(cpus: int, *, gpus: int = 0, wait_seconds: float = 60) -> None:
    """Have Ray with at least this much free. Without RAY_ADDRESS an embedded Ray of so many CPUs is started.

    Raises UserError when the cluster cannot be reached, or does not have it free within wait_seconds.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES for CPU-only tasks
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a run beside anything else
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://", "ray://")):
        raise UserError(
            f"RAY_ADDRESS={address}: not an address to join; unset it to run embedded, or use host:port on a node of the "
            "cluster"
        )
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",  # a cluster that `ray start` left on this machine is not joined by accident
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=256 * 2**20,  # rows and records only: pixels never travel through it
                _temp_dir=os.environ.get("RAY_TMPDIR"),
            )
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot start or reach Ray ({address or 'embedded'}): {first}") from error
    deadline = time.monotonic() + (wait_seconds if address else min(wait_seconds, 5))
    for resource, needed in (("CPU", cpus), ("GPU", gpus)):
        while (free := ray.available_resources().get(resource, 0)) < needed:
            if time.monotonic() > deadline:
                total = ray.cluster_resources().get(resource, 0)
                raise UserError(
                    f"{needed} {resource}s are needed and Ray ({address or 'embedded'}) has {free:g} of {total:g} free: "
                    "ask for fewer (build: --cpus; train: --set training.workers=..., training.gpu=false), add a node, or wait"
                )
            time.sleep(0.5)
