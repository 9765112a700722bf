"""Few-shot image classification, as in the VeRA paper's table 5: CIFAR-100, Food-101, Flowers-102, RESISC45;
scikit-learn's digits; and any folder of images.

`shots` images of each class are drawn from the training split, and the whole test split is evaluated on;
where there is no test split (RESISC45, digits), all the rest is. From the hub, from a local copy in the data
set's own layout, or from a folder: see files.py and sets.py. What a model sees of an image belongs to its
weights: see pixels.py."""

from tasks.images.pixels import Preprocessing, preprocessing, write_preprocessing
from tasks.images.task import ImageTask, load, source

PROTOCOL = 1

__all__ = ["ImageTask", "Preprocessing", "load", "preprocessing", "source", "write_preprocessing"]
