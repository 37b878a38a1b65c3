"""Request how products are computed: ``mode``, with their events or densely."""

from __future__ import annotations

from tracetorch.core.requests import Request, Requests

MODES = ("auto", "always", "never")

_requests = Requests("mode of events", MODES)


class mode(Request):  # noqa: N801 (used as a function, like torch.no_grad)
    """Request how ``tt.unroll`` by layer computes linear layers and convolutions.

    A plain call sets the default of all threads. A ``with`` block takes precedence over it, in its
    own thread alone, as ``torch.no_grad`` does.

    A product with events adds up the rows of the transposed weight that belong to inputs other
    than 0. It agrees with the dense product up to rounding, with one exception: 0 times infinity or
    NaN, in a weight or in a gradient, is NaN in the dense product and is skipped here.

    Args:
        name: ``"auto"``, with events where the input is sparse enough for them to be faster, and
            densely elsewhere; ``"always"``, with events wherever they can be; ``"never"``, densely.

    Raises:
        ValueError: there is no such mode.

    Example:
        >>> with mode("never"):
        ...     requested_mode()
        'never'
        >>> requested_mode()
        'auto'
    """

    requests = _requests


def requested_mode() -> str:
    """Return the mode that is requested in this thread.

    Example:
        >>> requested_mode()
        'auto'
    """
    names = _requests.in_thread.names
    return names[-1] if names else _requests.default
