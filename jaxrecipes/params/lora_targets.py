"""Which modules get an adapter: PEFT's matching on Hugging Face module names, exactly.

The rules were read in and are tested against PEFT 0.21 (`check_target_module_exists`,
`get_pattern_key`, `_set_trainable`). Where PEFT only warns or says nothing about a name that
matches nothing, `select_modules` can refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.lora_options import ALL_LINEAR, RESIDUAL_INITS, AdapterOptions

Value = TypeVar("Value")
Verdict = Literal["matched", "excluded", "unmatched"]


@dataclass(frozen=True)
class Module:
    """A module of the Hugging Face model.

    Attributes:
        name: Its dotted name, `model.layers.0.self_attn.q_proj`.
        kind: "linear" and "embedding" can have an adapter; "head" is the output embedding; "other"
            is a norm, or contains modules.
        path: Where its leaves are in the canonical tree, `layers/0/attention/query`.
        inputs: Of a linear layer, or rows of the embedding.
        outputs: Of a linear layer, or width of the embedding.
        leaves: Canonical path of every leaf in it -> number of values.
    """

    name: str
    kind: Literal["linear", "embedding", "head", "other"]
    path: str = ""
    inputs: int = 0
    outputs: int = 0
    leaves: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An adapter to be: the module, its rank and the factor on its product."""

    module: Module
    rank: int
    scale: float

    def size(self, *, use_dora: bool) -> int:
        """Number of trained values."""
        magnitude = self.module.outputs if use_dora else 0
        return self.rank * (self.module.inputs + self.module.outputs) + magnitude


@dataclass(frozen=True)
class Selection:
    """What a model's adapters consist of.

    Attributes:
        adapters: In the order of the modules.
        saved: Modules that train whole.
        unmatched: Linear layers that stay as they are.
        tokens: Trained rows of the embedding, and their width.
        use_dora: As in the options.
    """

    adapters: tuple[Adapter, ...]
    saved: tuple[Module, ...]
    unmatched: tuple[Module, ...]
    tokens: tuple[int, int]
    use_dora: bool

    @property
    def saved_leaves(self) -> dict[str, int]:
        """Canonical path -> size of the leaves that train whole; one that is shared counts once."""
        return {path: size for module in self.saved for path, size in module.leaves.items()}

    @property
    def parameters(self) -> int:
        """Number of trained values; frozen scales and ids do not count."""
        adapters = sum(adapter.size(use_dora=self.use_dora) for adapter in self.adapters)
        return adapters + sum(self.saved_leaves.values()) + self.tokens[0] * self.tokens[1]


def verdict(options: AdapterOptions, targets: str | Sequence[str], name: str) -> Verdict:
    """Says whether a module is targeted, as PEFT's `check_target_module_exists`.

    Args:
        options: Of these `exclude`, `modules_to_save`, `layers_to_transform`, `layers_pattern`.
        targets: An expression, or names; "all-linear" must have been resolved.
        name: The module's dotted name.

    Raises:
        ConfigError: An expression is not valid.
    """
    if options.exclude and _named(options.exclude, name, "exclude"):
        return "excluded"
    for saved in options.modules_to_save:
        if _expression(rf"(^|.*\.){saved}($|\..*)", saved, "modules_to_save").match(name):
            return "excluded"
    if not _named(targets, name, "targets"):
        return "unmatched"
    if isinstance(targets, str) or name in targets or not options.layers_to_transform:
        return "matched"
    layer = _layer_index(options.layers_pattern, name)
    return "matched" if layer in options.layers_to_transform else "unmatched"


def _named(wanted: str | Sequence[str], name: str, option: str) -> bool:
    if isinstance(wanted, str):
        return _expression(wanted, wanted, option).fullmatch(name) is not None
    return name in wanted or any(name.endswith(f".{one}") for one in wanted)


def _layer_index(patterns: Sequence[str], name: str) -> int | None:
    """The first number in a name (after one of the patterns), which is the layer's index."""
    found = None
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
    for pattern in patterns:
        expression = rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\."
        found = _expression(expression, pattern, "layers_pattern").match(name)
        if found:
            break
    return int(found["index"]) if found else None


def pattern_value(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    """Returns the value of the first key that is the end of a name, as PEFT's `get_pattern_key`.

    Args:
        patterns: A key is an expression that matches after a dot or at the start.
        name: A module's dotted name.
        default: Where no key matches.
    """
    for key, value in patterns.items():
        if _matches_pattern(key, name):
            return value
    # PEFT looks the name itself up then, which differs for names that are no expressions.
    return patterns.get(name, default)


def _matches_pattern(key: str, name: str) -> bool:
    expression = _expression(rf"(.*\.)?({key})$", key, "rank_pattern or alpha_pattern")
    return expression.match(name) is not None


def _expression(pattern: str, written: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"adapters: {option} has {written!r}, which is not a regular expression: {error}"
        ) from None


def select_modules(
    options: AdapterOptions, modules: Sequence[Module], *, strict: bool = True
) -> Selection:
    """Finds what gets an adapter and what trains whole.

    Args:
        options: What is wanted.
        modules: All modules of the model, containers included.
        strict: Refuse each name, expression or pattern that matches nothing; a file that PEFT wrote
            may have such.

    Returns:
        The selection.

    Raises:
        ConfigError: Nothing is selected, a name matches nothing, or a module is matched that cannot
            have what was asked for.
    """
    targets = resolve_targets(options, modules)
    verdicts = {module.name: verdict(options, targets, module.name) for module in modules}
    if options.embeddings:
        table = next(module for module in modules if module.kind == "embedding")
        if verdicts[table.name] == "excluded":
            raise ConfigError(
                f"adapters: embeddings is set, but {table.name} is excluded or in modules_to_save"
            )
        verdicts[table.name] = "matched"
    adapters = []
    for module in modules:
        if verdicts[module.name] != "matched":
            continue
        if module.kind == "head":
            raise ConfigError(
                f"adapters: targets match the output head {module.name}, which cannot have an "
                "adapter here; train it whole with modules_to_save, or exclude it"
            )
        if module.kind == "other":
            raise ConfigError(
                f"adapters: targets match {module.name}, which is no linear layer and no embedding;"
                f" linear layers are called: {_examples(modules)}"
            )
        rank = pattern_value(options.rank_pattern, module.name, options.rank)
        alpha = pattern_value(options.alpha_pattern, module.name, options.alpha)
        _refuse_rank(options, module, rank)
        adapters.append(Adapter(module, rank, options.scale(rank, alpha)))
    saved = _saved_modules(options, modules, [adapter.module.name for adapter in adapters])
    embedding = next((module for module in modules if module.kind == "embedding"), None)
    tokens = (0, 0)
    if options.trainable_tokens:
        tokens = _tokens(options, embedding, adapters, saved)
    if strict:
        _refuse_idle(options, targets, modules, adapters)
    if not adapters:
        raise ConfigError(
            f"adapters: targets {_written(options.targets)} match no module"
            + (", or all that match are excluded or in modules_to_save" if options.exclude else "")
            + f"; linear layers are called: {_examples(modules)}"
        )
    unmatched = [
        module
        for module in modules
        if module.kind == "linear" and verdicts[module.name] != "matched"
    ]
    return Selection(tuple(adapters), saved, tuple(unmatched), tokens, options.use_dora)


def _refuse_rank(options: AdapterOptions, module: Module, rank: int) -> None:
    if module.kind != "linear":
        return  # an embedding starts the same way whatever `init` says
    if options.init == "orthogonal" and rank % 2:
        raise ConfigError(f"adapters: init orthogonal needs an even rank; {module.name} has {rank}")
    if options.init in RESIDUAL_INITS and rank > min(module.inputs, module.outputs):
        raise ConfigError(
            f"adapters: init {options.init} takes {rank} directions out of {module.name}, which is "
            f"{module.inputs} x {module.outputs}; use a rank of at most "
            f"{min(module.inputs, module.outputs)}"
        )


def resolve_targets(options: AdapterOptions, modules: Sequence[Module]) -> str | tuple[str, ...]:
    """Returns `targets`, with "all-linear" as the names of all linear layers but the head."""
    if not options.takes_all_linear:
        return options.targets
    return tuple(module.name for module in modules if module.kind == "linear")


def written_options(
    options: AdapterOptions, selection: Selection, modules: Sequence[Module]
) -> AdapterOptions:
    """Returns options with which PEFT selects the same modules: what a file should say.

    Args:
        options: The adapters' options; returned as they are where PEFT knows all they say.
        selection: What they select.
        modules: All modules of the model.

    Returns:
        Options with an expression or names as `targets`: the last parts where these are enough,
        else whole names.
    """
    wanted = {adapter.module.name for adapter in selection.adapters}
    if not options.takes_all_linear and not options.embeddings:
        return options
    plain = replace(options, embeddings=False, layers_to_transform=(), layers_pattern=())
    short = tuple(sorted({name.rpartition(".")[2] for name in wanted}))
    found = {module.name for module in modules if verdict(plain, short, module.name) == "matched"}
    return replace(plain, targets=short if found == wanted else tuple(sorted(wanted)))


def _saved_modules(
    options: AdapterOptions, modules: Sequence[Module], adapted: Sequence[str]
) -> tuple[Module, ...]:
    saved = [
        module
        for module in modules
        if any(module.name.endswith(wanted) for wanted in options.modules_to_save)
    ]
    kinds = [module.kind for module in saved]
    for module in saved:
        if module.kind == "head" and module.path == "embedding" and "embedding" not in kinds:
            raise ConfigError(
                f"adapters: modules_to_save match {module.name}, which is tied to the input "
                "embedding: the two are one matrix here and cannot train apart. Name embed_tokens, "
                "which trains both"
            )
        inside = f"{module.name}."
        for name in adapted:
            if name == module.name or name.startswith(inside):
                raise ConfigError(
                    f"adapters: modules_to_save match {module.name}, but {name} has an adapter; "
                    "PEFT matches the end of a name, so write more of it"
                )
        for other in saved:
            if other.name.startswith(inside):
                raise ConfigError(
                    f"adapters: modules_to_save match {other.name} and {module.name}, which "
                    "contains it; name one of them"
                )
    return tuple(saved)


def _tokens(
    options: AdapterOptions,
    embedding: Module | None,
    adapters: Sequence[Adapter],
    saved: Sequence[Module],
) -> tuple[int, int]:
    if embedding is None:
        raise ConfigError("adapters: trainable_tokens need a model with an input embedding")
    if any(token >= embedding.inputs for token in options.trainable_tokens):
        raise ConfigError(
            f"adapters: trainable_tokens has {max(options.trainable_tokens)}; the vocabulary has "
            f"{embedding.inputs} tokens, the first is 0"
        )
    trained = [one.module.name for one in adapters] + [module.name for module in saved]
    if embedding.name in trained:
        raise ConfigError(
            f"adapters: {embedding.name} has trainable_tokens and is trained otherwise, too (an "
            "adapter, or modules_to_save); choose one"
        )
    return len(options.trainable_tokens), embedding.outputs


def _refuse_idle(
    options: AdapterOptions,
    targets: str | Sequence[str],
    modules: Sequence[Module],
    adapters: Sequence[Adapter],
) -> None:
    """Refuses every name that has no effect: it is a typing mistake."""
    names = [module.name for module in modules]
    if not isinstance(targets, str) and not options.takes_all_linear:
        for target in targets:
            if not any(_named((target,), name, "targets") for name in names):
                raise ConfigError(
                    f"adapters: target {target!r} matches no module; linear layers are called: "
                    f"{_examples(modules)}"
                )
    excluded = (options.exclude,) if isinstance(options.exclude, str) else options.exclude
    for one in filter(None, excluded):
        wanted = one if isinstance(options.exclude, str) else (one,)
        if not any(_named(wanted, name, "exclude") for name in names):
            raise ConfigError(f"adapters: exclude {one!r} matches no module")
    for wanted in options.modules_to_save:
        if not any(name.endswith(wanted) for name in names):
            raise ConfigError(f"adapters: modules_to_save {wanted!r} matches no module")
    for option in ("rank_pattern", "alpha_pattern"):
        for key in getattr(options, option):
            if not any(_matches_pattern(key, adapter.module.name) for adapter in adapters):
                raise ConfigError(f"adapters: {option} {key!r} matches no module with an adapter")


def _written(targets: str | Sequence[str]) -> str:
    return repr(targets) if isinstance(targets, str) else ", ".join(targets) or "(none)"


def _examples(modules: Sequence[Module]) -> str:
    ends = {module.name.rpartition(".")[2]: None for module in modules if module.kind == "linear"}
    return ", ".join(ends) or ALL_LINEAR
