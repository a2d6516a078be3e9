from pipeline.layouts.base import Count
from pipeline.layouts.scenes import Scenes


class TimeLap(Scenes):
    """TimeLap: 186 time-lapse scenes of a static camera in the rain, 30 frames each, without clean images.

    The release documents no tree: put its scene folders, one for each scene, into train, as for `scenes`. The paper trains
    on all of them and tests elsewhere, so all 5,580 frames are training data; with scenes held out in val or test, of the
    user's own choice, the count differs and has to be allowed.
    Source: Cho et al., Memory-guided Image De-raining Using Time-Lapse Data, TIP 2022.
    """

    name = "timelap"
    tree = "train/<scene>/*.png, 186 scenes of 30 frames"
    counts = (Count("train", "frame", 186 * 30),)
