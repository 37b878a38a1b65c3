"""Save models to, and load them from, folders and repositories of the Hugging Face Hub.

``huggingface_hub`` does it, but for the file: ``tt.save`` writes that, and ``tt.load`` compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracetorch.core.checks import require

if TYPE_CHECKING:
    from tracetorch.hub.mixin import HubMixin

__all__ = ["HubMixin"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        require("huggingface_hub", extra="hub", by=f"tt.hub.{name}")
        from tracetorch.hub import mixin

        return getattr(mixin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
