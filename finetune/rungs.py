"""What a rung of the content ladder is: whose item vectors, and what is made of them.

A rung is written `vectors` or `vectors+part+…`; those of the ladder have names of their own. Any
other combination (`raw+simtier`, `aligned+simtier+codes`) is a rung too.

No torch here, as settings are checked before anything heavy is imported.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Vectors = Literal["none", "noise", "scratch", "raw", "aligned"]
Part = Literal["rate", "simtier", "attention", "codes", "tuned", "make"]

VECTORS: tuple[Vectors, ...] = get_args(Vectors)
PARTS: tuple[Part, ...] = get_args(Part)

NAMED: dict[str, str] = {
    "rate": "aligned+rate",
    "simtier": "aligned+simtier",
    "content_attention": "aligned+attention",
    "codes": "aligned+codes",
    "tuned": "aligned+tuned",
    "make": "aligned+make",
}
"""The ladder's rungs above `aligned`, each `aligned` and one thing more (`rate`: in place of its
vectors), so that a difference to `aligned` has one cause."""

TEXTS: dict[str, str] = {
    "none": "ids and features alone",
    "noise": "random vectors as wide as the aligned ones: a control",
    "scratch": "the release's architecture, pre-trained on nothing: a control",
    "raw": "off-the-shelf content vectors, frozen",
    "aligned": "vectors of the released checkpoint, frozen",
    "rate": "in place of the vectors, how they compare and how often others like the target were "
    "clicked",
    "simtier": "how many of the history's items are how similar to the target",
    "attention": "target attention over the history's content",
    "codes": "trainable embeddings of semantic codes",
    "tuned": "the item encoder trained under the click loss",
    "make": "a content model trained first and on its own",
}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Whose item vectors, and what is made of them."""

    name: str
    vectors: Vectors
    parts: frozenset[Part]

    @property
    def text(self) -> str:
        """The rung in plain words."""
        texts = [TEXTS[self.vectors], *(TEXTS[part] for part in PARTS if part in self.parts)]
        return "; ".join(texts)

    @property
    def uses_release(self) -> bool:
        """Whether its vectors are those of the released checkpoint."""
        return self.vectors == "aligned"

    @property
    def knows_seed(self) -> bool:
        """Whether its frozen vectors depend on the seed."""
        return self.vectors in ("noise", "scratch")


def parse_rung(name: str) -> Rung:
    """Read a rung's name.

    Raises:
        ValueError: unknown vectors or parts, a part twice, or parts that do not go together.
    """
    vectors, *parts = NAMED.get(name, name).split("+")
    if vectors not in VECTORS or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
        raise ValueError(
            f"rung: found {name!r}, expected one of {[*VECTORS, *NAMED]}, or vectors of "
            f"{list(VECTORS)} with parts of {list(PARTS)} behind a +; correct it in the config"
        )
    if vectors == "none" and parts:
        raise ValueError(
            f"rung: found {name!r}, expected vectors for {'+'.join(parts)} to work on; write e.g. "
            f"aligned+{'+'.join(parts)}"
        )
    if "tuned" in parts and vectors != "aligned":
        raise ValueError(
            f"rung: found {name!r}, but only the release has an encoder to tune; write "
            f"aligned+{'+'.join(parts)}"
        )
    return Rung(
        name=name,
        vectors=next(one for one in VECTORS if one == vectors),
        parts=frozenset(one for one in PARTS if one in parts),
    )
