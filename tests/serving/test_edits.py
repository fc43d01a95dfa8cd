"""Edits by HTTP: images, masks and instructions as files of a form."""

import io

import pytest
from PIL import Image
from small_service import EDIT, asked, error_of, events_of, opened, pixels, running


def file_of(image: Image.Image, kind: str = "png", **options) -> bytes:
    """An image file."""
    found = io.BytesIO()
    image.save(found, format=kind, **options)
    return found.getvalue()


PHOTO = Image.linear_gradient("L").resize((80, 64)).convert("RGB")
MASK = Image.new("L", PHOTO.size)
MASK.paste(255, (20, 20, 50, 50))
CLEAR = Image.merge("RGBA", (*Image.new("RGB", PHOTO.size).split(), MASK.point(lambda level: 255 - level)))
CLEAR_PHOTO = Image.merge("RGBA", (*PHOTO.split(), CLEAR.getchannel("A")))


def sent(service, fields: dict[str, str], **files: bytes):
    """The answer to a form."""
    return asked(service, lambda client: client.post(EDIT, data=fields, files=files))


@pytest.mark.parametrize(
    "files",
    [
        {"image": file_of(PHOTO), "mask": file_of(MASK)},
        {"image[]": file_of(PHOTO), "mask": file_of(MASK)},
        {"image": file_of(PHOTO), "mask": file_of(CLEAR)},
        {"image": file_of(CLEAR_PHOTO)},
    ],
    ids=["light", "listed", "clear", "clear image"],
)
@pytest.mark.parametrize("keep_pixels", [False, True])
def test_a_part_is_redrawn_as_in_python(models, files, keep_pixels):
    fields = {"prompt": "letter c", "seed": "3", "n": "2", "keep_pixels": str(keep_pixels).lower()}
    # Behind what is transparent there is white.
    image = CLEAR_PHOTO if len(files) == 1 else PHOTO
    expected = models["letters"].pipe.edit(image, MASK, [2, 2], seeds=[3, 4], keep_pixels=keep_pixels)
    with running(models) as service:
        answer = sent(service, fields, **files)
    assert [pixels(answer, number).tobytes() for number in range(2)] == [one.tobytes() for one in expected.images]
    width, height = expected.images[0].size
    assert answer.json()["size"] == f"{width}x{height}"


@pytest.mark.parametrize(("fields", "label"), [({}, None), ({"class": "letter d"}, 3), ({"prompt": "3"}, 3)], ids=str)
def test_an_edit_needs_no_class(models, fields, label):
    expected = models["letters"].pipe.edit(PHOTO, MASK, [label], seeds=[1], cfg=2.0)
    more = {"seed": "1", "settings": '{"cfg": 2.0}'}
    with running(models) as service:
        answer = sent(service, fields | more, image=file_of(PHOTO), mask=file_of(MASK))
    assert pixels(answer).tobytes() == expected.images[0].tobytes()


def test_an_editor_takes_an_instruction_and_no_mask(models):
    photo = PHOTO.resize((8, 6))
    expected = models["editor"].pipe.edit(photo, instruction=["red cube"], seeds=[2])
    with running(models) as service:
        answer = sent(service, {"model": "editor", "prompt": "red cube", "seed": "2"}, image=file_of(photo))
    assert pixels(answer).tobytes() == expected.images[0].tobytes()
    assert answer.json()["size"] == "8x6"


def test_an_edit_grows_as_a_stream(models):
    with running(models) as service:
        answer = sent(service, {"stream": "true", "seed": "3"}, image=file_of(PHOTO), mask=file_of(MASK))
    *previews, last = events_of(answer)
    assert [one["type"] for one in previews] == ["image_edit.partial_image"] * 3
    assert last["type"] == "image_edit.completed"
    expected = models["letters"].pipe.edit(PHOTO, MASK, [None], seeds=[3]).images[0]
    assert opened(last["b64_json"]).tobytes() == expected.tobytes()


GOOD = {"image": file_of(PHOTO), "mask": file_of(MASK)}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # for which Pillow would run Ghostscript
LARGE = file_of(Image.new("1", (5000, 5000)))


@pytest.mark.parametrize(
    ("fields", "files", "status", "param", "words"),
    [
        ({}, {"mask": GOOD["mask"]}, 400, "image", "there is no image"),
        ({}, {"image": GOOD["image"]}, 400, "mask", "there is no mask"),
        ({}, GOOD | {"mask": file_of(MASK.resize((64, 64)))}, 400, "mask", "64 x 64"),
        ({}, GOOD | {"mask": file_of(MASK.point(lambda level: level // 4))}, 400, "mask", "dark"),
        ({}, GOOD | {"image": b"GIF89a"}, 400, "image", "image is"),
        (
            {},
            GOOD | {"image": EPS},
            400,
            "image",
            "image is not an image",
        ),
        ({}, GOOD | {"image": GOOD["image"][:-40]}, 400, "image", "image is damaged"),
        ({}, GOOD | {"image": file_of(PHOTO.resize((8, 8)))}, 400, "image", "too small"),
        ({}, GOOD | {"image": LARGE}, 413, "image", "5000x5000"),
        ({}, GOOD | {"other": b"1"}, 400, None, "Too many files"),
        ({"n": "many"}, GOOD, 400, "n", "valid integer"),
        ({"plan": "[1]"}, GOOD, 400, "plan", "valid string"),
        ({"settings": '{"skip_scales": 1}'}, GOOD, 400, "settings", "leaves out detail"),
        ({"model": "sizes", "size": "4x6"}, GOOD, 400, "size", "edits are of squares"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_edited_is_one_line_that_names_the_field(models, fields, files, status, param, words):
    with running(models, draws=False) as service:
        answer = sent(service, fields, **files)
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "application/json"),
        (b"--x", "multipart/form-data"),
        (b"--x\r\nnothing", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n', "multipart/form-data; boundary=y"),
    ],
    ids=["json", "no boundary", "broken", "other boundary"],
)
def test_a_body_that_is_no_form_is_refused(models, content, kind):
    with running(models, draws=False) as service:
        answer = asked(service, lambda client: client.post(EDIT, content=content, headers={"content-type": kind}))
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"
