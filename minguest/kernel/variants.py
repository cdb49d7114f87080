# SPDX-License-Identifier: Apache-2.0
"""Kernels from the guest's tree and fragments with some other options."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from minguest.kernel import kbuild, kconfig, source
from minguest.paths import Store


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


def kernel_with(shop: Workshop, options: Mapping[str, str | int | bool], say: Callable[[str], None]) -> Path:
    """The folder of a kernel with `options`: bzImage and kernel.config. It is built only if it is not in the store.

    The result of Kconfig is not verified. ToolError if the tree cannot be configured or built so.
    """
    wanted = kconfig.merge(kconfig.read(shop.fragments, shop.root), {**shop.options, **options}, "[[inject]] of a pit")
    name = "-".join(f"{option}-{kconfig.spell(value)}" for option, value in options.items()).replace("/", "_")[:100]
    log = shop.log / f"{name}.log"
    text = kbuild.resolve(shop.tree, kconfig.render(wanted), shop.store, log.with_suffix(".config.log"), say)

    def building() -> None:
        say(f"kernel with {shown(options)}")

    folder, _ = kbuild.build(shop.tree, text, shop.store, log=log, say=say, building=building)
    return folder


class Without(msgspec.Struct, frozen=True):
    """What Kconfig makes of a series' options if one of them is not asked for."""

    text: str
    """The whole .config."""
    value: str
    """The option's own."""
    gone: tuple[str, ...]
    """Other options that are asked for, and that it takes along."""


def requested(shop: Workshop) -> dict[str, kconfig.Option]:
    """All that the guest asks for, by option."""
    return kconfig.merge(kconfig.read(shop.fragments, shop.root), shop.options)


def without(shop: Workshop, name: str, say: Callable[[str], None]) -> Without:
    """The config with the opposite of a request for on, and with nothing in place of any other. ToolError if the tree
    cannot be configured so."""
    wanted = requested(shop)
    option = wanted.pop(name)
    opposite = {name: option_off(option)} if option.value in ("y", "m") else {}
    log = shop.log / f"without-{name}.config.log"
    text = kbuild.resolve(shop.tree, kconfig.render({**wanted, **opposite}), shop.store, log, say)
    config = kconfig.parse_config(text)
    gone = tuple(each.option.name for each in kconfig.unmet(wanted, config))
    return Without(text, config.get(name, "n"), gone)


def option_off(option: kconfig.Option) -> kconfig.Option:
    return dataclasses.replace(option, value="n")


def kernel_of(shop: Workshop, text: str, name: str, say: Callable[[str], None]) -> Path:
    """The folder of the kernel with this .config. ToolError if it cannot be built."""
    log = shop.log / f"{name}.log"
    folder, _ = kbuild.build(shop.tree, text, shop.store, log=log, say=say, building=lambda: say(f"kernel {name}"))
    return folder


def shown(options: Mapping[str, str | int | bool]) -> str:
    """Options as a .config spells them, without CONFIG_."""
    return ", ".join(f"{name}={kconfig.spell(value)}" for name, value in options.items())
