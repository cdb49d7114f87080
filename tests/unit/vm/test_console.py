# SPDX-License-Identifier: Apache-2.0
"""Consoles become plain numbered lines."""

from minguest.vm import console


def test_escapes_and_carriage_returns_go() -> None:
    raw = b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: starting\r\n\r\n[    0.0] Linux version\r\npa\rrt"
    first, *others = console.lines(raw)
    assert (first.number, first.text) == (1, "BdsDxe: starting")
    assert [line.text for line in others] == ["", "[    0.0] Linux version", "part"]


def test_bytes_that_are_no_text_are_kept_visible() -> None:
    assert console.lines(b"a\xffb")[0].text == "a\ufffdb"


def test_lines_that_name_trouble_have_their_numbers() -> None:
    raw = b"fine\n[    0.0] ACPI BIOS Error (bug): A valid RSDP was not found\nfine\n[    0.1] smpboot: SMP disabled\n"
    assert [line.number for line in console.trouble(console.lines(raw))] == [2, 4]


def test_the_tail_skips_empty_lines() -> None:
    assert [line.text for line in console.tail(console.lines(b"a\n\nb\n\n\n"), 2)] == ["a", "b"]
