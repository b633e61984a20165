"""Words of the toy world: titles say style and material, descriptions say mood and use."""

import numpy as np
from numpy.typing import NDArray

STYLES = (
    "classic", "modern", "rustic", "baroque", "minimal",
    "retro", "tribal", "nautical", "gothic", "floral",
)  # fmt: skip
MATERIALS = (
    "linen", "leather", "bamboo", "marble", "denim",
    "velvet", "copper", "ceramic", "wool", "glass",
)  # fmt: skip
MOODS = (
    "calm", "playful", "bold", "cosy", "elegant",
    "dreamy", "rugged", "festive", "sober", "quirky",
)  # fmt: skip
USES = (
    "travel", "dinner parties", "the garden", "long winters", "the office",
    "children", "sport", "reading", "the beach", "collectors",
)  # fmt: skip
CATEGORIES = (
    "lamp", "bag", "chair", "vase", "jacket", "clock",
    "rug", "mirror", "scarf", "bowl", "stool", "blanket",
)  # fmt: skip

TITLES = ("{style} {material} {noun}", "{noun} in {style} {material}", "{material} {noun}, {style}")
DESCRIPTIONS = (
    "A {mood} piece made for {use}. Ships within three days.",
    "Made with {use} in mind, this one feels {mood}.",
    "{mood} at heart and at home in {use}; wipe with a dry cloth.",
    "If you think of {use}, you will like how {mood} it is.",
)


def write_titles(
    style_n: NDArray[np.integer],
    material_n: NDArray[np.integer],
    *,
    category_n: NDArray[np.integer],
    rng: np.random.Generator,
) -> list[str]:
    """One title an item, for n items."""
    template_n = rng.integers(len(TITLES), size=len(style_n))
    return [
        TITLES[template].format(
            style=STYLES[style], material=MATERIALS[material], noun=CATEGORIES[category]
        )
        for template, style, material, category in zip(
            template_n, style_n, material_n, category_n, strict=True
        )
    ]


def write_descriptions(
    mood_n: NDArray[np.integer], use_n: NDArray[np.integer], *, rng: np.random.Generator
) -> list[str]:
    """One description an item, for n items."""
    template_n = rng.integers(len(DESCRIPTIONS), size=len(mood_n))
    return [
        DESCRIPTIONS[template].format(mood=MOODS[mood], use=USES[use])
        for template, mood, use in zip(template_n, mood_n, use_n, strict=True)
    ]
