from tests.data.conftest import clip, photos, tokenizer

__all__ = ["clip", "photos", "tokenizer"]
