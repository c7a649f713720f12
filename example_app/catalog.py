"""What the shop sells. The only place where a price is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CURRENCY = "eur"  # one currency for the whole shop, as a Checkout Session demands
_SYMBOLS = MappingProxyType({"eur": "€"})


@dataclass(frozen=True)
class Product:
    """Something to buy.

    :ivar slug: its id in URLs and requests.
    :ivar name: what it is called.
    :ivar tagline: one line about it.
    :ivar description: a few sentences about it.
    :ivar price: the price of one piece in minor units (cents) of the shop's currency.
    """

    slug: str
    name: str
    tagline: str
    description: str
    price: int


PRODUCTS: Mapping[str, Product] = MappingProxyType(
    {
        product.slug: product
        for product in (
            Product(
                slug="morning-mug",
                name="Morning mug",
                tagline="Stoneware, thrown by hand, 300\u00a0ml",
                description=(
                    "A mug that keeps its heat and its place on the desk. Glazed inside, raw outside, with "
                    "a handle that takes three fingers. Goes into the dishwasher without complaint."
                ),
                price=1800,
            ),
            Product(
                slug="field-notebook",
                name="Field notebook",
                tagline="Linen cover, 144 dotted pages",
                description=(
                    "Thread-sewn, so it lies flat from the first page to the last. The paper takes a "
                    "fountain pen without showing it on the other side."
                ),
                price=1450,
            ),
            Product(
                slug="brass-pencil",
                name="Brass pencil",
                tagline="Solid brass, 0.7\u00a0mm, refillable",
                description=(
                    "Turned from one rod of brass, with a weight that steadies the hand. It darkens where "
                    "you hold it, and after a year it is unmistakably yours."
                ),
                price=3200,
            ),
            Product(
                slug="reading-lamp",
                name="Reading lamp",
                tagline="Powder-coated steel, warm light",
                description=(
                    "One arm, one shade, one switch. It throws its light on the page and leaves the rest of "
                    "the room alone. The bulb is a standard one and comes with it."
                ),
                price=8900,
            ),
            Product(
                slug="wool-blanket",
                name="Wool blanket",
                tagline="Undyed merino, 130\u00a0×\u00a0180\u00a0cm",
                description=(
                    "Woven from the wool of one flock and left in its own colours. Light enough for the "
                    "sofa, warm enough for a night outdoors in May."
                ),
                price=12900,
            ),
            Product(
                slug="pour-over-kettle",
                name="Pour-over kettle",
                tagline="Enamelled steel, 0.9\u00a0l, gooseneck",
                description=(
                    "A thin, steady stream that goes where you point it. Works on gas, induction and a "
                    "camp fire, and whistles at none of them."
                ),
                price=6400,
            ),
        )
    }
)


def format_price(amount: int, currency: str = CURRENCY) -> str:
    """Write an amount for the eye.

    :param amount: the amount in minor units, of a currency that has a hundred to one.
    :param currency: its ISO 4217 code in lower case.
    :return: The amount with its symbol, such as ``€18.00``, or with its code, such as ``18.00 USD``.
    """
    digits = f"{amount // 100:,}.{amount % 100:02}"
    symbol = _SYMBOLS.get(currency)
    return f"{symbol}{digits}" if symbol else f"{digits} {currency.upper()}"
