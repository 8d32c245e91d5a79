"""Optical flow by OpenCV: dense inverse search, its `medium` preset.

OpenCV is no part of a base install: `pip install 'stylecrafter_jax[metrics]'`. Another flow, such
as RAFT, is any function with the signature of `DenseInverseSearch.__call__`.

Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016; OpenCV,
modules/video/src/dis_flow.cpp.
"""

import numpy as np
from jaxtyping import Float


class DenseInverseSearch:
    """OpenCV's flow between two frames; `name` says which and of what version.

    Raises:
        ValueError: OpenCV is not installed.
    """

    def __init__(self):
        try:
            import cv2
        except ImportError as error:
            raise ValueError(
                "the warping error needs OpenCV: pip install 'stylecrafter_jax[metrics]', "
                "name a flow of your own by --flow, or leave it out of --metrics"
            ) from error
        self._cv2 = cv2
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.name = f"OpenCV {cv2.__version__} DISOpticalFlow, preset medium"

    def __call__(
        self, first: Float[np.ndarray, "h w 3"], second: Float[np.ndarray, "h w 3"]
    ) -> Float[np.ndarray, "h w 2"]:
        """Returns (x, y) in pixels from each pixel of the first to its place in the second.

        Args:
            first: a frame, colours in [0, 1].
            second: the frame after it.

        Raises:
            ValueError: the frames are too small.
        """
        grey = [
            self._cv2.cvtColor(np.round(255.0 * frame).astype(np.uint8), self._cv2.COLOR_RGB2GRAY)
            for frame in (first, second)
        ]
        try:
            # Without a flow to start from, the search starts at rest; OpenCV's stub wants one.
            return self._search.calc(*grey, None)  # pyright: ignore[reportCallIssue]
        except self._cv2.error as error:
            h, w, _ = first.shape
            raise ValueError(f"{self.name} fails on frames of {h}x{w}: {error.err}") from error
