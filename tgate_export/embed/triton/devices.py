"""Which GPU an instance runs on."""

from __future__ import annotations

from tgate_export.common.hints import Argument
from tgate_export.runtime.backends.base import BackendError


def visible_device(visible: str | None, instance: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES has to be for an instance of the server.

    Args:
        visible: what it is for the server, whose devices are counted among these; None when it
            sees all there are.
        instance: the number of the instance's device, as the server counts.

    Raises:
        BackendError: the server does not see so many.
    """
    if visible is None:
        return instance
    devices = [device.strip() for device in visible.split(",")]
    # CUDA sees none behind the first that is not a device.
    listed = next((n for n, device in enumerate(devices) if device in ("", "-1")), len(devices))
    if int(instance) >= listed:
        raise BackendError(
            f"there is no GPU {instance} among CUDA_VISIBLE_DEVICES={visible}",
            "choose others with ",
            Argument("gpus"),
        )
    return devices[int(instance)]
