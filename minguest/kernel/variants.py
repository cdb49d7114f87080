# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ from the guest's in some options, of its tree and fragments."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from minguest.kernel import kbuild, kconfig, source
from minguest.paths import Store


class Workshop(msgspec.Struct, frozen=True):
    """What the variants of one line are made of."""

    tree: source.Prepared
    fragments: tuple[Path, ...]
    options: Mapping[str, str | int | bool]
    """The guest's own; a variant's win over them."""
    store: Store
    root: Path
    log: Path
    """A folder."""


def kernel_with(shop: Workshop, options: Mapping[str, str | int | bool], say: Callable[[str], None]) -> Path:
    """The folder of a kernel with `options`: bzImage and kernel.config. Built only where no config has led to it yet.

    What Kconfig makes of them is taken as it is. ToolError where the tree cannot be configured or built so.
    """
    wanted = kconfig.merge(kconfig.read(shop.fragments, shop.root), {**shop.options, **options}, "[[inject]] of a pit")
    name = "-".join(f"{option}-{kconfig.spell(value)}" for option, value in options.items()).replace("/", "_")[:100]
    log = shop.log / f"{name}.log"
    text = kbuild.resolve(shop.tree, kconfig.render(wanted), shop.store, log.with_suffix(".config.log"), say)

    def building() -> None:
        say(f"kernel with {shown(options)}")

    folder, _ = kbuild.build(shop.tree, text, shop.store, log=log, say=say, building=building)
    return folder


def shown(options: Mapping[str, str | int | bool]) -> str:
    """Options as a .config spells them, without CONFIG_."""
    return ", ".join(f"{name}={kconfig.spell(value)}" for name, value in options.items())
