"""What a request may ask for at most. `vargen serve` sets the queue and the batch; these are the same everywhere."""

from __future__ import annotations

MOST_IMAGES = 16  # of a request
LONGEST_PROMPT = 4000  # characters
LONGEST_NAME = 300  # characters of a model, a class or a pattern
MOST_JSON = 2**20  # bytes of a body in JSON
MOST_UPLOAD = 2**25  # bytes of a body with files
MOST_PIXELS = 2**24  # of an uploaded image, 4096 x 4096
MOST_SIDE = 4096  # pixels of a side that is asked for
MOST_MAP = 256  # tokens of a side of a map that is asked for
MOST_NUMBERS = 1024  # in a list of a setting, or maps of a schedule
MOST_WORK = 16  # of an image: times the work, the cache or the pixels of the model's own plan
MOST_CANDIDATES = 64  # of an image, in search at test time
SETTING_CAPS = {"neighbours": 1000, "draft_length": 64}  # whose memory or time `MOST_WORK` does not count
