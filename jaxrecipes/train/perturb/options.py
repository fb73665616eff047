"""The methods by name, with their options as one flat table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from jaxrecipes.errors import ConfigError
from jaxrecipes.train.perturb.adversarial import FGM, PGD, FreeLB, KimKang
from jaxrecipes.train.perturb.noise import NEFTune
from jaxrecipes.train.perturb.protocol import Perturber
from jaxrecipes.train.perturb.virtual import ALUM, SMART, VAT, Ascent

# Name -> the class, the field of it that holds a part, and the part's class.
_METHODS: Mapping[str, tuple[Callable[..., Perturber], str, Callable[..., Any] | None]] = {
    "fgm": (FGM, "", None),
    "pgd": (PGD, "", None),
    "freelb": (FreeLB, "", None),
    "neftune": (NEFTune, "", None),
    "vat": (VAT, "", None),
    "smart": (SMART, "ascent", Ascent),
    "alum": (ALUM, "ascent", Ascent),
    "kim_kang": (KimKang, "attack", PGD),
}


def method_options(method: str) -> tuple[str, ...]:
    """Lists the options of a method, those of its part (the ascent, the attack) included.

    Raises:
        ConfigError: There is no such method.
    """
    kind, part, part_kind = _method(method)
    own = tuple(field.name for field in fields(kind) if field.name != part)  # pyright: ignore[reportArgumentType]
    inner = () if part_kind is None else tuple(field.name for field in fields(part_kind))  # pyright: ignore[reportArgumentType]
    return own + inner


def build_method(method: str, options: Mapping[str, Any]) -> Perturber:
    """Makes a method.

    Args:
        method: Its name.
        options: Some of `method_options`; the others are as the method has them.

    Returns:
        The method.

    Raises:
        ConfigError: An unknown method, an option that it does not have, or a value out of range.
    """
    kind, part, part_kind = _method(method)
    known = method_options(method)
    for name in options:
        if name not in known:
            raise ConfigError(f"{method} has no option {name}; it has {', '.join(known)}")
    if part_kind is None:
        return kind(**options)
    inner = {field.name for field in fields(part_kind)}  # pyright: ignore[reportArgumentType]
    own = {name: value for name, value in options.items() if name not in inner}
    part_options = {name: value for name, value in options.items() if name in inner}
    return kind(**own, **{part: part_kind(**part_options)})


def _method(name: str) -> tuple[Callable[..., Perturber], str, Callable[..., Any] | None]:
    if name not in _METHODS:
        raise ConfigError(f"no method {name!r}; there are {', '.join(_METHODS)}")
    return _METHODS[name]
