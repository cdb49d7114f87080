/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/* Before DXE a module is known by the header of its file, which begins with its name. */
#include "Performance.h"

CONST GUID *
ModuleName (
  IN CONST VOID  *Identifier
  )
{
  return Identifier;
}
