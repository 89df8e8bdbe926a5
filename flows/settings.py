"""The settings of a run from a shell: read from files and options, and shown with what they mean."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.curation.settings import CurationConfig


def config_of(file: Path | None, settings: list[str]) -> CurationConfig:
    """The config of a file with single settings on top. The file holds settings, or is a run.json, which has them under
    ``config``.

    ValueError: it holds neither, or a setting is not STEP.FIELD=VALUE, not known, or not allowed.
    """
    chosen = _settings_in(file) if file else {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        *parents, field = path.split(".")
        if not equals or not parents:
            raise ValueError(f"--set {setting}: write it as STEP.FIELD=VALUE")
        group = chosen
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise ValueError(f"--set {setting}: {parent} is a value and has no fields")
        try:
            group[field] = json.loads(value)
        except json.JSONDecodeError:
            group[field] = value
    return CurationConfig.model_validate(chosen)


def _settings_in(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as problem:
        raise ValueError(f"{file} is no JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no settings, but a {type(found).__name__}")
    # "counts" tells a run.json, as no group of settings is called so.
    return dict(found["config"]) if "config" in found and "counts" in found else found


def described(config: BaseModel, above: str = "") -> str:
    """Every setting on a line as ``--set`` takes it, with its value, and its description below."""
    lines = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            lines.append(described(value, f"{above}{name}."))
        else:
            shown = json.dumps(config.model_dump(mode="json", include={name})[name])
            lines.append(f"{above}{name}={shown}" + (f"\n    {field.description}" if field.description else ""))
    return "\n".join(line for line in lines if line)
