# SPDX-License-Identifier: Apache-2.0
"""Kernels from the guest's tree and fragments with some other options."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from minguest.kernel import folders, kbuild, kconfig, source
from minguest.paths import Store


class Shared(Protocol):
    """Kernels that several machines share, by the name of their folder (kbuild.place)."""

    def fetch(self, folder: Path) -> None:
        """Make this folder, if the kernel is there."""

    def keep(self, folder: Path) -> None:
        """Put this folder's kernel there, if it is not."""


class Workshop(msgspec.Struct, frozen=True):
    """The inputs of the variants of one series."""

    tree: source.Prepared
    fragments: tuple[Path, ...]
    options: Mapping[str, str | int | bool]
    """The guest's own; a variant's win over them."""
    store: Store
    root: Path
    log: Path
    """A folder."""
    objects: folders.Objects | None = None
    """Where the kernels are built, from the objects of the guest's own; None: each from scratch."""
    shared: Shared | None = None


def kernel_with(shop: Workshop, options: Mapping[str, str | int | bool], say: Callable[[str], None]) -> Path:
    """The folder of a kernel with `options`: bzImage and kernel.config. It is built only if it is not in the store.

    The result of Kconfig is not verified. ToolError if the tree cannot be configured or built so.
    """
    wanted = requested(shop, options)
    name = "-".join(f"{option}-{kconfig.spell(value)}" for option, value in options.items()).replace("/", "_")[:100]
    text = kbuild.resolve(shop.tree, kconfig.render(wanted), shop.store, shop.log / f"{name}.config.log", say)
    return build(shop, text, name, f"kernel with {shown(options)}", say)


class Without(msgspec.Struct, frozen=True):
    """What Kconfig makes of a series' options if one of them is not asked for."""

    text: str
    """The whole .config."""
    value: str
    """The option's own."""
    gone: tuple[str, ...]
    """Other options that are asked for, and that it takes along."""


def requested(shop: Workshop, options: Mapping[str, str | int | bool] | None = None) -> dict[str, kconfig.Option]:
    """All that the guest asks for, by option; `options` win."""
    overrides = {**shop.options, **(options or {})}
    return kconfig.merge(kconfig.read(shop.fragments, shop.root), overrides, "[[inject]] of a pit")


def without(shop: Workshop, name: str, say: Callable[[str], None]) -> Without:
    """The config with the opposite of a request for on, and with nothing in place of any other; an option that nobody
    asks for is switched off. ToolError if the tree cannot be configured so."""
    wanted, opposite = _but(shop, name)
    log = shop.log / f"without-{name}.config.log"
    text = kbuild.resolve(shop.tree, kconfig.render({**wanted, **opposite}), shop.store, log, say)
    config = kconfig.parse_config(text)
    gone = tuple(each.option.name for each in kconfig.unmet(wanted, config))
    return Without(text, config.get(name, "n"), gone)


def unasked(shop: Workshop, say: Callable[[str], None]) -> list[str]:
    """The options that are on, that nobody asks for, and that are off if a config says so."""
    wanted = requested(shop)

    def resolved(more: Mapping[str, kconfig.Option], name: str) -> dict[str, str]:
        log = shop.log / f"{name}.config.log"
        return kconfig.parse_config(kbuild.resolve(shop.tree, kconfig.render({**wanted, **more}), shop.store, log, say))

    on = [name for name, value in resolved({}, "asked").items() if value in ("y", "m") and name not in wanted]
    off = resolved({name: kconfig.Option(name, "n", "", 0, "") for name in on}, "unasked")
    return [name for name in on if off.get(name, "n") == "n"]


def _but(shop: Workshop, name: str) -> tuple[dict[str, kconfig.Option], dict[str, kconfig.Option]]:
    """All that the guest asks for but one option, and what is asked for in its place."""
    wanted = requested(shop)
    option = wanted.pop(name, None) or kconfig.Option(name, "y", "", 0, "")
    return wanted, {name: dataclasses.replace(option, value="n")} if option.value in ("y", "m") else {}


def there(shop: Workshop, options: Mapping[str, str | int | bool] | None = None, but: str = "") -> Path | None:
    """The folder of the kernel with `options`, or without the option `but`, if this machine has it; runs nothing."""
    wanted = requested(shop, options)
    if but:
        less, opposite = _but(shop, but)
        wanted = {**less, **opposite}
    text = kbuild.resolved(shop.tree, kconfig.render(wanted), shop.store)
    return next(filter(kbuild.whole, kbuild.places(shop.tree, text, shop.store) if text is not None else ()), None)


def build(shop: Workshop, text: str, name: str, what: str, say: Callable[[str], None]) -> Path:
    """The folder of the kernel with this .config; `name` is its log's, `what` is said before it is built. ToolError if
    it cannot be built."""
    log = shop.log / f"{name}.log"
    if shop.shared:
        for folder in kbuild.places(shop.tree, text, shop.store)[: 2 if shop.objects else 1]:
            if not kbuild.whole(folder):
                shop.shared.fetch(folder)
            if kbuild.whole(folder):
                break
    own = kbuild.resolve(shop.tree, kconfig.render(requested(shop)), shop.store, shop.log / "own.config.log", say)
    folder, _ = kbuild.build(
        shop.tree, text, shop.store, log=log, say=say, building=lambda: say(what), objects=shop.objects, base=own
    )
    if shop.shared:
        shop.shared.keep(folder)
    return folder


def shown(options: Mapping[str, str | int | bool]) -> str:
    """Options as a .config spells them, without CONFIG_."""
    return ", ".join(f"{name}={kconfig.spell(value)}" for name, value in options.items())
