"""The networks, one file per paper, each with its objective; and networks of one's own (`own`, `objective`).

`Network` is what the loop, the evaluation and the tiler ask of a model. The papers' models have all of it; `own` adds the
rest to a model that only maps images to images.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Network(Protocol):
    """A torch.nn.Module that can be trained, evaluated and restored with."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What `training_loss` needs: roles of images, `intra negatives` or `extra negatives`."""

    @property
    def in_channels(self) -> int:
        """Channels of the images that go in, and come out."""

    @property
    def receptive_field(self) -> int | None:
        """Pixels a side that one output pixel sees; None: global statistics, jobs.restoring.tiles says what that means."""

    @property
    def size_multiple(self) -> int:
        """Tiles of an image begin at multiples of this many pixels, so that the network sees them as it sees the whole."""

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one rank's part of a global batch, and scalars to log.

        batch: float32 tensors in [0, 1], NCHW, under the papers' role names (`lq`, `gt`, `mask`, `negatives`, or `frames` of
        a scene), with `weight` (B,), 0 for padding, and `count`, the number of true samples of the global batch divided by
        the number of ranks: a loss is sum_i weight_i * loss_i / count, so that DDP's mean of gradients is the global batch's
        gradient; and `progress`, the share of the run's steps that is done.
        """

    def restore(self, lq: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] in and out (not clipped), any H and W, in eval mode."""

    # The methods of torch.nn.Module that users of a network call:

    def train(self, mode: bool = True) -> Self:
        """See torch.nn.Module, as for the methods below."""

    def eval(self) -> Self: ...

    def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any: ...


@runtime_checkable
class Remembering(Network, Protocol):
    """A network with a memory."""

    def read_weights(self, x: Tensor) -> dict[str, Tensor]:
        """How much each position of x (B, C, H, W) reads of each item: {bank: (B, items, h, w)}."""


@runtime_checkable
class Contrasting(Protocol):
    """What a network adds if its objective compares maps of VGG19, which only training needs."""

    def load_features(self, device: torch.device) -> None:
        """Load what it compares with onto a device; otherwise the first step does. Raises UserError for weights that are not
        there, or not VGG19's.
        """


@runtime_checkable
class SparingDecay(Protocol):
    """What a network adds if some of its parameters are to have no weight decay."""

    def no_decay(self) -> set[str]:
        """The names of the parameters that weight decay spares."""
