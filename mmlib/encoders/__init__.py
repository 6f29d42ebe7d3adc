"""Encoders: a picture, a text, a sound or a clip in, tokens and one pooled vector out."""
