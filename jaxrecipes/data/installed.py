"""Documents that a machine already has: docstrings of packages and Python's own topics."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from jaxrecipes.data.documents import Document, ReadReport, make_document
from jaxrecipes.errors import DataError

DEFAULT_MODULES = ("numpy", "scipy", "jax")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SET_LITERAL = re.compile(r"\{('[^'{}]*'(?:, '[^'{}]*')+)\}")
_VARYING_LINE = re.compile(r"^.*# may vary *\n?", re.MULTILINE)
# No part of the public, stable interface: tests and scripts, build tools, internals under an old
# public name, and packages whose content depends on the accelerator libraries at hand.
_SKIPPED_PARTS = frozenset(
    {"tests", "testing", "conftest", "setup", "__main__", "distutils", "f2py", "core"}
    | {"experimental", "interpreters", "example_libraries", "collect_profile"}
)


def read_docstrings(
    modules: Sequence[str], *, minimum_characters: int, report: ReadReport
) -> Iterator[Document]:
    """Reads the docstrings of the public functions and classes of installed packages.

    A name is public when neither it nor a package on its path starts with an underscore. Modules
    are visited in sorted order, names too, and of equal docstrings only the first is kept, so that
    the order depends on nothing but the installed versions. Submodules that cannot be imported are
    counted as dropped. A document reads ``<qualified name>``, empty line, docstring; its split
    group is the last part of the name, because ``numpy.sum`` and ``jax.numpy.sum`` share much of
    their text.

    Args:
        modules: Importable package names. **The packages are imported.**
        minimum_characters: Shorter docstrings are dropped.
        report: Counts documents and drops.

    Raises:
        DataError: A named package is not installed.
    """
    seen: set[str] = set()
    # All are imported before the first docstring is read: importing SciPy changes one of NumPy's.
    loaded = [(name, list(_public_modules(name, report))) for name in modules]
    for name, public in loaded:
        for module in public:
            exported = getattr(module, "__all__", None)
            names = sorted(set(exported) if exported is not None else set(vars(module)))
            for attribute in names:
                if not isinstance(attribute, str) or attribute.startswith("_"):
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        value = getattr(module, attribute, None)
                    except Exception:  # deprecated names raise what they like
                        continue
                if not _is_documented_object(value):
                    continue
                owner = getattr(value, "__module__", None)
                if isinstance(owner, str) and owner.split(".")[0].lstrip("_") != name.split(".")[0]:
                    continue
                text = inspect.getdoc(value)
                if not text:
                    continue
                text = _without_varying_parts(text)
                identifier = f"{module.__name__}.{attribute}"
                if len(text) < minimum_characters:
                    report.drop(f"shorter than {minimum_characters} characters", identifier)
                    continue
                if text in seen:
                    report.drop("exact duplicate", identifier)
                    continue
                seen.add(text)
                document = make_document(
                    f"{identifier}\n\n{text}",
                    id=identifier,
                    where=f"docstring of {identifier}",
                    report=report,
                    group=attribute,
                )
                if document is not None:
                    yield document


def read_topics(*, report: ReadReport) -> Iterator[Document]:
    """Reads Python's language reference as ``help()`` brings it (``pydoc_data.topics``)."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        document = make_document(
            topics[name], id=name, where=f"pydoc_data.topics[{name!r}]", report=report
        )
        if document is not None:
            yield document


def _public_modules(name: str, report: ReadReport) -> Iterator[ModuleType]:
    try:
        package = _import(name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"docstrings: the package {name!r} cannot be imported ({error}); expected the name of "
            f"an installed package. Install it (pip install {name.split('.')[0]}) or leave it out."
        ) from None
    yield package
    for child in _children(package):
        try:
            module = _import(child)
        except (Exception, SystemExit):  # optional dependencies, platform checks, scripts
            report.drop("module cannot be imported", child)
            continue
        yield from _walk(module, report)


def _walk(module: ModuleType, report: ReadReport) -> Iterator[ModuleType]:
    yield module
    for child in _children(module):
        try:
            loaded = _import(child)
        except (Exception, SystemExit):
            report.drop("module cannot be imported", child)
            continue
        yield from _walk(loaded, report)


def _children(module: ModuleType) -> list[str]:
    path = getattr(module, "__path__", None)
    if path is None:
        return []
    names = sorted(info.name for info in pkgutil.iter_modules(path))
    return [
        f"{module.__name__}.{name}"
        for name in names
        if not name.startswith("_") and name not in _SKIPPED_PARTS
    ]


def _import(name: str) -> ModuleType:
    # Some modules print or warn when imported; a corpus reader has to stay silent.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _without_varying_parts(text: str) -> str:
    # What differs from process to process (measured with two hash seeds over NumPy, SciPy, JAX):
    # memory addresses in defaults, the order of printed sets, and samples drawn when SciPy builds a
    # docstring.
    text = _VARYING_LINE.sub("", _ADDRESS.sub("", text))
    return _SET_LITERAL.sub(lambda m: "{" + ", ".join(sorted(m[1].split(", "))) + "}", text)


def _is_documented_object(value: object) -> bool:
    if isinstance(value, ModuleType) or value is None:
        return False
    # NumPy's ufuncs and jitted functions are neither functions nor classes, but have a name of
    # their own.
    return inspect.isclass(value) or (callable(value) and hasattr(value, "__name__"))
