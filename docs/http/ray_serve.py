"""`tgate-export serve` on Ray Serve: replicas behind one address.

pip install '.[cpu,serve,ray]'
TGATE_BUNDLES=engines/shapes RAY_USAGE_STATS_ENABLED=0 serve run docs.http.ray_serve:app
"""

from __future__ import annotations

import os
from pathlib import Path

from ray import serve
from starlette.applications import Starlette

from tgate_export.serve import ModelPool, ServeOptions, create_app


def application() -> Starlette:
    """Make a replica's own application: a pool and its engines stay in one process."""
    bundles = [Path(text) for text in os.environ["TGATE_BUNDLES"].split(":")]
    return create_app(ModelPool({path.name: path for path in bundles}), ServeOptions())


# Requests of one replica share engine calls: let as many in as may be pending there.
@serve.deployment(
    num_replicas=2, max_ongoing_requests=128, ray_actor_options={"num_cpus": 1, "num_gpus": 0}
)
@serve.ingress(application)
class TGate:
    """Routes and answers are those of the application."""


app = TGate.bind()
