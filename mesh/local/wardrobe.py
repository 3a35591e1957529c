"""A fashion house that does not exist: what it sells, and pictures of it. The same every time."""

import csv
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFilter

PRODUCTS = 200
CURRENCIES: Mapping[str, float] = {"eur": 1.0, "usd": 1.15, "gbp": 0.88}
"""Price lists, and what a price in euros is there."""
MATERIALS = (
    "linen",
    "organic cotton",
    "merino wool",
    "silk",
    "cashmere",
    "denim",
    "leather",
    "viscose",
    "recycled nylon",
)
SEASONS = ("spring", "summer", "autumn", "winter")
COLOURS: Mapping[str, str] = {
    "Ink": "#1f2a44",
    "Chalk": "#efe9dd",
    "Sand": "#cbb28d",
    "Olive": "#6b7040",
    "Rust": "#a9512f",
    "Rose": "#d99aa0",
    "Sky": "#8fb3cf",
    "Moss": "#3f5a45",
    "Plum": "#5b2f4f",
    "Mustard": "#cf9b34",
    "Charcoal": "#3a3a3d",
    "Coral": "#e2725b",
}
_BACKGROUNDS = ("#f4f1ec", "#eef1f2", "#f3eef0", "#eef2ea", "#f5f0e6")
_BRANDS = ("Nordlys", "Casa Pino", "Halden & Daughters", "Kestrel", "Atelier Morgen", "Fjordline", "Marée")
_NAMES = (
    *("Alma", "Bruno", "Clara", "Dario", "Elin", "Freja", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo", "Maren"),
    *("Nils", "Olive", "Paula", "Quentin", "Rosa", "Sven", "Thea", "Ulla", "Viggo", "Wanda", "Xenia", "Yves", "Zora"),
)
_CLOTHES, _SHOES, _ONE = ("XS", "S", "M", "L", "XL"), ("37", "38", "39", "40", "41", "42", "43", "44"), ("One size",)
_SIZE = (400, 500)
_FINE = 2
"""Pictures are drawn so much larger, and made smaller: edges come out smooth."""


@dataclass(frozen=True)
class Kind:
    name: str
    category: str
    sizes: Sequence[str]
    price: int
    """About so much, in whole euros."""
    grams: int
    materials: Sequence[str]
    shape: Sequence[Sequence[tuple[int, int]]]
    """Polygons on a field of 100 × 100."""
    says: str


_SHIRT = [
    [
        (30, 18),
        (42, 14),
        (50, 20),
        (58, 14),
        (70, 18),
        (88, 40),
        (76, 48),
        (69, 40),
        (70, 86),
        (30, 86),
        (31, 40),
        (24, 48),
        (12, 40),
    ]
]
_LONG = [
    [
        (30, 18),
        (42, 14),
        (50, 19),
        (58, 14),
        (70, 18),
        (90, 66),
        (80, 71),
        (68, 44),
        (70, 86),
        (30, 86),
        (32, 44),
        (20, 71),
        (10, 66),
    ]
]
_COAT = [
    [
        (32, 12),
        (44, 10),
        (50, 22),
        (56, 10),
        (68, 12),
        (86, 60),
        (77, 64),
        (68, 40),
        (74, 94),
        (51, 94),
        (50, 24),
        (49, 94),
        (26, 94),
        (32, 40),
        (23, 64),
        (14, 60),
    ]
]
_DRESS = [
    [
        (38, 10),
        (42, 10),
        (45, 20),
        (55, 20),
        (58, 10),
        (62, 10),
        (66, 34),
        (60, 46),
        (78, 92),
        (22, 92),
        (40, 46),
        (34, 34),
    ]
]
_SKIRT = [[(36, 22), (64, 22), (65, 30), (80, 84), (20, 84), (35, 30)]]
_TROUSERS = [[(34, 10), (66, 10), (70, 92), (55, 92), (50, 34), (45, 92), (30, 92)]]
_SHORTS = [[(32, 26), (68, 26), (76, 70), (53, 72), (50, 46), (47, 72), (24, 70)]]
_SHOE = [
    [(12, 54), (30, 44), (40, 46), (58, 60), (84, 66), (90, 74), (88, 80), (12, 80)],
    [(10, 80), (90, 80), (90, 85), (10, 85)],
]
_BOOT = [
    [(28, 14), (54, 14), (54, 56), (72, 64), (86, 70), (88, 82), (26, 82)],
    [(24, 82), (90, 82), (90, 88), (24, 88)],
]
_BAG = [
    [(20, 42), (80, 42), (86, 88), (14, 88)],
    [(34, 42), (36, 22), (64, 22), (66, 42), (61, 42), (60, 27), (40, 27), (39, 42)],
]
_HAT = [[(30, 58), (34, 34), (44, 28), (56, 28), (66, 34), (70, 58)], [(10, 58), (90, 58), (84, 66), (16, 66)]]
_SCARF = [
    [(30, 16), (70, 16), (72, 30), (28, 30)],
    [(34, 28), (48, 28), (46, 90), (28, 88)],
    [(52, 28), (64, 28), (70, 74), (56, 76)],
]
_SOCKS = [
    [(30, 14), (46, 14), (46, 58), (58, 72), (52, 84), (40, 82), (30, 66)],
    [(54, 14), (70, 14), (70, 58), (82, 72), (76, 84), (64, 82), (54, 66)],
]

KINDS = (
    Kind(
        "Shirt",
        "men/shirts",
        _CLOTHES,
        79,
        240,
        ("linen", "organic cotton", "silk"),
        _LONG,
        "A relaxed shirt with a small collar",
    ),
    Kind(
        "T-Shirt",
        "women/tops",
        _CLOTHES,
        35,
        170,
        ("organic cotton", "viscose"),
        _SHIRT,
        "A T-shirt that keeps its shape",
    ),
    Kind(
        "Blouse",
        "women/tops",
        _CLOTHES,
        89,
        180,
        ("silk", "viscose", "linen"),
        _LONG,
        "A light blouse with a soft fall",
    ),
    Kind(
        "Jumper",
        "men/knitwear",
        _CLOTHES,
        119,
        420,
        ("merino wool", "cashmere"),
        _LONG,
        "A close-knit jumper for cold mornings",
    ),
    Kind(
        "Cardigan",
        "women/knitwear",
        _CLOTHES,
        129,
        450,
        ("merino wool", "cashmere"),
        _COAT,
        "A cardigan with horn buttons",
    ),
    Kind(
        "Dress", "women/dresses", _CLOTHES, 149, 320, ("linen", "silk", "viscose"), _DRESS, "A dress for long evenings"
    ),
    Kind(
        "Skirt",
        "women/skirts",
        _CLOTHES,
        89,
        280,
        ("linen", "denim", "viscose"),
        _SKIRT,
        "A skirt that swings as you walk",
    ),
    Kind(
        "Trousers",
        "men/trousers",
        _CLOTHES,
        109,
        460,
        ("organic cotton", "linen", "merino wool"),
        _TROUSERS,
        "Straight trousers with a high waist",
    ),
    Kind("Jeans", "women/trousers", _CLOTHES, 99, 620, ("denim",), _TROUSERS, "Jeans that soften with every wash"),
    Kind(
        "Shorts",
        "men/trousers",
        _CLOTHES,
        59,
        260,
        ("linen", "organic cotton"),
        _SHORTS,
        "Shorts for the garden and the harbour",
    ),
    Kind(
        "Coat", "women/coats", _CLOTHES, 299, 1400, ("merino wool", "cashmere"), _COAT, "A long coat with deep pockets"
    ),
    Kind(
        "Raincoat",
        "men/coats",
        _CLOTHES,
        189,
        600,
        ("recycled nylon",),
        _COAT,
        "A raincoat that weighs next to nothing",
    ),
    Kind(
        "Trainers",
        "shoes/trainers",
        _SHOES,
        129,
        800,
        ("leather", "recycled nylon"),
        _SHOE,
        "Trainers with a sole of natural rubber",
    ),
    Kind("Boots", "shoes/boots", _SHOES, 219, 1200, ("leather",), _BOOT, "Boots that can be resoled"),
    Kind(
        "Bag",
        "accessories/bags",
        _ONE,
        159,
        700,
        ("leather", "recycled nylon"),
        _BAG,
        "A bag for the week and the weekend",
    ),
    Kind("Hat", "accessories/hats", _ONE, 49, 120, ("merino wool", "linen"), _HAT, "A hat against sun and drizzle"),
    Kind(
        "Scarf",
        "accessories/scarves",
        _ONE,
        69,
        150,
        ("cashmere", "merino wool", "silk"),
        _SCARF,
        "A scarf to wrap twice",
    ),
    Kind(
        "Socks",
        "accessories/socks",
        ("36-40", "41-45"),
        15,
        60,
        ("merino wool", "organic cotton"),
        _SOCKS,
        "Socks without a seam at the toe",
    ),
)


@dataclass(frozen=True)
class Garment:
    """One product."""

    number: int

    @cached_property
    def kind(self) -> Kind:
        return KINDS[self.number % len(KINDS)]

    @cached_property
    def name(self) -> str:
        return _NAMES[self.number // len(KINDS) % len(_NAMES)]

    @cached_property
    def brand(self) -> str:
        return _BRANDS[(self.number * 5 + self.number // len(KINDS)) % len(_BRANDS)]

    @cached_property
    def material(self) -> str:
        return self.kind.materials[self.number // len(KINDS) % len(self.kind.materials)]

    @cached_property
    def colours(self) -> list[str]:
        return random.Random(f"colours {self.number}").sample(list(COLOURS), 1 + self.number % 3)  # noqa: S311

    @property
    def slug(self) -> str:
        return f"{self.name}-{self.material}-{self.kind.name}".lower().replace(" ", "-")

    @property
    def title(self) -> str:
        return f"{self.name} {self.material.title()} {self.kind.name}"

    @property
    def season(self) -> str:
        return SEASONS[self.number % len(SEASONS)]

    @cached_property
    def euros(self) -> int:
        """In cents: something and 95."""
        return int(self.kind.price * random.Random(f"price {self.number}").uniform(0.8, 1.5)) * 100 + 95  # noqa: S311

    def rows(self) -> Iterator[dict[str, object]]:
        """As the catalogue imports them: one for each colour and size."""
        for colour in self.colours:
            for size in self.kind.sizes:
                yield {
                    "slug": self.slug,
                    "sku": f"{self.number + 1001}-{colour.upper()}-{size.replace(' ', '').upper()}",
                    "title": self.title,
                    "description": f"{self.kind.says}, made of {self.material} by {self.brand}.",
                    "language": "en",
                    "brand": self.brand,
                    "category": self.kind.category,
                    "tags": f"{self.season}|{'new' if self.number % 7 == 0 else 'classic'}",
                    "state": "published",
                    "option.Colour": colour,
                    "option.Size": size,
                    "attribute.material": self.material,
                    "attribute.season": self.season,
                    "weight_grams": self.kind.grams,
                    "length_mm": 320,
                    "width_mm": 240,
                    "height_mm": 20 + self.kind.grams // 10,
                    "tax_category": "standard",
                    **{
                        f"price.web-{currency}": round(self.euros * rate / 100) * 100 - 5
                        for currency, rate in CURRENCIES.items()
                    },
                }

    def picture(self, colour: str) -> bytes:
        """What it looks like, as WebP."""
        width, height = (side * _FINE for side in _SIZE)
        dice = random.Random(f"picture {self.number} {colour}")  # noqa: S311
        picture = Image.new("RGB", (width, height), _BACKGROUNDS[self.number % len(_BACKGROUNDS)])
        mask = Image.new("L", (width, height), 0)
        scale, top = width / 112, height * 0.13
        for polygon in self.kind.shape:
            outline = [(width * 0.055 + x * scale, top + y * scale) for x, y in polygon]
            ImageDraw.Draw(mask).polygon(outline, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(width / 90)).point(lambda value: 255 if value > 127 else 0)
        shadow = mask.filter(ImageFilter.GaussianBlur(width / 36)).point(lambda value: value // 5)
        picture.paste("#2b2b2b", (0, height // 45), shadow)
        picture.paste(self._cloth(colour, (width, height), dice), (0, 0), mask)
        small = picture.resize(_SIZE, Image.Resampling.LANCZOS)
        data = io.BytesIO()
        small.save(data, "WEBP", quality=82)
        return data.getvalue()

    def _cloth(self, colour: str, size: tuple[int, int], dice: random.Random) -> Image.Image:
        """Cloth in a colour: plain, striped or dotted, a little darker towards the hem."""
        width, height = size
        cloth = Image.new("RGB", size, COLOURS[colour])
        draw = ImageDraw.Draw(cloth)
        accent = COLOURS[dice.choice([other for other in COLOURS if other != colour])]
        pattern = ("plain", "plain", "striped", "dotted")[self.number // 3 % 4]
        step = width // 16
        if pattern == "striped":
            for y in range(0, height, step):
                draw.rectangle((0, y, width, y + step // 4), fill=accent)
        elif pattern == "dotted":
            for row, y in enumerate(range(0, height, step)):
                for x in range(step // 2 * (row % 2), width, step):
                    draw.ellipse((x, y, x + step // 4, y + step // 4), fill=accent)
        shade = Image.linear_gradient("L").resize(size).point(lambda value: value // 5)
        cloth.paste("#000000", (0, 0), shade)
        return cloth


def garments(products: int = PRODUCTS) -> list[Garment]:
    return [Garment(number) for number in range(products)]


def table(garments: Sequence[Garment]) -> bytes:
    """As a CSV file of the catalogue's."""
    text = io.StringIO()
    rows = [row for garment in garments for row in garment.rows()]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
