from tests.data.conftest import clip, tokenizer
from tests.train.conftest import clips, experiment, pictures, toy

__all__ = ["clip", "clips", "experiment", "pictures", "tokenizer", "toy"]
