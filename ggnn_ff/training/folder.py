"""The folder of a training: which configuration and data it was made with, so that only the same goes on in it."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ggnn_ff.errors import InputError
from ggnn_ff.export import load_potential
from ggnn_ff.files import holding, write_together
from ggnn_ff.training.config import DataConfig, TrainingConfig
from ggnn_ff.training.data_files import hash_files

CONFIG, DATA = "config.yaml", "data.json"
_MAY_CHANGE = ("output", "run.accelerator", "run.devices", "run.strategy", "run.threads")  # where it runs


def check_folder(config: TrainingConfig) -> dict[Path, bytes]:
    """Makes sure that a run in `config.output`, if there is one, is a run of `config` on the same data.

    Where a run computes may change from one start to the next. A run without a record of its data, by an older version,
    may go on.

    Returns:
        The files that say so, as `claim_folder` writes them.

    Raises:
        InputError: naming each key, or each file, that differs; or a damaged file in the folder.
    """
    folder = config.output
    settings, hashes = config.model_dump(mode="json"), hash_files(config.data)
    if config.model.start_from is not None:
        hashes["model.start_from"] = load_potential(config.model.start_from).contract.identity
    if (folder / CONFIG).exists():
        known = hashes if (folder / DATA).exists() else {}  # by what is in them: their folder may have moved
        _check_same_settings(_read(folder / CONFIG), settings, folder, known)
    if (folder / DATA).exists():
        _check_same_data(_read(folder / DATA), hashes, config)
    return {
        folder / DATA: (json.dumps(hashes, indent=1) + "\n").encode(),
        folder / CONFIG: yaml.safe_dump(settings, sort_keys=False).encode(),
    }


def claim_folder(files: dict[Path, bytes]) -> None:
    """Writes what `check_folder` returned."""
    write_together({path: holding(content) for path, content in files.items()})


def _read(path: Path) -> dict[str, Any]:
    """A file of the folder; JSON is YAML as well."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path} is damaged, so that nobody knows what the run in `output` {path.parent} was made with; choose another "
        "folder, or delete it"
    )


def _check_same_settings(before: dict[str, Any], now: dict[str, Any], folder: Path, files: Collection[str]) -> None:
    defaults = TrainingConfig(output=folder, data=DataConfig(train=folder)).model_dump(mode="json")
    old, new = {**_flat(defaults), **_flat(before)}, _flat(now)  # an older version did not know every key
    names = [name for name in {**old, **new} if name not in _MAY_CHANGE and old.get(name) != new.get(name)]
    names = [name for name in names if name not in files or old.get(name) is None]
    if names:
        differences = ", ".join(f"`{name}` was {old.get(name)} and is now {new.get(name)}" for name in names)
        raise InputError(
            f"`output` {folder} holds a run with another configuration: {differences}; choose another folder, or "
            "delete it"
        )


def _check_same_data(before: dict[str, Any], now: dict[str, str], config: TrainingConfig) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        paths = _flat(config.model_dump())
        files = ", ".join(f"`{name}` {paths[name]}" for name in changed)
        raise InputError(
            f"{files} changed since the run in `output` {config.output} began (SHA-256 in {config.output / DATA}); "
            "restore what it was, choose another folder, or delete it"
        )


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
