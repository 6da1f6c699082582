"""What MkDocs does for us beside its plugins: the version at the foot of every page."""

from __future__ import annotations

from typing import Any

import rush_async


def on_config(config: Any, **_: Any) -> Any:
    """Called by MkDocs once."""
    config.copyright = f"rush_async {rush_async.__version__}"
    return config
