"""``HubMixin``: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import nn

from tracetorch.checkpoint import load, save
from tracetorch.checkpoint.read import read
from tracetorch.core.walk import hidden_modules, join_path

M = TypeVar("M", bound="HubMixin")

_CARD = """
---
{{ card_data }}
---

A spiking neural network, saved by `tracetorch.hub.HubMixin` of [traceTorch]({{ repo_url }}).
`Net.from_pretrained(...)` of its class `Net` loads it; the class itself is not in this repository.
How: [documentation]({{ docs_url }}).
"""


class HubMixin(
    ModelHubMixin,
    library_name="tracetorch",
    tags=["spiking-neural-network"],
    model_card_template=_CARD,
    repo_url="https://github.com/Yegor-men/tracetorch",
    docs_url="https://yegor-men.github.io/tracetorch/",
):
    """Adds ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` to a model's class.

    Give it as a second base. A folder or a repository then holds ``model.safetensors``, which
    :func:`tt.save` writes, ``config.json`` with the arguments of the constructor, as far as they
    are JSON, and a card, ``README.md``. States are not saved: a loaded model is at rest, and in
    evaluation mode. ``from_pretrained`` builds the model from ``config.json``, and :func:`tt.load`
    refuses a file whose layers are not those of the class. No code comes from the Hub. The model
    has the dtype of the file, and is on ``map_location``, the CPU if left out; PyTorch's random
    numbers are not used.

    ``Net.from_pretrained("organisation/name", revision=...)``; arguments of the constructor that
    are no JSON, or others than those saved, are given beside it. All further arguments are those of
    ``huggingface_hub.ModelHubMixin``.

    Example:
        >>> import tempfile
        >>> import tracetorch as tt
        >>> class Net(tt.snn.TTModule, HubMixin):
        ...     def __init__(self, width: int = 8, reset: str = "subtract") -> None:
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(4, width), LIF(width, reset=reset))
        ...
        ...     def forward(self, x):
        ...         return self.net(x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Net(16, reset="zero").save_pretrained(folder)
        ...     Net.from_pretrained(folder).net[1]
        LIF(16, reset='zero')
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        save(cast(nn.Module, self), save_directory / SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls: type[M],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str | torch.device = "cpu",
        **model_kwargs: Any,
    ) -> M:
        path = Path(model_id, SAFETENSORS_SINGLE_FILE)
        if not Path(model_id).is_dir():
            where: Any = {"revision": revision, "cache_dir": cache_dir, "token": token}
            how: Any = {"force_download": force_download, "local_files_only": local_files_only}
            path = Path(hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **where, **how))
        with torch.random.fork_rng(devices=[]):
            model = cls(**model_kwargs)
        module = cast(nn.Module, model)
        values = read(path).tensors
        # the dtype of the file, also of each module that it holds in a plain list
        for name, part in [("", module), *hidden_modules(module)]:
            found = [values.get(join_path(name, key)) for key in part.state_dict()]
            dtypes = {t.dtype for t in found if t is not None and t.is_floating_point()}
            if len(dtypes) == 1:
                part.to(dtype=dtypes.pop())
        load(path, module)
        module.to(map_location).eval()
        return model
