"""The service on several machines: Ray Serve runs the same application.

    pip install 'ark-asr-onnx[ray,server]' 'ray[serve]'
    ARK_ASR_MODEL=DIR serve run examples.ray_serve:app          # on a cluster's head
    curl -sS http://127.0.0.1:8000/v1/audio/transcriptions -F file=@audio.flac

Every replica opens the model once, uses ``THREADS`` cores and has the limits of ``ark-asr serve``,
and the keys of ``ARK_ASR_API_KEYS``, if there are any. The model must have the same path on every
machine, and these variables must be set there. Ray starts more replicas when requests wait.
"""

from __future__ import annotations

import functools
import os

from ray import serve

import ark_asr_onnx
from ark_asr_onnx.server.app import create_app
from ark_asr_onnx.server.limits import Access
from ark_asr_onnx.server.service import ServiceSettings

THREADS = int(os.environ.get("ARK_ASR_THREADS", "2"))


def build() -> object:
    """The application of one replica; accepts any host name, since Ray's proxy is before it."""
    keys = frozenset(filter(None, os.environ.get("ARK_ASR_API_KEYS", "").split(",")))
    load = functools.partial(ark_asr_onnx.load, os.environ["ARK_ASR_MODEL"], threads=THREADS)
    return create_app(load, ServiceSettings(access=Access(keys, is_loopback=False)))


@serve.deployment(
    ray_actor_options={"num_cpus": THREADS},
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
    max_ongoing_requests=48,
)
@serve.ingress(build)
class Service:
    """A replica."""


app = Service.bind()
