"""Look a name up in one of the package's tables, and say what is there when it is not found.

Where an entry needs a heavy package the table holds `Entry`, which says where it is to be found,
so that what there is can be listed at once. Records of settings (`fields_from`) are made of plain
values by name in the same way.

Other packages add to the tables in `GROUPS` by entry points. These are looked at only where a name
is not in our own table, and by `plugins_of` for lists, so that they cost nothing otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from chestct.errors import ChestCTError, UnknownNameError, kind_of, printable

Value = TypeVar("Value")

GROUPS: Final[dict[str, str]] = {
    "network": "chestct.networks",
    "encoder": "chestct.encoders",
    "recipe": "chestct.recipes",
    "reader": "chestct.readers",
    "writer": "chestct.writers",
    "explanation": "chestct.explanations",
}
"""Kind of entry to the group of entry points with which other packages add to its table."""


class Entry(NamedTuple):
    """What a table says of something that is imported when it is first used.

    Attributes:
        place: Where it is: "chestct.module:name".
        summary: What it is, in one line, for `chestct info`.
    """

    place: str
    summary: str


@dataclass(frozen=True)
class Plugin:
    """An entry point of another package.

    Attributes:
        kind: A name in `GROUPS`.
        name: What it is called in our table.
        package: The package that brings it, as pip calls it.
        version: Of that package.
        place: Where it is: "module:name".
        problem: Why it is refused; empty where it may be loaded.
    """

    kind: str
    name: str
    package: str
    version: str
    place: str
    problem: str = ""

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"from {self.package} {self.version}"

    @property
    def code_sha256(self) -> str:
        """Hash of the sources of the package that it is in, which is not imported for it."""
        top = self.place.partition(":")[0].partition(".")[0]
        spec = find_spec(top)
        folders = list((spec and spec.submodule_search_locations) or ())
        files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
        if spec is not None and not folders and spec.origin is not None:
            files = [Path(spec.origin)]
        return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    def load(self) -> Any:
        """Import it.

        Raises:
            ChestCTError: It is refused or cannot be imported; the message names the package, the
                entry point, the reason and the remedy.
        """
        if self.problem:
            raise ChestCTError(self.problem)
        module, _, attribute = self.place.partition(":")
        try:
            found: Any = import_module(module)
            for step in attribute.split("."):
                found = getattr(found, step)
        except Exception as error:
            # Whatever code of others does while it is imported.
            why = printable(str(error).partition("\n")[0]) or kind_of(error)
            msg = (
                f"{self.package} {self.version} brings the {self.kind} '{self.name}' (entry point "
                f"{self.place} of {GROUPS[self.kind]}), which cannot be imported: "
                f"{type(error).__name__}: {why.rstrip('.')}. Install what it needs or another "
                f"version of {self.package}, or uninstall it."
            )
            raise ChestCTError(msg) from error
        return found


def plugins_of(kind: str, own: Collection[str]) -> dict[str, Plugin]:
    """What other packages add to a table, by name; none of it is imported.

    Args:
        kind: A name in `GROUPS`.
        own: Names in our own table. Ours stay what they are: a package that brings one of them is
            refused, and so are two packages that bring the same name.
    """
    from importlib.metadata import entry_points

    found: dict[str, Plugin] = {}
    for point in sorted(entry_points(group=GROUPS[kind]), key=lambda each: each.name):
        package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
        plugin = Plugin(kind, point.name, package, version, point.value)
        before = found.get(point.name)
        # The same package may be found twice, where it is on the path twice.
        if before is not None and before.package == package:
            continue
        other = before.package if before is not None else None
        other = "chestct" if point.name in own else other
        found[point.name] = plugin if other is None else _refused(plugin, other)
    return found


def _refused(plugin: Plugin, other: str) -> Plugin:
    problem = (
        f"{plugin.package} {plugin.version} brings the {plugin.kind} '{plugin.name}' (entry point "
        f"{plugin.place} of {GROUPS[plugin.kind]}), and {other} has one of that name. Ask the "
        f"authors of {plugin.package} for another name, or uninstall it."
    )
    return Plugin(**{**vars(plugin), "problem": problem})


def find_plugin(table: Mapping[str, object], name: str, *, kind: str) -> Plugin | None:
    """The entry point of a name that is not in one of our tables; None where there is none.

    Where the name is in the table, or nobody adds to such tables (`GROUPS`), none is looked at.
    """
    if name in table or kind not in GROUPS:
        return None
    return plugins_of(kind, table).get(name)


def load_entry(table: Mapping[str, Entry], name: str, *, kind: str) -> Any:
    """Import what a table's entry or another package's entry point stands for.

    Raises:
        UnknownNameError: No such entry; the message offers the nearest name and lists all.
        ChestCTError: It is another package's and cannot be imported.
    """
    found: Any = look_up(table, name, kind=kind)
    if not isinstance(found, Entry):
        return found
    module, _, attribute = found.place.partition(":")
    return getattr(import_module(module), attribute)


def look_up(table: Mapping[str, Value], name: str, *, kind: str) -> Value:
    """Return `table[name]`, or what another package adds under that name, imported.

    `kind` is what the table holds, in the singular, for the message ("recipe").

    Raises:
        UnknownNameError: No such entry; the message offers the nearest name and lists all.
        ChestCTError: It is another package's and cannot be imported.
    """
    if name in table:
        return table[name]
    plugin = find_plugin(table, name, kind=kind)
    if plugin is None:
        others = plugins_of(kind, table) if kind in GROUPS else ()
        raise UnknownNameError(unknown_name_message(name, [*table, *others], kind=kind))
    loaded: Value = plugin.load()
    return loaded


def first_of(names: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """The first of many names, and how many more there are: a, b, c and 4 more."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return between.join(every[:most]) + more


def first_lines_of(lines: Iterable[str], most: int = 5) -> str:
    """As `first_of`, each on a line of its own, below what is said before."""
    every = list(lines)
    shown = [*every[:most], *([f"and {len(every) - most} more"] if len(every) > most else [])]
    return "".join(f"\n  {line}" for line in shown)


def unknown_name_message(name: str, known: Iterable[str], *, kind: str) -> str:
    """Say that `name` is unknown, what was probably meant, and what there is."""
    names = list(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"There is no {kind} '{name}'.{hint} Known: {', '.join(names)}."


def fields_from(
    kind: type[Value], values: Mapping[str, object], *, what: str, error: type[ChestCTError]
) -> Value:
    """Make a dataclass out of plain values, as JSON or YAML hold them.

    Lists are taken for tuples and whole numbers for decimals, as those make no difference, and
    nothing else for anything else. What a field may be is said by its type, with
    `Annotated[int, pydantic.Field(ge=1, le=9)]` for a number between two.

    Args:
        kind: The dataclass; what it raises itself is passed on.
        values: By the names of its fields.
        what: What a field is called in messages, such as "Network setting".
        error: Raised where a field is missing or its value is of another kind or out of range.

    Raises:
        UnknownNameError: A name is not a field; the message offers the nearest one.
    """
    from pydantic import TypeAdapter, ValidationError

    types = get_type_hints(kind, include_extras=True)
    for name in values:
        if name not in types:
            raise UnknownNameError(unknown_name_message(name, types, kind=what.lower()))
    try:
        text = json.dumps(dict(values), default=repr)
        made: Value = TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as problem:
        named = dict.fromkeys(str(each["loc"][0]) for each in problem.errors())
        wrong = next((name for name in named if name in values), None)
        if wrong is None:
            raise error(f"{what.split()[0]} lacks: {', '.join(named)}.") from problem
        msg = f"{what} '{wrong}' must be {_described(types[wrong])}, not {values[wrong]!r}."
        raise error(msg) from problem
    return made


def _described(kind: Any) -> str:
    """A type in words that a user reads."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        low, high = parts[1].metadata
        return f"{_described(parts[0])} from {low.ge:g} to {high.le:g}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple and parts[-1] is not ...:
        return f"{len(parts)} {'whole ' if parts[0] is int else ''}numbers"
    if origin is tuple:
        return _described(parts[0]).replace("a number", "numbers")
    if origin in (Union, UnionType):
        return " or ".join(map(_described, parts))
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind, "null")
