"""Labels and manifests on paper. The same shipment gives the same bytes.

Lengths are millimetres, sizes of type points.
"""

from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from itertools import pairwise

import barcode  # type: ignore[import-untyped]
import segno
from fpdf import FPDF

from nexus.commerce.puabo_nuki_shipping_service.v1.shipment_pb2 import Address, Manifest, Shipment

LABEL = (100.0, 150.0)
INK, GREY, PALE = "#000000", "#555555", "#f2f2f2"
_EDGE = 5.0
_QUIET = 10
"""Light modules on both sides of a bar code (ISO/IEC 15417, 4.6)."""


def label(shipment: Shipment, created: datetime) -> bytes:
    """A label of 100 × 150 mm."""
    paper = _Paper(LABEL, created, f"{shipment.carrier} {shipment.tracking_number}")
    width = LABEL[0]
    paper.add_page()
    paper.box(0, 0, width, 18, INK)
    paper.write(_EDGE, 5, shipment.service.upper(), 20, "B", "#ffffff", width=66)
    paper.write(width - _EDGE, 6.4, shipment.carrier, 12, "", "#ffffff", right=True)
    y = 22.0
    for at, text in enumerate(_lines(getattr(shipment, "from"))):
        paper.write(_EDGE, y, text, 7.5, "B" if at == 0 else "", GREY, width=60)
        y += 3.5
    grams = shipment.parcel.weight_grams
    facts = [created.strftime("%Y-%m-%d"), f"{grams / 1000:.2f} kg", shipment.note]
    for at, text in enumerate(filter(None, facts)):
        paper.write(width - _EDGE, 22 + 4.2 * at, text, 8.5, "B" if at == 1 else "", INK, right=True, width=34)
    paper.rule(46, 0.6)
    y = 51.0
    for at, text in enumerate(_lines(shipment.to)):
        size = 14 if at == 0 else 12
        paper.write(_EDGE, y, text, size, "B" if at == 0 else "", INK, width=width - 2 * _EDGE)
        y += size * 0.46
    if shipment.to.phone:
        paper.write(_EDGE, y + 1, shipment.to.phone, 9, "", GREY)
    paper.rule(93, 0.6)
    paper.code(segno.make(shipment.tracking_number, error="m", micro=False), width - _EDGE - 22, 96, 22)
    paper.write(_EDGE, 98, "TRACKING", 7, "B", GREY)
    paper.write(_EDGE, 102, _grouped(shipment.tracking_number), 13, "B", INK, width=62)
    if shipment.order_id:
        paper.write(_EDGE, 110, shipment.order_id, 8, "", GREY, width=62)
    paper.bars(shipment.tracking_number, _EDGE, 121, width - 2 * _EDGE, 20)
    paper.set_font("fira", "", 8.5)
    left = (width - paper.get_string_width(_grouped(shipment.tracking_number))) / 2
    paper.write(left, 143, _grouped(shipment.tracking_number), 8.5)
    return paper.finish()


def manifest(closed: Manifest, shipper: Address, created: datetime) -> bytes:
    """All parcels that a driver takes along, on A4, with room for a signature."""
    paper = _Paper((210, 297), created, f"Manifest {closed.manifest_id}")
    columns = ((20.0, "#"), (32.0, "Tracking number"), (92.0, "Service"), (132.0, "To"), (190.0, "kg"))
    y = 300.0
    for number, row in enumerate(closed.lines, start=1):
        if y > 262:
            paper.add_page()
            paper.write(20, 16, f"Manifest · {closed.carrier}", 18, "B")
            paper.write(190, 18, created.strftime("%Y-%m-%d %H:%M UTC"), 9, "", GREY, right=True)
            sender = " · ".join(_lines(shipper))
            paper.write(20, 27, sender, 9, "", GREY, width=170)
            paper.write(20, 33, f"{closed.shipments} parcels · {closed.weight_grams / 1000:.2f} kg", 10, "B")
            paper.write(190, 284, f"{closed.manifest_id} · {paper.page}", 7, "", GREY, right=True)
            for x, word in columns:
                paper.write(x, 43, word, 8, "B", GREY, right=word == "kg")
            paper.rule(48, 0.4, 20, 190)
            y = 51.0
        values = (
            str(number),
            row.tracking_number,
            row.service,
            f"{row.country} {row.postcode}",
            f"{row.weight_grams / 1000:.2f}",
        )
        for (x, word), value in zip(columns, values, strict=True):
            paper.write(x, y, value, 9, right=word == "kg", width=56)
        y += 5.6
    paper.rule(275, 0.2, 20, 100)
    paper.write(20, 277, "Driver", 7.5, "", GREY)
    return paper.finish()


class _Paper(FPDF):
    def __init__(self, size: tuple[float, float], created: datetime, title: str) -> None:
        super().__init__(format=size)
        folder = files("fontpkg_fira_sans") / "files"
        self.add_font("fira", "", str(folder / "FiraSans-Regular.ttf"))
        self.add_font("fira", "B", str(folder / "FiraSans-SemiBold.ttf"))
        self.set_auto_page_break(False)
        self.set_margins(0, 0, 0)
        self.c_margin = 0
        self.set_creation_date(created)
        self.set_title(title)

    def finish(self) -> bytes:
        return bytes(self.output())

    def write(  # type: ignore[override]
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        style: str = "",
        colour: str = INK,
        *,
        right: bool = False,
        width: float = 1000,
    ) -> None:
        """One line, from its left or to its right end; smaller where it would be wider, and cut off in the end."""
        self.set_font("fira", style, size)
        while self.get_string_width(text) > width and size > 6:
            size -= 0.5
            self.set_font("fira", style, size)
        while text and self.get_string_width(text) > width:
            text = text[:-1]
        self.set_text_color(colour)
        self.set_xy(x - self.get_string_width(text) if right else x, y)
        self.cell(self.get_string_width(text) + 0.1, size * 0.3528, text)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.set_fill_color(colour)
        self.rect(x, y, width, height, style="F")

    def rule(self, y: float, thickness: float, left: float = _EDGE, right: float = LABEL[0] - _EDGE) -> None:
        self.set_draw_color(INK)
        self.set_line_width(thickness)
        self.line(left, y, right, y)

    def bars(self, text: str, x: float, y: float, width: float, height: float) -> None:
        """Code 128 over the whole width, with its quiet zones."""
        [modules] = barcode.get("code128", text).build()
        self._runs(modules.strip("0"), x, y, width, height, _QUIET)

    def code(self, code: segno.QRCode, x: float, y: float, size: float) -> None:
        rows = ["".join("1" if module & 1 else "0" for module in row) for row in code.matrix]
        for at, row in enumerate(rows):
            self._runs(row, x, y + at * size / len(rows), size, size / len(rows), 0)

    def _runs(self, modules: str, x: float, y: float, width: float, height: float, quiet: int) -> None:
        """Dark modules that touch are drawn as one: no hairlines between them."""
        module = width / (len(modules) + 2 * quiet)
        self.set_fill_color(INK)
        edges = [at for at, (left, right) in enumerate(pairwise(f"0{modules}0")) if left != right]
        for start, end in list(pairwise(edges))[::2]:
            self.rect(x + (quiet + start) * module, y, (end - start) * module, height, style="F")


def _lines(address: Address) -> Sequence[str]:
    town = f"{address.postcode} {address.city}".strip()
    return [
        line for line in (address.name, address.company, *address.lines, town, address.region, address.country) if line
    ]


def _grouped(number: str) -> str:
    return " ".join(number[at : at + 4] for at in range(0, len(number), 4))
