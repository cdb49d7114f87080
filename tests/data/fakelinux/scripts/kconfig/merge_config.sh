#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# merge_config.sh -m -O FOLDER BASE FRAGMENT
cat "$5" >"$3/.config"
