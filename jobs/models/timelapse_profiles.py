"""The options of the time-lapse network (`jobs/models/timelapse.py`), and its profiles: ours, the paper's, the release's."""

from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.config import Frozen

TERMS = ("b", "s", "c", "w", "compact", "ssim")  # of L = sum of lambda * L (eq. 14); the last two are the release's own


class Settings(NamedTuple):
    """All that profiles differ in, under the names of the options."""

    norm: str
    zero_init: bool
    tanh: int
    start: str
    update: str
    read_grad: bool
    b: float
    s: float
    c: float
    w: float
    compact: float
    ssim: float
    self_consistency: str
    similarity: str
    h: int
    l: int  # noqa: E741 - the paper's symbol
    over: str
    diagonal: bool

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {term: getattr(self, term) for term in TERMS}


OURS = Settings(
    norm="bn",
    zero_init=True,
    tanh=1,
    start="sphere",
    update="assigned",
    read_grad=False,
    b=1,
    s=0.1,
    c=1,
    w=0.01,
    compact=0,
    ssim=0,
    self_consistency="cross",
    similarity="wang2004",
    h=4,
    l=2,
    over="sample",
    diagonal=False,
)
PAPER = OURS._replace(norm="none", zero_init=False, update="literal", read_grad=True)
RELEASED = OURS._replace(zero_init=False, tanh=2, start="orthant", h=50, l=1, over="batch", diagonal=True)
PROFILES = {
    "ours": OURS,
    "paper": PAPER._replace(c=0.001, self_consistency="literal", diagonal=True),
    "released": RELEASED._replace(s=1, compact=0.01, ssim=0.5, similarity="padded"),
}


class MemoryOptions(Frozen):
    """The memory of rain streaks. null: as the profile says."""

    items: int = Field(20, ge=1, description="M")
    start: Literal["sphere", "orthant"] | None = Field(
        None,
        description="directions of the first items, drawn from all, or from those of positive numbers alone (release)",
    )
    update: Literal["assigned", "literal", "none"] | None = Field(
        None,
        description="assigned: each query moves its nearest item (release); literal: every query moves every item (eq. 6); "
        "none: the items stay as they were drawn",
    )
    read_grad: bool | None = Field(
        None, description="let the gradient pass alpha to the queries (eqs. 2 to 4 as written); off, as released"
    )


class WhiteningOptions(Frozen):
    """L_w whitens the l lowest of h clusters of the covariances' variances. null: as the profile says."""

    h: int | None = Field(None, ge=1, description="clusters")
    l: int | None = Field(None, ge=1, description="of which the lowest l are whitened")  # noqa: E741 - the paper's symbol
    over: Literal["sample", "batch"] | None = Field(
        None, description="sample: the clusters of each pair of frames; batch: of the global batch, as released"
    )
    diagonal: bool | None = Field(None, description="of the whole matrix (eqs. 11 to 13), not of its upper triangle")


class LossOptions(Frozen):
    """The objective of a pair of frames (eq. 14): a weight lambda of each term; terms of weight 0 are not computed.

    L_b, L_c, L_s are means, over the elements of the [-1, 1] range, of each sample. null: as the profile says.
    """

    b: float | None = Field(None, ge=0, description="the weight of L_b")
    s: float | None = Field(None, ge=0, description="of L_s")
    c: float | None = Field(None, ge=0, description="of L_c")
    w: float | None = Field(None, ge=0, description="of L_w")
    compact: float | None = Field(
        None, ge=0, description="of the second frame's distance of queries to nearest items, as released"
    )
    ssim: float | None = Field(None, ge=0, description="of the negative SSIM of the two backgrounds")
    self_consistency: Literal["cross", "literal"] | None = Field(
        None, description="cross: L_s across the frames (release); literal: eq. 9, identically zero"
    )
    similarity: Literal["wang2004", "padded"] | None = Field(
        None,
        description="the SSIM: wang2004, of images in [0, 1] and windows inside them; padded: of [-1, 1], with the same "
        "constants, and zeros around the image, as released",
    )
    whitening: WhiteningOptions = Field(WhiteningOptions(), description="what L_w whitens: h, l, over, diagonal")


def chosen(
    profile: str, memory: MemoryOptions | None, loss: LossOptions, **network: str | bool | int | None
) -> Settings:
    """The profile, with the options that are given in its place. Raises ValueError for those that teach nothing."""
    groups = [memory.model_dump(exclude={"items"})] if memory is not None else []
    groups += [loss.model_dump(exclude={"whitening"}), loss.whitening.model_dump(), network]
    given = {name: value for group in groups for name, value in group.items() if value is not None}
    settings = PROFILES[profile]._replace(**given)
    if settings.l > settings.h:
        raise ValueError(f"loss.whitening: l {settings.l} of h {settings.h} clusters: from 1 to h")
    if not (settings.b or settings.c or (settings.s and settings.self_consistency == "cross")):
        raise ValueError("loss: b, c and the cross s are 0: nothing would teach the decoder")
    return settings
