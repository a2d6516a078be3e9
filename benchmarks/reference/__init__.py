"""The papers' networks and objectives as their specifications read, computed in the manner of their releases.

Each module has `loss(model, batch)` and `restore(model, lq)`, with the arguments and the result of the methods of jobs/models of the
same names, and computes with the parameters of such a model: what is concatenated there is concatenated here, each layer normalises
for itself, patches of an image go through the network one after the other, and each image through VGG19 alone. They know of one
rank, and of the default options. `benchmarks/step.py` measures our step beside theirs; `tests/test_reference.py` holds that both are
the same numbers.
"""

from benchmarks.reference import drcnet, memnet, memorynet, timelapse

REFERENCES = {"memnet": memnet, "memorynet": memorynet, "timelapse": timelapse, "drcnet": drcnet}
