# SPDX-License-Identifier: Apache-2.0
"""What a guest costs, beside others that were measured in the same run: `python -m tests.bench PART --help`.

`boot`, `build`, `size`, `growth` and `tools` each measure, print a table and write out/bench/PART.json; `check` holds
those against configs/budget.toml; `page` makes docs/performance.md of them. `cards` and `root` are pages of their own.

Figures of one machine: compare within one run, quote ratios.
"""
