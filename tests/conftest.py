from __future__ import annotations

from hypothesis import settings

# A busy machine is no fault: no test fails for the time that one of its examples takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
