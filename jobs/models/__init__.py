"""The networks, one file per paper, each with its objective.

What the loop, the evaluation and the tiler ask of a model:

- `training_loss(batch) -> (loss, logs)`: `batch` holds float32 tensors in [0, 1], NCHW, under the papers' role names
  (`lq`, `gt`, `mask`, `negatives`, or `frames` of a scene), with `weight` (B,), 0 for padding, and `count`, the number of
  true samples of the global batch divided by the number of ranks: a loss is sum_i weight_i * loss_i / count, so that DDP's
  mean of gradients is that of the global batch; and `progress`, the share of the run's steps that is done;
- `inputs`: what its `training_loss` cannot do without: roles of images, `intra negatives` or `extra negatives`;
- `restore(lq) -> output`: float32 (B, C, H, W) in [0, 1] in and out (not clipped), any H and W, in eval mode;
- `in_channels`, `receptive_field` (pixels a side that one output pixel sees; None: global statistics: jobs.restoring.tiles says what that means)
  and `size_multiple` (of H and W).
- `read_weights(x)`, where it has a memory: how much each position of x reads of each item, {bank: (B, items, h, w)};
- `no_decay()`, where it has one: the names of the parameters that weight decay spares.
"""
