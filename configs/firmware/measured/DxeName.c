/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/* In DXE a module is known by the handle of its image, whose path ends with the name of its file in a volume. */
#include "Performance.h"

#include <Library/DevicePathLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/LoadedImage.h>

CONST GUID *
ModuleName (
  IN CONST VOID  *Identifier
  )
{
  EFI_LOADED_IMAGE_PROTOCOL  *Image;
  CONST VOID                 *Path;

  if ((Identifier == NULL) ||
      EFI_ERROR (gBS->HandleProtocol ((EFI_HANDLE)Identifier, &gEfiLoadedImageProtocolGuid, (VOID **)&Image)))
  {
    return NULL;
  }

  Path = Image->FilePath;
  if ((Path == NULL) || (DevicePathType (Path) != MEDIA_DEVICE_PATH) || (DevicePathSubType (Path) != MEDIA_PIWG_FW_FILE_DP)) {
    return NULL;
  }

  return &((CONST MEDIA_FW_VOL_FILEPATH_DEVICE_PATH *)Path)->FvFileName;
}
