"""Labels from numbers, names, synonyms and synsets, as people copy them from other libraries."""

import pytest

from var_toolkit.conditions.class_names import class_names, kept, read
from var_toolkit.settings import is_one

# Spelt alike by every library; the dog and the jacket differ by a capital letter alone.
TWICE = {"crane": (134, 517), "maillot": (638, 639)}


@pytest.mark.parametrize("wanted", [207, "207", "golden retriever", "Golden Retriever", "n02099601"])
def test_imagenet_classes_are_known_by_number_name_and_synset(wanted):
    assert class_names("imagenet", 1000).resolve(wanted) == 207


def test_synonyms_are_known():
    assert class_names("imagenet", 1000).resolve("tabby cat") == class_names("imagenet", 1000).resolve("tabby") == 281


def test_still_lifes_are_known_by_what_they_show():
    names = class_names("still-lifes", 1000)
    assert all(names.resolve(names.name(label)) == label for label in (0, 207, 999))


def torchvision_names() -> list[str]:
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def timm_names(**options) -> list[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(label, **options) for label in range(1000)]


def keras_names() -> list[str]:
    """As `decode_predictions` writes them."""
    return [name.split(", ")[0].replace(" ", "_") for name in timm_names()]


@pytest.mark.parametrize(
    "spelling",
    [torchvision_names, timm_names, keras_names, lambda: [name.title() for name in timm_names()]],
    ids=["torchvision", "timm and Hugging Face", "Keras", "capitals"],
)
def test_the_names_of_other_libraries_mean_their_labels(spelling):
    names = class_names("imagenet", 1000)
    for label, text in enumerate(spelling()):
        if text.lower() in TWICE:
            with pytest.raises(ValueError, match=" .*".join(map(str, TWICE[text.lower()]))):
                names.resolve(text)
        elif text != "Cardigan" or label != 474:  # of the jacket, in capitals
            assert names.resolve(text) == label, text


def test_torchvision_tells_its_crane_and_its_swimsuit_apart():
    names = class_names("imagenet", 1000)
    assert [names.resolve(text) for text in ("crane bird", "maillot tank suit", "Cardigan", "cardigan")] == [
        134, 639, 264, 474,
    ]  # fmt: skip


def test_a_name_with_its_definition_is_known():
    assert class_names("imagenet", 1000).resolve(timm_names(detailed=True)[207]) == 207


@pytest.mark.parametrize(
    "wanted", ["golden-retriever", "GOLDEN_RETRIEVER", "  golden   retriever ", "gölden retriever"]
)
def test_case_hyphens_underscores_spaces_and_accents_make_no_difference(wanted):
    assert class_names("imagenet", 1000).resolve(wanted) == 207


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("207-210", [207, 208, 209, 210]),
        ("207, 508", [207, 508]),
        ("508,207", [508, 207]),
        ("tiger shark, Galeocerdo cuvieri", [3]),
        ("black-footed ferret", [359]),
        ("5,tiger shark, Galeocerdo cuvieri,golden retriever,7-8", [5, 3, 207, 7, 8]),
    ],
)
def test_ranges_and_lists_are_several_classes_and_a_name_with_commas_is_one(text, labels):
    assert class_names("imagenet", 1000).resolve_all(text) == labels


@pytest.mark.parametrize("text", ["9-7", "5-", "5,,6", "0-1000", "5,xyzzy"])
def test_ranges_and_lists_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"9-7|5-|''|1000|xyzzy"):
        class_names("imagenet", 1000).resolve_all(text)


@pytest.mark.parametrize("wanted", [True, 1.5, "label:x", [1]])
def test_what_is_no_number_and_no_name_is_refused(wanted):
    with pytest.raises(ValueError, match="neither a whole number nor a name"):
        class_names("imagenet", 1000).resolve(wanted)


def test_a_label_that_is_neither_is_one_label_and_not_a_list():
    assert all(map(is_one, (1.0, object(), 3)))
    assert not is_one([3])


def test_a_superscript_is_no_number():
    with pytest.raises(ValueError, match="'²' is not known"):
        class_names("imagenet", 1000).resolve("²")


def test_names_of_a_model_s_own_are_known():
    names = class_names(("cat", "Coffee_cups"), 2)
    assert [names.resolve(text) for text in ("cat", "CAT", "coffee cups", "1", 0)] == [
        0, 0, 1, 1, 0,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'dog' is not known.*'cat', 'Coffee_cups'"):
        names.resolve("dog")


def test_folders_called_by_synsets_have_the_names_of_imagenet():
    names = class_names(("n01440764", "n02099601"), 2)
    assert names.resolve("golden retriever") == names.resolve("n02099601") == 1
    assert names.name(1) == "golden retriever"


def test_the_folders_of_all_of_imagenet_are_imagenet():
    every = [class_names("imagenet", 1000).names(label)[-1] for label in range(1000)]
    assert kept(every, 1000) == "imagenet"
    assert kept(reversed(every), 1000) == tuple(reversed(every))


def test_numbers_as_names_are_taken_where_they_can_mean_one_class_alone():
    sorted_as_numbers = class_names(tuple(map(str, range(12))), 12)
    assert [sorted_as_numbers.resolve(str(label)) for label in range(12)] == list(range(12))
    assert class_names(("5", "7", "9"), 3).resolve("7") == 1


def test_a_negative_number_is_not_the_class_named_by_its_digits():
    numbered = class_names(tuple(map(str, range(12))), 12)
    for wanted in ("-1", " - 5", "label:-1", "name:-1", "2,-3"):
        with pytest.raises(ValueError, match=r"-\s*\d"):
            numbered.resolve_all(wanted)
    assert class_names(("-1", "0", "1"), 3).resolve_all("-1,name:1") == [0, 2]


def test_a_number_that_is_one_label_and_the_name_of_another_is_refused_with_both():
    names = class_names(("0", "1", "10", "11", "2"), 5)
    with pytest.raises(ValueError, match=r"label 2 \('10'\).* label 4"):
        names.resolve("2")
    assert [names.resolve(text) for text in (2, "label:2", "name:2", "10", "3")] == [2, 2, 4, 2, 3]


def test_an_unknown_name_is_sent_to_the_models_that_know_it():
    with pytest.raises(
        ValueError, match=r"'golden retriever' needs an ImageNet model, such as var-d16.*vargen classes"
    ):
        class_names("still-lifes", 1000).resolve("golden retriever")
    with pytest.raises(ValueError, match="stilllife-var"):
        class_names("imagenet", 1000).resolve("red sphere on sand")
    with pytest.raises(ValueError, match=r"'Maltese dog'.*`vargen classes dog`"):
        class_names("imagenet", 1000).resolve("dog")


def test_a_model_without_names_says_so():
    with pytest.raises(ValueError, match=r"'cat' is not known.*without class names.*0 to 4"):
        class_names(None, 5).resolve("cat")


@pytest.mark.parametrize(
    "value",
    [
        "cifar", "imagenet", ["a"], ["a", "b", 3], [["a"], ["b"], ["c"]], {"a": 0}, 5,
        ["a", "b", ""], ["a", "b", "\x1b[2J"], ["a", "b", "c" * 256],
    ],
)  # fmt: skip
def test_names_in_a_file_that_are_none_are_refused_by_the_key(value):
    with pytest.raises(ValueError, match=r"^model_index.json: _class_names") as refused:
        read(value, 3, "model_index.json: _class_names")
    assert len(str(refused.value)) < 400


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
