"""Few-shot image classification, as in the VeRA paper's table 5: CIFAR-100, Food-101,
Flowers-102, RESISC45; scikit-learn's digits; and any folder of images.

`shots` images of each class are drawn from the training split. The test split is
evaluated on; without one (RESISC45, digits), all other images are. Images come from the
hub's parquet files or from folders: see sets.py. A model's weights come with their
preprocessing: see pixels.py."""

from tasks.images.pixels import Preprocessing, preprocessing, write_preprocessing
from tasks.images.task import ImageTask, NewImages, load, source

PROTOCOL = 1
