"""The engines, and Ray, tell their makers nothing, unless the user asks for it.

OpenVINO's Python package reports its use when it is imported, ONNX Runtime when it makes a session;
both keep an id in the home folder. A Ray that is started reports while it runs. Each decides when
it is imported.
"""

from __future__ import annotations

import os
import sys

ASKED_FOR = "TGATE_EXPORT_TELEMETRY"


def turn_off() -> None:
    """Turn off what the engines and Ray report, for this process and those that it starts.

    `TGATE_EXPORT_TELEMETRY=1` leaves all of it to their own settings.
    """
    if os.environ.get(ASKED_FOR, "0") not in ("", "0"):
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # OpenVINO has no setting for it; without this package it has nothing to report with. Once it
    # was imported, it has reported that already.
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
