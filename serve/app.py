"""`build`: the application for Ray Serve.

serve run serve.app:build model=tiny
serve deploy configs/serve.yaml
"""

# Serve reads the annotation of `build` to check the arguments: no lazy annotations here.
from typing import Any

from ray import serve

from serve.gateway import EngineReplica, Gateway, engines_wanted
from serve.settings import ServeConfig

MAX_CALLS = 10_000
"""Callers, watchers and engines that the gateway answers at once; what may wait is limited by its queue."""
GATEWAY_CPUS = 0.5
LOGGING = {"enable_access_log": False}
"""Engines call four times a second; what clients ask for has an audit log of its own."""


def build(args: ServeConfig) -> serve.Application:
    """The gateway with its engines; `args` are the options of `configs/serve.yaml`."""
    scaling, resources = args.scaling, args.resources
    engine: dict[str, Any] = {
        "name": "Engine",
        "max_ongoing_requests": 100,
        "ray_actor_options": {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        "graceful_shutdown_timeout_s": scaling.drain_seconds + 10,
        "health_check_period_s": 5,
        "logging_config": LOGGING,
    }
    if scaling.min_engines == scaling.max_engines:
        engine["num_replicas"] = scaling.min_engines
    else:
        engine["autoscaling_config"] = {
            "min_replicas": scaling.min_engines,
            "initial_replicas": max(1, scaling.min_engines),
            "max_replicas": scaling.max_engines,
            "upscale_delay_s": scaling.upscale_delay_seconds,
            "downscale_delay_s": scaling.downscale_delay_seconds,
            "look_back_period_s": 5,
            "metrics_interval_s": 1,
            "policy": {
                "policy_function": engines_wanted,
                "policy_kwargs": {"frames_per_engine": scaling.frames_per_engine},
            },
        }
    engines = serve.deployment(**engine)(EngineReplica).bind(args)
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        graceful_shutdown_timeout_s=20,
        health_check_period_s=2,
        health_check_timeout_s=20,
        logging_config=LOGGING,
    )(serve.ingress()(Gateway))
    return gateway.bind(args, engines)
