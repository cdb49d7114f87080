/* SPDX-License-Identifier: BSD-2-Clause-Patent */
#ifndef MINGUEST_PERFORMANCE_H
#define MINGUEST_PERFORMANCE_H

#include <Uefi.h>

/* The GUID of a module's file, or NULL. `Identifier` is what the core of the phase knows a module by. */
CONST GUID *
ModuleName (
  IN CONST VOID  *Identifier
  );

#endif
