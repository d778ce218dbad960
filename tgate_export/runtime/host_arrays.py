"""Arrays that a call brings: of numpy, of torch on any device, or anything that numpy reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from tgate_export.common.errors import InvalidRequestError, first_line


def host_array(value: Any, name: str) -> np.ndarray:
    """Return a numeric array on the host.

    Args:
        value: an array; a tensor of torch may need gradients, be on another device, and be of a
            type that numpy does not know, such as bfloat16, which becomes float32.
        name: what an error calls it.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        if hasattr(value, "detach") and hasattr(value, "is_floating_point"):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        array = np.asarray(value)
    except Exception as error:  # whatever another library's arrays raise
        raise InvalidRequestError(
            f"{name} is a {type(value).__name__} that is no array: {first_line(error)}"
        ) from None
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise InvalidRequestError(f"{name} is {array.dtype}, not numbers")
    return array
