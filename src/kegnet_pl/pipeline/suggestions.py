"""Old spellings of the command line, and suggestions where it names a setting that does not exist."""

import difflib
import importlib.resources
import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kegnet_pl.runtime.errors import ConfigError

RENAMED = {
    "methods": "sources",
    "generator.adjust": "generator.output_norm",
    "generator.network.adjust": "generator.network.output_norm",
    "generator.lr_schedule": "generator.lr_scheduler",
    "generator.training": "generator.parallel",
    "student.draw_norm": "student.sampling_norm",
    "student.features": "student.feature_distillation",
    "student.fresh": "student.resample_each_epoch",
    "student.jitter": "student.noise_std",
    "student.lr_schedule": "student.lr_scheduler",
}
"""Old name of a setting, or of a group of settings -> its name."""

RENAMED_VALUES = {"generator.training": {"together": "vmap", "one_by_one": "sequential"}}
"""Old name of a setting -> old value -> its name."""

SCHEDULES = {
    "batch_norm": "custom/batch_norm",
    "mnist_lenet": "custom/image",
    "table_mlp": "custom/table",
    "svhn_resnet": "strict/svhn_resnet",
    "fashion_resnet": "strict/fashion_resnet",
}
"""Old ``schedule=...`` -> the experiment that has its numbers."""

RECIPES = {"fast": "", "paper": "paper/", "strict": "strict/", "best": "best/"}
"""Old ``recipe=...`` of an experiment of the paper -> folder of its preset."""

_LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
"""Launchers of Hydra, and our extra that installs each."""

_OVERRIDE = re.compile(r"([~+]{0,2})([\w.@/-]+)(=.*)?", re.DOTALL)


def accept_old_spellings(arguments: Sequence[str]) -> list[str]:
    """Return arguments of the command line in the form that Hydra accepts.

    ``+experiment=`` and ``+debug=`` lose their sign, as both groups have a default. One mixture, ``sources={...}``,
    becomes a list of one. ``recipe=`` with an experiment of the paper becomes a part of its name:
    ``experiment=NAME recipe=paper`` is ``experiment=paper/NAME``. ``-m`` comes first: Hydra refuses it between
    overrides.

    Raises:
        ConfigError: If ``recipe=`` has no preset for the experiment.
    """
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    arguments = [re.sub(r"^\+{1,2}(experiment|debug)=", r"\1=", argument) for argument in arguments]
    arguments = [re.sub(r"^sources=(\{.*\})$", r"sources=[\1]", argument) for argument in arguments]
    recipe = next((argument for argument in arguments if argument.startswith("recipe=")), None)
    experiment = next((argument for argument in arguments if argument.startswith("experiment=")), None)
    recipes = (recipe or "=").partition("=")[2].split(",")
    if recipe is None or not set(recipes) <= set(RECIPES) or (experiment is None and recipes == ["strict"]):
        return arguments
    names = experiment.partition("=")[2].split(",") if experiment else []
    if any("/" in name for name in names):
        return arguments
    presets = [RECIPES[key] + name for key in recipes for name in names]
    if not presets or not all(map(_is_preset, presets)):
        missing = ", ".join(preset for preset in presets if not _is_preset(preset))
        raise ConfigError(
            f"Expected an experiment that has a preset for {recipe}, but got "
            f"{experiment or 'none'}{f' (there is no {missing})' if missing else ''}. A recipe is a preset: "
            f"experiment=NAME, experiment=best/NAME, experiment=paper/NAME or experiment=strict/NAME. For your own "
            f"network, omit experiment=... (preset=auto), or choose one of custom/batch_norm, image, table, signal."
        )
    replaced = f"experiment={','.join(presets)}"
    return [replaced if argument == experiment else argument for argument in arguments if argument != recipe]


def _is_preset(name: str) -> bool:
    return importlib.resources.files("kegnet_pl.conf").joinpath("experiment", f"{name}.yaml").is_file()


def rename(override: str) -> str:
    """Return an override with the present name of its setting and of its value."""
    matched = _OVERRIDE.fullmatch(override)
    if matched is None:
        return override
    sign, key, value = matched[1], matched[2], matched[3] or ""
    old = next((name for name in RENAMED if key == name or key.startswith(f"{name}.")), None)
    if old is None:
        return override
    values = RENAMED_VALUES.get(old, {})
    words = [values.get(word, word) for word in value.removeprefix("=").split(",")] if values else None
    return f"{sign}{RENAMED[old]}{key.removeprefix(old)}" + (f"={','.join(words)}" if words else value)


def refuse_old_names(arguments: Sequence[str]) -> None:
    """Check that the command line has no name of an earlier version.

    Raises:
        ConfigError: A line for each old name says what to write.
    """
    lines = []
    for argument in arguments:
        new = rename(argument)
        if new != argument:
            lines.append(f"Expected `{new.partition('=')[0]}`, but got its old name. Use {new}.")
        elif argument.lstrip("+").startswith("schedule="):
            name = argument.partition("=")[2]
            use = SCHEDULES.get(name, "custom/batch_norm, custom/image or custom/table")
            lines.append(f"Expected `experiment`, but got {argument}, its old form. Use experiment={use}.")
    if lines:
        raise ConfigError("\n".join(lines))


def suggest(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a hint for every override of a setting or an option that does not exist."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    for argument in arguments:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            yield (
                f"Expected settings as KEY=VALUE, but got the file {argument}. Put it into a folder, such as "
                f"myconf/experiment/NAME.yaml, and run: python -m kegnet_pl --config-dir myconf experiment=NAME"
            )
    overrides = [text for text in arguments if re.match(r"[\w.@/]+=", text) and not text.startswith("hydra.")]
    unreadable = [override for override in overrides if _parse(override) is None]
    for override in unreadable:
        key, _, value = override.partition("=")
        if value.startswith("(") and _parse(f"{key}=[{value[1:-1]}]") is not None:
            yield f"Hydra writes a list in square brackets. Use {shlex.quote(f'{key}=[{value[1:-1]}]')}."
            continue
        yield (
            f"Hydra cannot read the value of {key} as it is. Quote it twice, for the shell and for Hydra: "
            f"\"{key}='{value}'\""
        )
    overrides = [override for override in overrides if override not in unreadable]
    several = [override for override in overrides if _parse(override).is_sweep_override()]
    lists = [override for override in several if re.match(r"data\.(input_shape|mean|std)=", override)]
    for override in lists:
        key, _, value = override.partition("=")
        yield f"Hydra writes a list in square brackets. Use {shlex.quote(f'{key}=[{value}]')}."
    several, overrides = ([one for one in found if one not in lists] for found in (several, overrides))
    if several and not {"-m", "--multirun"} & set(arguments):
        yield f"{several[0]} has several values. Add -m to run one job for each: python -m kegnet_pl -m ..."
        overrides = [override for override in overrides if override not in several]
    experiment = [override for override in overrides if override.startswith("experiment=") and "," not in override]
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        groups = _list_options(GlobalHydra.instance().config_loader())
        for folder, group in itertools.product(_config_folders(arguments), groups):
            paths = (folder / group).rglob("*.yaml")
            groups[group] += [path.relative_to(folder / group).with_suffix("").as_posix() for path in paths]
        chosen = [
            f"{group}={option}"
            for group, _, option in (text.partition("=") for text in overrides)
            if group in groups and "," not in option and _option_hint(group, option, groups[group]) is None
        ]
        for given in (chosen, experiment, []):
            try:
                cfg = compose("config", overrides=given)
                break
            except HydraException:
                continue
    for override in overrides:
        key, _, value = override.partition("=")
        hint = _option_hint(key, value, groups[key]) if key in groups else None
        if key == "hydra/launcher" and value in _LAUNCHERS:
            hint = f"hydra/launcher={value} needs a plugin: pip install '.[{_LAUNCHERS[value]}]'"
        searches = (key, value) == ("hydra/sweeper", "optuna") or (key == "hparams_search" and value in groups[key])
        if searches and not _finds_optuna():
            hint = "hydra/sweeper=optuna needs a plugin: pip install '.[optuna]'"
        if hint is None and key not in groups and key not in ("hydra/launcher", "hydra/sweeper"):
            hint = _setting_hint(cfg, override, groups, chosen)
        if hint is not None:
            yield hint


def _parse(override: str) -> Any:
    """Return the ``Override`` of Hydra, None if its grammar does not accept the text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _finds_optuna() -> bool:
    try:
        return importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False


def _list_options(loader: Any) -> dict[str, list[str]]:
    """Return group -> its options, those in folders too."""
    groups = {group: list(loader.get_group_options(group)) for group in loader.list_groups("") if group != "hydra"}
    for group, options in groups.items():
        for folder in loader.list_groups(group):
            options += [f"{folder}/{option}" for option in loader.get_group_options(f"{group}/{folder}")]
    return groups


def _config_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the user's own folders of configuration."""
    named = [value for name, value in itertools.pairwise(arguments) if name in ("--config-dir", "-cd")]
    named += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config-dir=")]
    return [Path(folder) for folder in named]


def _option_hint(group: str, value: str, options: list[str]) -> str | None:
    """Return a hint to an option that does not exist; None if it does."""
    if re.search(r"[,(\[{$]", value) or value in options:
        return None  # several, or computed
    close = difflib.get_close_matches(value, options, n=1) or [option for option in options if option.startswith(value)]
    hint = f" Did you mean {group}={close[0]}?" if close else ""
    return f"There is no {group}={value}.{hint}\nThere are: {', '.join(sorted(set(options)))}"


def _setting_hint(
    cfg: DictConfig, override: str, groups: Mapping[str, Sequence[str]], chosen: Sequence[str]
) -> str | None:
    """Return a hint to an override whose key does not exist; None if it does.

    Args:
        cfg: The configuration.
        override: The override.
        groups: Name of a group -> its options.
        chosen: Overrides that choose an option of a group.
    """
    key = override.partition("=")[0]
    node: Any = OmegaConf.to_container(cfg)
    found, rest = [], key.split(".")
    while rest and isinstance(node, dict) and rest[0] in node:
        found.append(rest.pop(0))
        node = node[found[-1]]
    if not rest:
        return None
    parent = ".".join(found)
    if isinstance(node, dict):
        names = f"{f'`{parent}`' if parent else 'The configuration'} has: {', '.join(node)}"
    elif node is None:
        names = f"`{parent}` is null: set {parent}=..., or +{key}=... to set only a part"
    else:
        names = f"`{parent}` has no parts: set {parent}=..."
    having = [option for option in groups.get(parent, ()) if _has_setting(parent, option, rest[0])]
    if having:
        other = next((text for text in chosen if text.startswith(f"{parent}=")), None)
        belongs = f"{key!r} belongs to {' or '.join(f'{parent}={one}' for one in having)}"
        belongs += "" if other is None else f", but the command has {other}"
        commands = " or ".join(shlex.join([f"{parent}={one}", override]) for one in having)
        return f"{belongs}. Use {commands}.\n{names}"
    close = difflib.get_close_matches(rest[0], list(node) if isinstance(node, dict) else [], n=1)
    meant = [".".join([*found, *close, *rest[1:]])] if close else [] if found else _find_settings(cfg, key)
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    return f"{key!r} does not exist.{hint}\n{names}"


def _find_settings(cfg: DictConfig, name: str) -> list[str]:
    """Return the settings in groups, of at most two levels, whose path ends with a name."""
    content: Any = OmegaConf.to_container(cfg)
    return [f"{group}.{name}" for group, values in content.items() if isinstance(values, dict) and name in values]


def explain_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a hint for every argument with dashes, after the parser has refused one."""
    known = {
        "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
        "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
    }  # fmt: skip
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option.startswith("--") and option not in known:
            name = option[2:].replace("-", "_")
            hint = next(suggest([f"{name}=0"]), "")
            similar = re.findall(r"[\w.]+", hint.partition("Did you mean ")[2].partition("?")[0].replace(" or ", " "))
            exists = not hint or hint.startswith("There is no")  # the value is wrong, the name of the group is right
            meant = [name] if exists else sorted(similar, key=lambda one: not one.startswith("student."))
            example = f"{meant[0]}={value or '...'}" if meant else "student.epochs=20"
            yield (
                f"There is no option {option}. Settings have no dashes: write KEY=VALUE, such as {example}. "
                f"docs/settings.md lists all settings."
            )


def _has_setting(group: str, option: str, name: str) -> bool:
    """Return True if an option of a group that comes with the package has a setting."""
    file = importlib.resources.files("kegnet_pl.conf").joinpath(group, f"{option}.yaml")
    with importlib.resources.as_file(file) as path:
        return path.is_file() and name in set(OmegaConf.load(path))  # names of missing values, too
