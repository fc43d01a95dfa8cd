"""Labels from numbers, names, synonyms and synsets."""

import pytest

from var_toolkit.zoo.class_names import class_names


@pytest.mark.parametrize("wanted", [207, "207", "golden retriever", "Golden Retriever", "n02099601"])
def test_imagenet_classes_are_known_by_number_name_and_synset(wanted):
    assert class_names("imagenet", 1000).resolve(wanted) == 207


def test_synonyms_are_known():
    assert class_names("imagenet", 1000).resolve("tabby cat") == class_names("imagenet", 1000).resolve("tabby") == 281


def test_still_lifes_are_known_by_what_they_show():
    names = class_names("still-lifes", 1000)
    assert all(names.resolve(names.name(label)) == label for label in (0, 207, 999))


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'golden retriever'"):
        class_names("imagenet", 1000).resolve("golden retreiver")


def test_a_name_of_two_classes_asks_for_the_number():
    with pytest.raises(ValueError, match=r"134 .*517"):
        class_names("imagenet", 1000).resolve("crane")


@pytest.mark.parametrize("wanted", [1000, -1, "1000", "-1"])
def test_a_number_out_of_range_says_the_range(wanted):
    with pytest.raises(ValueError, match="classes are 0 to 999"):
        class_names("imagenet", 1000).resolve(wanted)


def test_a_model_without_names_takes_numbers():
    names = class_names(None, 10)
    assert names.resolve("7") == 7
    assert names.name(7) == "class 7"


@pytest.mark.parametrize("wanted", [None, "none"])
def test_no_class_is_the_null_class(wanted):
    names = class_names("imagenet", 1000)
    assert names.resolve(wanted) == 1000
    assert names.name(1000) == "no class"
