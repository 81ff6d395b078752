"""GPUs that are known: what they compute a second, hold, read, and say to each other, by their vendors' papers."""

from __future__ import annotations

import re
from typing import NamedTuple

# One direction, by the standard: x16 of PCI Express 4 and 5.
PCIE4, PCIE5 = 32e9, 64e9


class Card(NamedTuple):
    """One GPU."""

    peak: float  # dense bf16 FLOP/s that are summed in fp32; consumer cards have half of what their boxes say in fp16
    memory: float  # bytes that torch can allocate on an empty card: the vendor's size less what ECC and driver keep
    bandwidth: float  # bytes a second of that memory
    link: float  # bytes a second to the other GPUs of a host, in one direction


# The variant that most people mean bears the plain name; a variant's words stand behind it, in any order in a name.
# Bridges between two PCIe cards are not counted: three cards or more speak over the slots.
CARDS = {
    # NVIDIA Ampere GA102 whitepaper v2, table 9 (71 TFLOPS bf16; 142 with sparsity)
    "RTX 3090": Card(71e12, 24e9, 936e9, PCIE4),
    # NVIDIA Ada GPU architecture whitepaper, appendix A (165.2 TFLOPS bf16 with fp32 accumulate)
    "RTX 4090": Card(165.2e12, 24e9, 1008e9, PCIE4),
    # NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A (209.5 TFLOPS bf16 with fp32 accumulate)
    "RTX 5090": Card(209.5e12, 32e9, 1792e9, PCIE5),
    # NVIDIA Ampere GA102 whitepaper v2, appendix on the RTX A6000 (154.8 TFLOPS bf16)
    "RTX A6000": Card(154.8e12, 48e9, 768e9, PCIE4),
    # NVIDIA RTX 6000 Ada data sheet (1,457 TFLOPS fp8 with sparsity: a quarter in bf16 without)
    "RTX 6000 Ada": Card(364.2e12, 48e9, 960e9, PCIE4),
    # NVIDIA L4 data sheet (242 TFLOPS bf16 with sparsity)
    "L4": Card(121e12, 23e9, 300e9, PCIE4),
    # NVIDIA L40S data sheet (362.05 TFLOPS bf16)
    "L40S": Card(362e12, 47e9, 864e9, PCIE4),
    # NVIDIA A100 data sheet (312 TFLOPS; NVLink 600 GB/s in both directions); A800: the same at 400 GB/s
    "A100": Card(312e12, 80e9, 2039e9, 300e9),
    "A100 40GB": Card(312e12, 40e9, 1555e9, 300e9),
    "A100 PCIe": Card(312e12, 80e9, 1935e9, PCIE4),
    "A100 PCIe 40GB": Card(312e12, 40e9, 1555e9, PCIE4),
    "A800": Card(312e12, 80e9, 2039e9, 200e9),
    # NVIDIA H100 data sheet (1,979, 1,513 and 1,671 TFLOPS with sparsity; NVLink of the SXM 900 GB/s)
    "H100": Card(989e12, 80e9, 3350e9, 450e9),
    "H100 PCIe": Card(756e12, 80e9, 2000e9, PCIE5),
    "H100 NVL": Card(835e12, 94e9, 3938e9, PCIE5),
    # NVIDIA H800: an H100 whose NVLink has 400 GB/s (H100 data sheet for the rest)
    "H800": Card(989e12, 80e9, 3350e9, 200e9),
    # NVIDIA H20 data sheet (148 TFLOPS, 96 GB, 4.0 TB/s, NVLink 900 GB/s)
    "H20": Card(148e12, 96e9, 4000e9, 450e9),
    # NVIDIA H200 data sheet (1,979 and 1,671 TFLOPS with sparsity; 141 GB, 4.8 TB/s)
    "H200": Card(989e12, 140e9, 4800e9, 450e9),
    "H200 NVL": Card(835e12, 140e9, 4800e9, PCIE5),
    # NVIDIA HGX B200 data sheet (36 PFLOPS bf16 with sparsity of eight; NVLink 1.8 TB/s, 180 GB a GPU)
    "B200": Card(2250e12, 180e9, 7700e9, 900e9),
    # AMD Instinct MI300X data sheet (1307.4 TFLOPS; 5.3 TB/s; seven links of 128 GB/s in both directions)
    "MI300X": Card(1307e12, 192e9, 5300e9, 448e9),
}

_MAKERS = re.compile(r"nvidia|geforce|rtx|quadro|tesla|amd|instinct|generation|[^a-z0-9]+")
_VARIANT = re.compile(r" (?:pcie|nvl|\d+gb)\b")  # in a name of CARDS, in small letters
# What may stand behind a model's name, with spaces or without: its form, the kind of its memory, and how much it has.
_WORD = re.compile(
    r" |(?P<form>pcie|nvl|sxm|oam)(?:\d(?!\d))?|hbm(?:\de?)?"
    r"|(?P<memory>[1-9]\d{1,2}) ?gi?b?(?![\da-fh-z])|(?<!\d)(?P<bare>[1-9]\d{1,2})(?![\da-z])"
)
SAME_MEMORY = 0.07  # what vendors print on a card is up to so much more than `Card.memory`


def find_card(name: str) -> Card | None:
    """The card of that name, as people type it or as `torch.cuda.get_device_name` has it; None if it is not known.

    Case, spaces and makers' words do not matter. A form or memory that is named must be the card's: `NVIDIA
    A100-SXM4-40GB` is `A100 40GB`, and an A100 of 64 GB is not known. So is what bears another word, letter or digit:
    an RTX 4090 Laptop GPU, an RTX 3090 Ti.
    """
    text = _plain(name)
    for known, card in CARDS.items():  # of several variants the first, which is the most usual
        start = re.match(_model(known), text)
        words = None if start is None else _words(text, start.end())
        if words is not None and _is_that(known, card, **words):
            return card
    return None


def variants(name: str) -> list[str]:
    """The known cards of the model that a name begins with."""
    return [known for known in CARDS if re.match(_model(known) + r"(?!\d)", _plain(name))]


def _plain(name: str) -> str:
    return _MAKERS.sub(" ", name.lower()).strip()


def _model(known: str) -> str:
    """A pattern of a known card's model, without its variant."""
    return " *".join(_plain(_VARIANT.sub("", known.lower())).split())


def _words(text: str, start: int) -> dict | None:
    """{"forms": set, "memory": GB or None} of what stands behind a model's name; None if a word is not understood."""
    forms, memory = set(), None
    while start < len(text):
        word = _WORD.match(text, start)
        if word is None:
            return None
        forms |= {word["form"]} - {None}
        memory = word["memory"] or word["bare"] or memory
        start = word.end()
    return {"forms": forms, "memory": memory and int(memory)}


def _is_that(known: str, card: Card, *, forms: set[str], memory: int | None) -> bool:
    own = {"sxm", "oam"} if card.link > PCIE5 else {"pcie"}
    if known.endswith("NVL"):  # a card for a slot, too
        own = {"nvl", "pcie"} if "nvl" in forms else {"nvl"}
    return forms <= own and (memory is None or 0 <= memory * 1e9 - card.memory <= SAME_MEMORY * memory * 1e9)
