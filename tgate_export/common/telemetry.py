"""The engines tell their makers nothing, unless the user asks for it.

OpenVINO's Python package reports its use when it is imported, ONNX Runtime when it makes a session;
both keep an id in the home folder. Each decides when it is imported.
"""

from __future__ import annotations

import os
import sys

ASKED_FOR = "TGATE_EXPORT_TELEMETRY"


def turn_off() -> None:
    """Turn off what the engines report, for this process and those that it starts.

    `TGATE_EXPORT_TELEMETRY=1` leaves all of it to the engines and their own settings.
    """
    if os.environ.get(ASKED_FOR, "0") not in ("", "0"):
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO has no setting for it; without this package it has nothing to report with. Once it
    # was imported, it has reported that already.
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
