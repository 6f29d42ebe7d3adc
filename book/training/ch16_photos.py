"""Train a short run of the full system on a folder in the format of COCO and VQAv2, and mark it.

COCO cannot be had without a network, so the folder is :mod:`mmlib.data.coco_example`'s: scenes for
photographs, with free captions and questions that ten people answered, some of them wrongly. It
shows that what stands in such a folder is learned, and says nothing about photographs.
``make train CHAPTER=16_photos``.
"""

import dataclasses
import tempfile
from pathlib import Path

from mmlib import results
from mmlib.data.coco_example import write_example
from mmlib.system.marking import mark_photos
from mmlib.system.profiles import PROFILES
from mmlib.system.stages import photos_of, train_system

MINUTES = 3
IMAGES = 400  # of which six in ten are for training


def main() -> None:
    """Train and mark."""
    with tempfile.TemporaryDirectory() as folder:
        write_example(Path(folder) / "coco", images=IMAGES, size=64)
        config = dataclasses.replace(
            PROFILES["smoke"],
            photos=str(Path(folder) / "coco"),
            photo_share=0.7,
            pool=20,
            pretraining_steps=60,
            instruction_steps=400,
            checkpoint_every=500,
        )
        system = train_system(config, Path(folder) / "run", progress=False)
        marks = mark_photos(system, photos_of(system, "val", 60))
    for name, value in marks.items():
        label = f"a folder in the format of COCO and VQAv2: {name.replace('_', ' ')}"
        results.record(f"16.{name}", value, metric=label, tolerance=0.15, seed=0)


if __name__ == "__main__":
    main()
