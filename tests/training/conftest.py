"""A recipe and data sets so small that a training takes a second."""

from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import tasks
from tfface.data.pipeline import View
from tfface.labels import GENDERS
from tfface.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Colour(Recipe):
    """Gender and age from the mean colour of an image, trained from pixels."""

    name: ClassVar[str] = "colour"
    title: ClassVar[str] = "Colours"
    data: str = "colours"
    image_size: tuple[int, int] = (4, 4)
    views: tuple = field(default=(View(),))
    epochs: int = 1
    batch_size: int = 16
    activation: str = "relu"
    dropout_rate: float = 0.0
    learning_rate: float = 0.1
    genders: tuple[str, ...] = GENDERS

    def tasks(self):
        return tasks.classification("gender", self.genders), tasks.age_bins()

    def model(self):
        image = keras.Input((*self.image_size, 3), name="image")
        x = keras.layers.GlobalAveragePooling2D(name="mean")(keras.layers.Rescaling(1 / 255, name="scale")(image))
        x = keras.layers.Dense(8, self.activation, name="hidden")(x)
        x = keras.layers.Dropout(self.dropout_rate, name="dropout")(x)
        logits = {task.name: keras.layers.Dense(task.width, name=f"{task.name}_logits")(x) for task in self.tasks()}
        softmax = {name: keras.layers.Activation("softmax", name=name)(logit) for name, logit in logits.items()}
        return keras.Model(image, softmax, name=self.name)

    def optimizer(self, model, steps):
        return keras.optimizers.Adam(self.learning_rate)


@pytest.fixture
def colour(monkeypatch, tmp_path):
    """The recipe `colour`, known by its name for a while, with a fresh $TFFACE_HOME."""
    monkeypatch.setitem(RECIPES, "colour", Colour)
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path / "home"))
    return Colour


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Prepared sets of 4x4 pixels, men blue and women red: whole; of half unknown genders; in another order; called
    otherwise; without ages; without any label; without a validation split."""
    folder = tmp_path_factory.mktemp("data")

    def store(name, genders=GENDERS, called=None, lacks=(), unknown=0, splits=("train", "validation", "test")):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
            "gender": tfds.features.ClassLabel(names=list(called or genders)),
            "age": tfds.features.Scalar(np.int64),
            "key": tfds.features.Text(),
        }
        features = tfds.features.FeaturesDict({k: v for k, v in features.items() if k not in lacks})

        def examples(split):
            for i in range(64):
                gender = GENDERS[i % 2]
                red, blue = (250, 0) if gender == "Female" else (0, 250)
                row = {"image": np.full((4, 4, 3), (red, 3 * i, blue), "uint8"), "age": i, "key": f"{split}{i}"}
                row["gender"] = -1 if i < unknown else genders.index(gender)
                yield {k: v for k, v in row.items() if k not in lacks}

        signature = features.get_tensor_spec()
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            data_dir=str(folder),
            features=features,
            split_datasets={
                split: tf.data.Dataset.from_generator(lambda split=split: examples(split), output_signature=signature)
                for split in splits
            },
        )

    store("colours")
    store("half_known", unknown=32)
    store("swapped", genders=GENDERS[::-1])
    store("renamed", genders=GENDERS[::-1], called=("Woman", "Man"))
    store("lowercase", called=("male", "female"))
    store("ageless", lacks=("age",))
    store("unlabelled", lacks=("gender", "age"))
    store("unvalidated", splits=("train", "test"))
    return folder
