"""Where an export comes from: the environment of its program, and the description of its files as an RO-Crate."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "ro_crate"]

_GIT_PATIENCE = 5.0  # seconds that git may take
_RO_CRATE = "https://w3id.org/ro/crate/1.1"


def environment() -> dict[str, Any]:
    """Returns Python, platform, the versions of the installed packages, and the commit of the program's directory.

    The commit is that of the git repository with the program's main file, or with the working directory where there is none;
    None without git or a repository. `changed` tells whether tracked files there differ from it.
    """
    packages = {each.name: each.version for each in metadata.distributions() if each.name}
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda package: package[0].lower())),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    file: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(file).parent if file else Path.cwd()
    # Variables such as GIT_DIR would name another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_PATIENCE, env=variables).stdout

    try:
        commit = ask("rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def ro_crate(network: Mapping[str, Any], files: Mapping[str, tuple[str, str, int]]) -> bytes:
    """Returns `ro-crate-metadata.json`, after RO-Crate 1.1 (https://w3id.org/ro/crate/1.1): JSON-LD that names each file.

    Args:
        network: the facts of the network.
        files: path in the export -> what it holds, its media type, its size in bytes.
    """
    name, at = network["network_id"], network["exported_at"]
    about = f"The tasks of the network {name}, with its reports, worker log, shared state and environment."
    software = {"@id": "#rush_async", "@type": "SoftwareApplication", "name": "rush_async", "version": network["rush_async"]}
    made = {"@id": "#export", "@type": "CreateAction", "name": f"Export of the network {name}", "endTime": at}
    made |= {"instrument": {"@id": "#rush_async"}, "result": {"@id": "./"}}
    root = {"@id": "./", "@type": "Dataset", "name": f"rush_async network {name}", "description": about, "datePublished": at}
    root |= {"hasPart": [{"@id": path} for path in files], "mentions": {"@id": "#export"}}
    descriptor = {"@id": "ro-crate-metadata.json", "@type": "CreativeWork"}
    descriptor |= {"conformsTo": {"@id": _RO_CRATE}, "about": {"@id": "./"}}
    parts = [
        {"@id": path, "@type": "File", "description": holds, "encodingFormat": media_type, "contentSize": str(size)}
        for path, (holds, media_type, size) in files.items()
    ]
    crate = {"@context": f"{_RO_CRATE}/context", "@graph": [descriptor, root, *parts, made, software]}
    return json.dumps(crate, indent=2, ensure_ascii=False).encode()
