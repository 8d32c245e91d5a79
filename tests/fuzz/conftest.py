from tests.data.conftest import photos, tokenizer

__all__ = ["photos", "tokenizer"]
