"""One check over every recipe: its values are plain, change by name, survive JSON; its tasks and published rows fit."""

import json

import keras
import numpy as np
import pytest

from tfface import labels, recipes
from tfface.errors import UserError
from tfface.recipes import RECIPES

ROWS = [(name, variant) for name, recipe in RECIPES.items() for variant in recipe.variants]


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_every_variant_loads_and_survives_json(name, variant):
    recipe = recipes.load(name, variant)
    again = RECIPES[name].from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert recipe.run_epochs >= 1


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_tasks_have_targets_that_fit(name, variant):
    for task in recipes.load(name, variant).tasks():
        assert task.targets.ndim == 2
        if task.classes:
            assert len(task.classes) == task.width
            assert task.targets.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_published_rows_name_where_they_stand(name, variant):
    for task, metric, value, source in recipes.load(name, variant).published:
        assert all((task, metric, source))
        assert value > 0


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="arg"):
        recipes.load("nothing")
    with pytest.raises(UserError, match="years"):
        recipes.load("arg", "nothing")
    with pytest.raises(UserError, match=r"Did you mean epochs\?.*batch_size"):
        recipes.load("arg", settings=["epoch=3"])


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("learning_rate=1", "learning_rate", 1.0),
        ("age=exact", "age", "exact"),
        ("views=((1.0, False),)", "views", ((1.0, False),)),
        ("oversample={}", "oversample", {}),
        ("test_mirror=True", "test_mirror", True),
        ("depths=Mixed_7a,Block8_6_ScaleSum", "depths", ("Mixed_7a", "Block8_6_ScaleSum")),
        ("depths=Mixed_7a", "depths", ("Mixed_7a",)),
        ("depths='Mixed_7a','Mixed_6a'", "depths", ("Mixed_7a", "Mixed_6a")),
    ],
)
def test_settings_are_read(setting, field, value):
    assert getattr(recipes.load("arg", settings=[setting]), field) == value


@pytest.mark.parametrize("setting", ["epochs=many", "epochs=2.5", "test_mirror=1", "views=3", "epochs"])
def test_settings_of_another_kind_are_refused(setting):
    with pytest.raises(UserError, match="expects"):
        recipes.load("arg", settings=[setting])


def test_arg_factors_are_the_papers():
    recipe = recipes.load("arg")
    assert recipe.oversample == {"race": (1, 2, 3, 3, 4)}
    weights = {task.name: task.weight for task in recipe.tasks()}
    assert weights == {"gender": 1.0, "race": pytest.approx(1 / 5), "age": pytest.approx(1 / 10)}


def test_a_recipe_refuses_labels_that_it_does_not_learn():
    classes = {"gender": ("Male", "Female"), "race": ("A", "B")}
    with pytest.raises(UserError, match=r"race with 5 classes\. Received: a data set with 2 \(A, B\)"):
        recipes.load("arg").adapted(classes)
    with pytest.raises(UserError, match=r"age_group with 9 classes.*none of that name \(it has gender, race\)"):
        recipes.load("multitask").adapted(classes)


def test_the_gender_recipe_takes_the_folders_classes():
    recipe = recipes.load("gender").adapted({"label": ("cat", "dog", "fox")})
    assert recipe.classes == ("cat", "dog", "fox")
    assert recipe.model().output["label"].shape == (None, 3)
    with pytest.raises(UserError, match=r"label.*gender, race.*--set label=gender"):
        recipes.load("gender").adapted({"gender": ("Male", "Female"), "race": ("A", "B")})
    # The tiny form learns what the synthetic faces have: an image folder is at hand then, not to be built.
    with pytest.raises(UserError, match=r"are: label\. Name the one to learn \(--set label=label\)"):
        recipes.load("gender", tiny=True).adapted({"label": ("man", "woman")})
    with pytest.raises(UserError, match=r"are: none\. Build an image folder"):
        recipes.load("gender").adapted({})


def test_rates_of_paper_3_grow_from_the_pixels_to_the_head():
    recipe = recipes.load("gender")
    optimizer = recipe.optimizer(recipe.model(), 100)
    factors = [optimizer.factors[name] for name in ("conv1_conv", "conv5_block3_2_conv", "label_logits")]
    assert factors == pytest.approx([0.1, 0.1**0.5, 1.0])  # slice(1e-5, 1e-4)


def test_layers_of_facenet_move_less_than_the_head_where_they_are_trained_further():
    recipe = recipes.load("gender", "facenet")
    layers = [keras.layers.Dense(2, name=name) for name in ("Conv2d_1a_3x3", "Mixed_6a_Branch_0", "label_logits")]
    factors = recipe.optimizer(keras.Sequential([keras.Input((2,)), *layers]), 100).factors
    assert list(factors.values()) == pytest.approx([0.01, 0.1, 1.0])
    on_features = recipe.optimizer(keras.Sequential([keras.Input((2,)), layers[-1]]), 100)
    assert on_features.factors == {"label_logits": 1.0}


def test_weight_decay_of_paper_5_shrinks_weights_as_in_its_framework():
    recipe = recipes.load("occluded")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    optimizer = recipe.optimizer(model, steps=10**7)  # the rate stays what it is in the beginning
    kernel, bias = model.trainable_variables
    bias.assign([1.0, 1.0])
    before, velocity = kernel.numpy(), np.zeros((3, 2))
    expected = before.astype("float64")
    for _ in range(500):
        optimizer.apply([np.zeros((3, 2), "float32"), np.zeros(2, "float32")], model.trainable_variables)
        velocity = 0.9 * velocity + 5e-4 * expected  # torch.optim.SGD
        expected -= 0.1 * velocity
    np.testing.assert_allclose(np.log(kernel.numpy() / before), np.log(expected / before), rtol=0.05)
    np.testing.assert_array_equal(bias, [1.0, 1.0])


def test_single_tasks_of_paper_2_have_one_head_and_its_published_figure():
    recipe = recipes.load("multitask", "race")
    assert [task.name for task in recipe.tasks()] == ["race"]
    assert [row[:3] for row in recipe.published] == [("race", "accuracy", 0.584)]


def test_fairface_by_transfer_learns_its_own_labels():
    tasks = {task.name: task for task in recipes.load("arg", "fairface").tasks()}
    assert {name: task.width for name, task in tasks.items()} == {"gender": 2, "race": 7, "age_group": 9}
    assert tasks["age_group"].ordered
    assert not tasks["age_group"].is_age


def test_the_race_recipe_wants_the_four_races_under_their_names():
    with pytest.raises(UserError, match=r"Received: a data set with African.*@four_races"):
        recipes.load("race").adapted({"race": ("African", "Asian", "Caucasian", "Indian")})
    recipe = recipes.load("race")
    assert recipe.adapted({"race": ("White", "Black", "Asian", "Indian")}) is recipe


@pytest.mark.parametrize(
    ("variant", "accuracy"),
    [
        ("tcgf", 0.989),  # table 2
        ("resnet50", 0.972),
        ("mobilenet", 0.954),
        ("vgg16", 0.966),
        ("relu", 0.987),  # table 1
        ("rnet", 0.97),  # table 3
    ],
)
def test_rows_of_paper_1_have_their_published_figure(variant, accuracy):
    assert recipes.load("race", variant).published[0][1:3] == ("accuracy", accuracy)


def test_recalls_of_paper_1_are_those_of_its_confusion_matrices():
    # Table 3: rows Caucasian, African, Asian, Indian of 2,000 images each.
    diagonals = {"tcgf": (1974, 1975, 1989, 1970), "rnet": (1912, 1942, 1952, 1945)}
    for variant, diagonal in diagonals.items():
        recalls = [value for _, metric, value, _ in recipes.load("race", variant).published if "recall of" in metric]
        assert recalls == [right / 2000 for right in diagonal]


@pytest.mark.parametrize("setting", ["network=lenet", "loss=hinge", "algorithm=lion", "schedule=stairs"])
def test_unknown_choices_of_paper_1_are_named(setting):
    recipe = recipes.load("race", "rnet", [setting])
    with pytest.raises(UserError, match="Received"):
        recipe.optimizer(recipe.model(), 10)


def test_the_compact_network_from_fairface_alone_has_no_embedding():
    small = {"image_size": (48, 48), "blocks": (1, 1, 1, 1)}
    alone = recipes.load("compact", "fairface").changed(**small).model()
    assert set(alone.output) == {"gender", "race", "age", "age_group", "race_utkface"}
    with_it = recipes.load("compact", "fairface").changed(**small, embedding_weight=10.0).model()
    assert set(with_it.output) == {*alone.output, "embedding"}


def test_the_compact_network_leaves_no_races_out_in_silence():
    gender, seven, five = labels.GENDERS, labels.FAIRFACE_RACES, labels.UTKFACE_RACES
    both = recipes.load("compact").adapted(
        {"gender": gender, "race": seven, "race_utkface": five, "age_group": labels.FAIRFACE_AGES}
    )
    assert both.known == "all"
    with pytest.raises(UserError, match="Turn them round in --data"):
        recipes.load("compact").adapted(
            {"gender": gender, "race": five, "race_fairface": seven, "age_group": labels.FAIRFACE_AGES}
        )


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_an_embedding_of_the_weight_0_is_learnt_from_no_teacher(weight):
    recipe = recipes.load("compact", settings=[f"embedding_weight={weight}"])
    assert recipe.teacher == "facenet"
    assert ("embedding" in {task.name for task in recipe.tasks()}) == (weight > 0)


@pytest.mark.parametrize(
    "setting",
    [
        "batch_size=0",
        "seed=-1",
        "mixup=-1.0",
        "occluded=7.0",
        "image_size=100000,100000",
        "image_size=48.5,48",
        "epochs=0",
        "random_crop=5.0",
        "label_smoothing=2.0",
        "distill_share=0.0",
        "learning_rate=-1.0",
        "gender_weight=-1.0",
    ],
)
def test_values_out_of_range_are_named(setting):
    with pytest.raises(UserError, match=rf"^{setting.split('=')[0]} must be .*\. Received: "):
        recipes.load("arg", settings=[setting])


def test_a_recipe_without_a_tiny_form_says_so():
    with pytest.raises(UserError, match="has no tiny form"):
        recipes.Recipe().tiny()
