"""ImportService: proto to rules and back."""

from nexus.commerce.puabo_nuki_product_catalog.v1 import imports_pb2 as pb
from nexus.commerce.puabo_nuki_product_catalog.v1.faults import (
    ImportOffsetWrong,
    ImportStateWrong,
    ImportUnreadable,
)
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.commerce.puabo_nuki_product_catalog.importing import LOOK_SECONDS, Importing
from services.commerce.puabo_nuki_product_catalog.rows import MOST_BYTES

_import = MessageOf(pb.Import, rows="row_count")
_error = MessageOf(pb.ImportError, row="row_number", column="column_name")


class ImportService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._importing = Importing(service.database, service.events)
        self._store = self._importing.store
        self._pager = Pager(service.sealer)
        service.every(LOOK_SECONDS, self._importing.run)

    async def CreateImport(self, request: pb.CreateImportRequest, call: RequestContext) -> pb.CreateImportResponse:
        row = await self._store.imports.insert(import_id=new_id(), name=request.name, actor=call.user.user_id)
        return pb.CreateImportResponse(product_import=_import(row))

    async def UploadImport(self, request: pb.UploadImportRequest, call: RequestContext) -> pb.UploadImportResponse:
        end = request.offset + len(request.data)
        async with self._database.transaction():
            row = await self._store.imports.require(request.import_id, lock=True)
            _require_uploading(row)
            if end > row["received"]:
                if request.offset != row["received"]:
                    raise ImportOffsetWrong(received=row["received"])
                if end > MOST_BYTES:
                    raise ImportUnreadable(why=f"it has more than {MOST_BYTES} bytes")
                await self._store.chunks.insert(import_id=request.import_id, position=request.offset, data=request.data)
                row = await self._store.imports.change(request.import_id, received=end)
        return pb.UploadImportResponse(product_import=_import(row))

    async def StartImport(self, request: pb.StartImportRequest, call: RequestContext) -> pb.StartImportResponse:
        async with self._database.transaction():
            row = await self._store.imports.require(request.import_id, lock=True)
            if row["state"] not in ("running", "done"):
                _require_uploading(row)
                file = await self._importing.file(request.import_id)
                await self._importing.require_known(file)
                row = await self._store.imports.change(request.import_id, state="running", row_count=len(file.rows))
        return pb.StartImportResponse(product_import=_import(row))

    async def CancelImport(self, request: pb.CancelImportRequest, call: RequestContext) -> pb.CancelImportResponse:
        async with self._database.transaction():
            row = await self._store.imports.require(request.import_id, lock=True)
            if row["state"] == "done":
                raise ImportStateWrong(state="done")
            if row["state"] != "cancelled":
                row = await self._store.finish(request.import_id, "cancelled")
        return pb.CancelImportResponse(product_import=_import(row))

    async def GetImport(self, request: pb.GetImportRequest, call: RequestContext) -> pb.GetImportResponse:
        return pb.GetImportResponse(product_import=_import(await self._store.imports.require(request.import_id)))

    async def ListImports(self, request: pb.ListImportsRequest, call: RequestContext) -> pb.ListImportsResponse:
        rows, more = await self._pager.page(request, call, self._store.imports.page, by="import_id")
        return pb.ListImportsResponse(imports=map(_import, rows), next_page_token=more)

    async def ListImportErrors(
        self, request: pb.ListImportErrorsRequest, call: RequestContext
    ) -> pb.ListImportErrorsResponse:
        await self._store.imports.require(request.import_id)

        async def fetch(after: str, limit: int) -> list[Row]:
            return await self._store.errors.page(
                "", limit, filters={"row_number > {}": int(after or 0)}, import_id=request.import_id
            )

        rows, more = await self._pager.page(request, call, fetch, by="row_number")
        return pb.ListImportErrorsResponse(errors=map(_error, rows), next_page_token=more)


def _require_uploading(row: Row) -> None:
    if row["state"] != "uploading":
        raise ImportStateWrong(state=row["state"])
