/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/*
 * edk2's performance records, written to QEMU's debug port as they come: a line
 * "perf TYPE TSC NAME TEXT". It keeps nothing, so it works in each phase.
 *
 * TYPE is the record's, in hex: MdePkg/Include/Library/PerformanceLib.h. TSC is
 * the CPU's clock in hex. NAME is the GUID of the module, or zeros.
 */
#include "Performance.h"

#include <Library/BaseLib.h>
#include <Library/IoLib.h>
#include <Library/PcdLib.h>
#include <Library/PerformanceLib.h>

#define PORT  0x402

STATIC
VOID
Hex (
  IN UINT64  Value,
  IN UINTN   Digits
  )
{
  while (Digits-- > 0) {
    IoWrite8 (PORT, "0123456789abcdef"[(Value >> (4 * Digits)) & 0xF]);
  }
}

RETURN_STATUS
EFIAPI
LogPerformanceMeasurement (
  IN CONST VOID   *CallerIdentifier  OPTIONAL,
  IN CONST VOID   *Guid     OPTIONAL,
  IN CONST CHAR8  *String   OPTIONAL,
  IN UINT64       Address   OPTIONAL,
  IN UINT32       Identifier
  )
{
  UINT64    Tsc;
  GUID      Zeros;
  CONST GUID  *Name;
  UINTN     Index;

  Tsc  = AsmReadTsc ();
  Name = CallerIdentifier;
  if ((Identifier >= MODULE_START_ID) && (Identifier <= MODULE_DB_STOP_END_ID)) {
    Name = ModuleName (CallerIdentifier);
  }

  if (Name == NULL) {
    Zeros = (GUID){ 0 };
    Name  = &Zeros;
  }

  IoWriteFifo8 (PORT, 5, "perf ");
  Hex (Identifier, 2);
  IoWrite8 (PORT, ' ');
  Hex (Tsc, 16);
  IoWrite8 (PORT, ' ');
  Hex (Name->Data1, 8);
  Hex (Name->Data2, 4);
  Hex (Name->Data3, 4);
  for (Index = 0; Index < 8; Index++) {
    Hex (Name->Data4[Index], 2);
  }

  IoWrite8 (PORT, ' ');
  if (String != NULL) {
    IoWriteFifo8 (PORT, AsciiStrLen (String), (VOID *)String);
  }

  IoWrite8 (PORT, '\n');
  return RETURN_SUCCESS;
}

BOOLEAN
EFIAPI
PerformanceMeasurementEnabled (
  VOID
  )
{
  return TRUE;
}

BOOLEAN
EFIAPI
LogPerformanceMeasurementEnabled (
  IN  CONST UINTN  Type
  )
{
  return (PcdGet8 (PcdPerformanceLibraryPropertyMask) & Type) == 0;
}

/* The older functions: BDS calls them around a boot option, and there is none here. */

RETURN_STATUS
EFIAPI
StartPerformanceMeasurementEx (
  IN CONST VOID   *Handle   OPTIONAL,
  IN CONST CHAR8  *Token    OPTIONAL,
  IN CONST CHAR8  *Module   OPTIONAL,
  IN UINT64       TimeStamp,
  IN UINT32       Identifier
  )
{
  return RETURN_SUCCESS;
}

RETURN_STATUS
EFIAPI
EndPerformanceMeasurementEx (
  IN CONST VOID   *Handle   OPTIONAL,
  IN CONST CHAR8  *Token    OPTIONAL,
  IN CONST CHAR8  *Module   OPTIONAL,
  IN UINT64       TimeStamp,
  IN UINT32       Identifier
  )
{
  return RETURN_SUCCESS;
}
